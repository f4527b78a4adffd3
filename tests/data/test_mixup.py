"""Mixup and cutmix by hand, by statistics and against timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import Mixup

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.mixup import Mix, mix_images, mix_targets, pair_indices, rand_bbox, sample_mixup
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import PAPER
from deitctl.training.objective import smooth_labels

HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KEYS = [SampleKey(0, i, 0) for i in range(400)]
OF_2, OF_3 = pair_indices(range(2)), pair_indices(range(3))


def mixing(**values: float) -> AugmentConfig:
    return AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, **values)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_pairs_are_neighbors(count):
    expected = {0: [], 1: [0], 2: [1, 0], 5: [1, 0, 3, 2, 4], 8: [1, 0, 3, 2, 5, 4, 7, 6]}[count]
    assert pair_indices(range(count)).tolist() == expected


def test_an_unreadable_image_leaves_other_pairs_as_they_are():
    assert pair_indices([0, 2, 3, 4, 5]).tolist() == [0, 2, 1, 4, 3]  # slot 1 is missing


@given(present=st.sets(st.integers(0, 31)), size=st.sampled_from([2, 4, 8, 16]))
def test_pairs_do_not_depend_on_the_micro_batch_size(present, size):
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
    # an odd last image stays alone
    assert mixed.flatten().tolist() == pytest.approx([1.5, 2.5, 10.0])
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
def test_mixed_targets_stay_distributions(count, share, seed):
    words = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).softmax(1)
    mixed = mix_targets(words, Mix(share, None), pair_indices(range(count)))
    torch.testing.assert_close(mixed.sum(1), torch.ones(count))
    assert float(mixed.min()) >= 0


def test_teacher_targets_are_mixed_as_labels_are(noise):
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


def test_a_single_image_and_an_unmixed_batch_are_unchanged(noise):
    one, two, alone = noise(1, 3, 4, 4), noise(2, 3, 4, 4), pair_indices([7])
    torch.testing.assert_close(mix_images(one, Mix(0.5, None), alone), one)
    torch.testing.assert_close(mix_targets(one, Mix(0.5, None), alone), one)
    assert mix_images(two, None, OF_2) is two
    assert mix_targets(two, None, OF_2) is two


@given(size=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_bbox_lies_inside_and_lam_is_corrected(size, share, seed):
    mix = rand_bbox(size, share, rng.generator(seed))
    top, bottom, left, right = mix.bbox
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left) / size**2)
    assert 1 - mix.lam <= 1 - share + 1e-9  # clipped at the border, never larger


def test_mixing_has_the_papers_probability():
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
