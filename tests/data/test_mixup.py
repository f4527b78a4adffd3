"""Mixup and cutmix by hand, by statistics and against timm."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import Mixup

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data import batch_transforms
from deitctl.data.batch_table import (
    PARTNER,
    BatchTable,
    Parts,
    TableDraws,
    draw_table,
    fill_mixing,
    list_parts,
)
from deitctl.data.mixup import (
    Mix,
    MixGroup,
    pair_offsets,
    rand_bbox,
    sample_mixup,
)
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import PAPER, PAPER_384
from deitctl.training.losses import make_targets, smooth_labels

HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KEYS = [SampleKey(0, i, 0) for i in range(400)]


def pair_indices(slots: Sequence[int]) -> torch.Tensor:
    """Return the row of each image's partner."""
    return torch.arange(len(slots)) + torch.from_numpy(pair_offsets(slots))


def make_table(groups: Sequence[MixGroup], partners: torch.Tensor) -> tuple[BatchTable, Parts]:
    """Return the table of images that are mixed and nothing else."""
    augment, count = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0), len(partners)
    keys = [SampleKey(0, index, 0) for index in range(count)]
    table = draw_table(keys, augment, 8, TableDraws(0, uses_affine=False))
    table = fill_mixing(table, groups, range(count))
    table.values[:, PARTNER] = (partners - torch.arange(count)).float()
    return table, list_parts(augment, groups, uses_affine=False)


def mix_images(
    images: torch.Tensor, groups: Sequence[MixGroup], partners: torch.Tensor
) -> torch.Tensor:
    return batch_transforms.mix_images(images, *make_table(groups, partners))


def mix_targets(
    targets: torch.Tensor, groups: Sequence[MixGroup], partners: torch.Tensor
) -> torch.Tensor:
    return batch_transforms.mix_targets(targets, *make_table(groups, partners))


OF_2, OF_3 = pair_indices(range(2)), pair_indices(range(3))


def mixing(**values: float) -> AugmentConfig:
    return AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, **values)


def together(count: int, lam: float, bbox: tuple[int, int, int, int] | None = None):
    """One group of all images."""
    return [MixGroup(slice(0, count), Mix(lam, bbox))]


def draw(step: int, *, config: AugmentConfig = PAPER.augment, img_size=32, seed=0) -> Mix | None:
    """The mixing of a step's first group."""
    (group,) = sample_mixup(config, img_size, seed, step, range(2))
    return group.mix


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
    groups = together(3, 0.75)
    mixed, shares = mix_images(images, groups, OF_3), mix_targets(torch.eye(3), groups, OF_3)
    # an odd last image stays alone
    assert mixed.flatten().tolist() == pytest.approx([1.5, 2.5, 10.0])
    torch.testing.assert_close(
        shares, torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    )


def test_cutmix_by_hand():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4).clone()
    groups = together(2, 14 / 16, (0, 1, 2, 4))
    mixed, shares = mix_images(images, groups, OF_2), mix_targets(torch.eye(2), groups, OF_2)
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
    groups = [MixGroup(slice(0, 2), mix)]
    ours = mix_images(images, groups, OF_2)
    targets = smooth_labels(mix_targets(make_targets(labels, 5), groups, OF_2), 0.1)
    assert 0.01 < mix.lam < 0.99
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(targets, their_targets)


@given(count=st.integers(2, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_mixed_targets_stay_distributions(count, share, seed):
    words = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).softmax(1)
    mixed = mix_targets(words, together(count, share), pair_indices(range(count)))
    torch.testing.assert_close(mixed.sum(1), torch.ones(count))
    assert float(mixed.min()) >= 0


def test_teacher_targets_are_mixed_as_labels_are(noise):
    """Mixing what is said of two images is linear, so of words that are the targets it gives the mixed targets."""
    targets, words = noise(4, 3).softmax(1), noise(4, 3, seed=1).softmax(1)
    mix = together(4, 0.3, (0, 4, 0, 4))
    other = pair_indices(range(4))
    both = mix_targets((targets + words) / 2, mix, other)
    torch.testing.assert_close(
        both, (mix_targets(targets, mix, other) + mix_targets(words, mix, other)) / 2
    )


def test_a_single_image_and_an_unmixed_batch_are_unchanged(noise):
    one, two, alone = noise(1, 3, 4, 4), noise(2, 3, 4, 4), pair_indices([7])
    torch.testing.assert_close(mix_images(one, together(1, 0.5), alone), one)
    torch.testing.assert_close(mix_targets(one, together(1, 0.5), alone), one)
    for unmixed in ([MixGroup(slice(0, 2), None)], []):
        assert mix_images(two, unmixed, OF_2) is two
        assert mix_targets(two, unmixed, OF_2) is two


def test_each_group_is_mixed_by_its_own_draw_by_hand():
    """Mixup, cutmix and nothing within one batch; a border between groups is none between partners."""
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2).clone()
    groups = [
        MixGroup(slice(0, 2), Mix(0.75, None)),
        MixGroup(slice(2, 4), Mix(0.5, (0, 2, 0, 1))),
        MixGroup(slice(4, 6), None),
    ]
    partners = pair_indices(range(6))
    mixed, targets = mix_images(images, groups, partners), torch.eye(6)
    assert mixed[:2].unique(dim=0).flatten(1)[:, 0].tolist() == [0.25, 0.75]
    assert mixed[2:4, 0].tolist() == [[[3, 2], [3, 2]], [[2, 3], [2, 3]]]
    assert torch.equal(mixed[4:], images[4:])
    expected = torch.eye(6)
    expected[:2, :2] = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    expected[2:4, 2:4] = 0.5
    torch.testing.assert_close(mix_targets(targets, groups, partners), expected)


def test_a_batch_of_one_group_is_mixed_as_a_whole_to_the_bit(noise):
    """The formulas over all images at once, as they stand in the papers."""
    images, partners = noise(6, 3, 8, 8), pair_indices(range(6))
    whole = images * 0.3 + images[partners] * (1 - 0.3)
    assert torch.equal(mix_images(images, together(6, 0.3), partners), whole)
    box = torch.zeros(8, 8, dtype=torch.bool)
    box[1:5, 2:8] = True
    cut = torch.where(box, images[partners], images)
    assert torch.equal(mix_images(images, together(6, 0.3, (1, 5, 2, 8)), partners), cut)
    targets = images.flatten(1).softmax(1)
    expected = targets * 0.3 + targets[partners] * (1 - 0.3)
    assert torch.equal(mix_targets(targets, together(6, 0.3), partners), expected)


@given(
    present=st.sets(st.integers(0, 40), min_size=1),
    cuts=st.sets(st.integers(1, 20)),
    size=st.sampled_from([2, 6, 7, 64]),
    step=st.integers(0, 20),
)
def test_a_part_of_a_batch_is_mixed_as_within_the_whole_to_the_bit(present, cuts, size, step):
    """Processes and micro-batches take parts: any that hold whole pairs, with slots missing too."""
    config = mixing(mixup=0.8, cutmix=1.0, mixup_prob=0.7, mixup_group_size=size)
    everything = torch.randn(41, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = everything.flatten(1).softmax(1)

    def mix(slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        groups, partners = sample_mixup(config, 6, 0, step, slots), pair_indices(slots)
        rows = [row for group in groups for row in range(len(slots))[group.rows]]
        assert rows == list(range(len(slots)))
        images, targets = everything[slots], labels[slots]
        return mix_images(images, groups, partners), mix_targets(targets, groups, partners)

    slots = sorted(present)
    bounds = [0, *(2 * cut for cut in sorted(cuts)), 42]
    parts = [
        [slot for slot in slots if start <= slot < stop]
        for start, stop in itertools.pairwise(bounds)
    ]
    mixed = [mix(part) for part in parts if part]
    images, targets = mix(slots)
    assert torch.equal(torch.cat([part for part, _ in mixed]), images)
    assert torch.equal(torch.cat([part for _, part in mixed]), targets)


def test_groups_hold_as_many_neighbors_as_the_authors_processes_had_images():
    for recipe, size in ((PAPER, 64), (PAPER_384, 32)):
        slots = range(recipe.batch_size)
        groups = sample_mixup(recipe.augment, 32, 0, 0, slots)
        assert [len(slots[group.rows]) for group in groups] == [size] * 16
        assert len({group.mix for group in groups}) == 16


def test_sixteen_draws_a_step_spread_a_quarter_as_much_as_one():
    def spread(size: int) -> float:
        config, slots = replace(PAPER.augment, mixup_group_size=size), range(1024)
        means = []
        for step in range(300):
            groups = sample_mixup(config, 224, 0, step, slots)
            shares = [group.mix.lam for group in groups for _ in slots[group.rows]]
            means.append(np.mean(shares))
        return float(np.std(means))

    assert spread(64) / spread(1024) == pytest.approx(1 / 4, rel=0.15)  # 3.5 standard errors


@given(size=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_bbox_lies_inside_and_lam_is_corrected(size, share, seed):
    mix = rand_bbox(size, share, rng.generator(seed))
    top, bottom, left, right = mix.bbox
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left) / size**2)
    assert 1 - mix.lam <= 1 - share + 1e-9  # clipped at the border, never larger


def test_mixing_has_the_papers_probability():
    mixes = [draw(step, img_size=224) for step in range(2000)]
    assert all(m is not None for m in mixes)
    cuts = sum(m.bbox is not None for m in mixes)
    assert 900 < cuts < 1100  # one half, 4.5 deviations
    shares = np.array([m.lam for m in mixes if m.bbox is None])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)  # of Beta(0.8, 0.8)


def test_mix_probability_and_kinds():
    half = [draw(s, config=mixing(mixup=0.8, mixup_prob=0.5)) for s in range(1000)]
    assert 420 < sum(m is not None for m in half) < 580
    assert all(m.bbox is None for m in half if m)
    assert all(draw(s, config=mixing(cutmix=1.0)).bbox is not None for s in range(50))
    assert draw(0, config=mixing()) is None


def test_mix_is_a_function_of_seed_step_and_group():
    assert draw(5, seed=1) == draw(5, seed=1)
    assert draw(5, seed=1) != draw(6, seed=1)
    assert draw(5, seed=1) != draw(5, seed=2)
    first, second = sample_mixup(PAPER.augment, 32, 1, 5, range(128))
    assert first.mix == draw(5, seed=1)
    assert first.mix != second.mix
    assert sample_mixup(PAPER.augment, 32, 1, 5, [70, 71])[0].mix == second.mix
