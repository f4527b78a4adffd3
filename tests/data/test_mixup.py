"""Normalizing, erasing and mixing, by hand, by statistics and against timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import Mixup

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.batch_transforms import ERASE_AREA, normalize, random_erase, renormalize
from deitctl.data.mixup import Mix, mix_images, mix_targets, pair_indices, rand_bbox, sample_mixup
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deitctl.recipes import PAPER
from deitctl.training.objective import smooth_labels

HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KEYS = [SampleKey(0, i, 0) for i in range(400)]
OF_2, OF_3 = pair_indices(range(2)), pair_indices(range(3))


def mixing(**values: float) -> AugmentConfig:
    return AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, **values)


def test_normalize_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    torch.testing.assert_close(normalize(pixels, HALVES)[0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    first = normalize(pixels, Preprocessing())[0, :, 0, 0]
    torch.testing.assert_close(first, -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))


def test_renormalize_equals_normalizing_for_the_other(noise):
    pixels = (noise(2, 3, 4, 4) * 60 + 128).clamp(0, 255).to(torch.uint8)
    ours = renormalize(normalize(pixels, Preprocessing()), Preprocessing(), HALVES)
    torch.testing.assert_close(ours, normalize(pixels, HALVES))


def test_renormalize_by_hand():
    """0.485 of full white is 0 for ImageNet's mean and (0.485 - 0.5) / 0.5 = -0.03 for halves."""
    out = renormalize(torch.zeros(1, 3, 1, 1), Preprocessing(), HALVES)
    torch.testing.assert_close(out.flatten(), torch.tensor([-0.03, -0.088, -0.188]))


def test_renormalizing_for_the_same_is_nothing(noise):
    images = noise(1, 3, 2, 2)
    assert renormalize(images, Preprocessing(), Preprocessing(img_size=384)) is images


def test_erasing_hits_the_asked_share_with_the_asked_areas():
    images = random_erase(torch.zeros(400, 3, 64, 64), KEYS, 0.25, seed=0)
    erased = (images != 0).all(dim=1)
    share = erased.float().mean(dim=(1, 2))
    hit = share[share > 0]
    assert 70 < len(hit) < 130  # 100 +- 3.5 deviations
    assert float(hit.min()) > ERASE_AREA[0] * 0.8  # sides are whole pixels
    assert float(hit.max()) < ERASE_AREA[1] * 1.1
    assert float(hit.mean()) == pytest.approx(sum(ERASE_AREA) / 2, abs=0.04)
    noise = images[erased[:, None].expand(-1, 3, -1, -1)]
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)


def test_what_is_erased_is_a_rectangle():
    images = random_erase(torch.zeros(40, 3, 32, 32), KEYS[:40], 1.0, seed=0)
    for image in images:
        ys, xs = torch.nonzero(image[0], as_tuple=True)
        assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)


def test_erased_rectangles_have_timms_shapes():
    ratios = []
    for image in random_erase(torch.zeros(400, 3, 64, 64), KEYS, 1.0, seed=0):
        ys, xs = torch.nonzero(image[0], as_tuple=True)
        ratios.append(float((ys.max() - ys.min() + 1) / (xs.max() - xs.min() + 1)))
    assert min(ratios) == pytest.approx(0.3, abs=0.06)
    assert max(ratios) == pytest.approx(1 / 0.3, abs=0.6)
    assert np.log(ratios).mean() == pytest.approx(
        0.0, abs=0.15
    )  # 4.5 deviations of a uniform logarithm


def test_erasing_belongs_to_the_key_and_not_to_the_batch():
    whole = random_erase(torch.zeros(6, 3, 32, 32), KEYS[:6], 0.7, seed=1)
    turned = random_erase(torch.zeros(3, 3, 32, 32), KEYS[5:2:-1], 0.7, seed=1)
    assert torch.equal(turned, whole[[5, 4, 3]])
    assert not torch.equal(whole, random_erase(torch.zeros(6, 3, 32, 32), KEYS[:6], 0.7, seed=2))


def test_no_erasing_at_probability_zero(noise):
    images = noise(2, 3, 8, 8)
    assert torch.equal(random_erase(images.clone(), KEYS[:2], 0.0, seed=0), images)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_partners_are_neighbors(count):
    expected = {0: [], 1: [0], 2: [1, 0], 5: [1, 0, 3, 2, 4], 8: [1, 0, 3, 2, 5, 4, 7, 6]}[count]
    assert pair_indices(range(count)).tolist() == expected


def test_an_image_that_cannot_be_read_leaves_its_partner_alone_and_the_others_as_they_are():
    assert pair_indices([0, 2, 3, 4, 5]).tolist() == [0, 2, 1, 4, 3]  # slot 1 is missing


@given(present=st.sets(st.integers(0, 31)), size=st.sampled_from([2, 4, 8, 16]))
def test_who_meets_whom_does_not_depend_on_how_a_batch_is_cut(present, size):
    slots = sorted(present)
    whole = {slots[i]: slots[j] for i, j in enumerate(pair_indices(slots).tolist())}
    cut = {}
    for start in range(0, 32, size):
        part = [slot for slot in slots if start <= slot < start + size]
        cut |= {part[i]: part[j] for i, j in enumerate(pair_indices(part).tolist())}
    assert cut == whole


def test_mixup_by_hand():
    images = torch.tensor([1.0, 3.0, 10.0]).view(3, 1, 1, 1)
    mixed, shares = (
        mix_images(images, Mix(0.75, None), OF_3),
        mix_targets(torch.eye(3), Mix(0.75, None), OF_3),
    )
    assert mixed.flatten().tolist() == pytest.approx(
        [1.5, 2.5, 10.0]
    )  # an odd last image stays alone
    torch.testing.assert_close(
        shares, torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    )


def test_cutmix_by_hand():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4).clone()
    mix = Mix(14 / 16, (0, 1, 2, 4))
    mixed, shares = mix_images(images, mix, OF_2), mix_targets(torch.eye(2), mix, OF_2)
    assert mixed[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(shares, torch.tensor([[0.875, 0.125], [0.125, 0.875]]))
    assert images[0].sum() == 0  # the batch that came in is untouched


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_two_images_equals_timms(mixup, cutmix, noise, monkeypatch):
    """timm flips the batch, we swap neighbors: the same for two images."""
    images, labels = noise(2, 3, 16, 16), torch.tensor([1, 3])
    import timm.data.mixup as module

    boxes = []
    original = module.cutmix_bbox_and_lam

    def remember(*args, **kwargs):
        boxes.append(original(*args, **kwargs))
        return boxes[-1]

    monkeypatch.setattr(module, "cutmix_bbox_and_lam", remember)
    with rng.scope(3):
        mixer = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.1, num_classes=5)
        theirs, their_targets = mixer(images.clone(), labels)
    if cutmix:
        (top, bottom, left, right), share = boxes[0]
        mix = Mix(float(share), (int(top), int(bottom), int(left), int(right)))
    else:
        with rng.scope(3):
            np.random.rand()  # whether to mix
            mix = Mix(float(np.random.beta(mixup, mixup)), None)
    ours, targets = (
        mix_images(images, mix, OF_2),
        mix_targets(smooth_labels(labels, 5, 0.1), mix, OF_2),
    )
    assert 0.01 < mix.lam < 0.99
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(targets, their_targets)


@given(count=st.integers(2, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_mixed_words_stay_distributions(count, share, seed):
    words = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).softmax(1)
    mixed = mix_targets(words, Mix(share, None), pair_indices(range(count)))
    torch.testing.assert_close(mixed.sum(1), torch.ones(count))
    assert float(mixed.min()) >= 0


def test_a_teachers_words_are_mixed_as_the_targets_are(noise):
    """Mixing what is said of two images is linear, so of words that are the targets it gives the mixed targets."""
    targets, words, mix = (
        noise(4, 3).softmax(1),
        noise(4, 3, seed=1).softmax(1),
        Mix(0.3, (0, 4, 0, 4)),
    )
    other = pair_indices(range(4))
    both = mix_targets((targets + words) / 2, mix, other)
    torch.testing.assert_close(
        both, (mix_targets(targets, mix, other) + mix_targets(words, mix, other)) / 2
    )


def test_one_image_and_no_mix_are_left_alone(noise):
    one, two, alone = noise(1, 3, 4, 4), noise(2, 3, 4, 4), pair_indices([7])
    torch.testing.assert_close(mix_images(one, Mix(0.5, None), alone), one)
    torch.testing.assert_close(mix_targets(one, Mix(0.5, None), alone), one)
    assert mix_images(two, None, OF_2) is two
    assert mix_targets(two, None, OF_2) is two


@given(size=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_box_lies_inside_and_the_share_is_what_is_left(size, share, seed):
    mix = rand_bbox(size, share, rng.generator(seed))
    top, bottom, left, right = mix.bbox
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left) / size**2)
    assert 1 - mix.lam <= 1 - share + 1e-9  # clipped at the border, never larger


def test_mixing_happens_as_often_as_the_paper_says():
    mixes = [sample_mixup(PAPER.augment, 224, 0, step) for step in range(2000)]
    assert all(m is not None for m in mixes)
    cuts = sum(m.bbox is not None for m in mixes)
    assert 900 < cuts < 1100  # one half, 4.5 deviations
    shares = np.array([m.lam for m in mixes if m.bbox is None])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)  # of Beta(0.8, 0.8)


def test_mix_probability_and_kinds():
    half = [sample_mixup(mixing(mixup=0.8, mixup_prob=0.5), 32, 0, s) for s in range(1000)]
    assert 420 < sum(m is not None for m in half) < 580
    assert all(m.bbox is None for m in half if m)
    assert all(sample_mixup(mixing(cutmix=1.0), 32, 0, s).bbox is not None for s in range(50))
    assert sample_mixup(mixing(), 32, 0, 0) is None


def test_mix_is_a_function_of_seed_and_step():
    def draw(seed: int, step: int) -> Mix | None:
        return sample_mixup(PAPER.augment, 64, seed, step)

    assert draw(1, 5) == draw(1, 5)
    assert draw(1, 5) != draw(1, 6)
    assert draw(1, 5) != draw(2, 5)
