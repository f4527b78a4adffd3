"""An image's side of the split depends on its name: adding images moves none into validation."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.dataset import FileDataset
from deitctl.data.splits import HeldOutSplit, hash_paths, hold_out, list_relative_paths

NAMES = st.integers(0, 400)
IMAGES = st.dictionaries(NAMES, st.integers(0, 4), max_size=60)
"""Class of each image by name."""


def make_dataset(images: dict[int, int]) -> FileDataset:
    paths = tuple(f"/data/c{label}/{name}.jpg" for name, label in images.items())
    labels = np.array(list(images.values()), np.int64)
    return FileDataset(paths, labels, tuple(f"c{i}" for i in range(5)), "/data/")


def name_images(split: HeldOutSplit) -> tuple[set[str], set[str]]:
    train, val = (
        {part.name(i) for i in range(len(part.labels))} for part in (split.train, split.val)
    )
    return train, val


def find_tiny_classes(dataset: FileDataset, seed: int) -> set[int]:
    """Classes of which everything is below the threshold, and those of one image."""
    hashes = hash_paths(list_relative_paths(dataset), seed)
    return {
        label
        for label in range(5)
        if (hashes[dataset.labels == label] < 0.2).all() or (dataset.labels == label).sum() == 1
    }


@given(IMAGES, st.integers(0, 9))
def test_every_class_of_two_images_has_one_on_either_side(images, seed):
    dataset = make_dataset(images)
    split = hold_out(dataset, 0.2, seed)
    assert sorted([*split.train.indices, *split.val.indices]) == list(range(len(images)))
    assert split.train.class_names == split.val.class_names == dataset.class_names
    for label, count in Counter(images.values()).items():
        assert (split.train.labels == label).any()
        assert (split.val.labels == label).any() == (count > 1)


@given(IMAGES, IMAGES, st.integers(0, 9))
def test_added_images_move_none_from_training_to_validation(images, added, seed):
    before, after = make_dataset(images), make_dataset({**added, **images})
    trained, _ = name_images(hold_out(before, 0.2, seed))
    _, held = name_images(hold_out(after, 0.2, seed))
    moved = [int(name.split("/")[2][1:]) for name in trained & held]
    # at most one image of a class so small that all of it would have been held out
    assert set(moved) <= find_tiny_classes(before, seed)
    assert max(Counter(moved).values(), default=0) <= 1
