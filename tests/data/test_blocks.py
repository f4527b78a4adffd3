"""The blocks that images are read with are numbered through subsets and joined data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.subsets import JoinedDataset, join, select
from tests.data.block_images import make_block_images


def test_a_subset_has_the_blocks_of_its_images():
    part = select(make_block_images([0, 1] * 6, block_size=4), [0, 5, 11])
    assert part.blocks is not None
    assert part.blocks.tolist() == [0, 1, 2]
    assert part.num_cached_blocks == 4


def test_joined_blocks_have_distinct_numbers_and_images_that_are_read_alone_have_none():
    first = make_block_images([0, 1] * 3, block_size=4, num_cached=7)
    alone = ArrayDataset(first.images[:2], first.labels[:2], first.class_names, "alone")
    joined = join([first, alone, replace(first, num_cached=3)])
    assert joined.blocks is not None
    assert joined.blocks.tolist() == [0, 0, 0, 0, 1, 1, -1, -1, 2, 2, 2, 2, 3, 3]
    assert joined.num_cached_blocks == 3
    assert join([alone, alone]).blocks is None


def test_joined_data_and_subsets_start_reading_the_right_images():
    started: list[tuple[str, list[int]]] = []

    class Remote(ArrayDataset):
        def prefetch(self, indices):
            started.append((self.title, list(indices)))

    images = make_block_images([0, 1, 0], block_size=1)
    parts = [Remote(images.images, images.labels, images.class_names, name) for name in "ab"]
    joined = JoinedDataset(
        tuple(parts), np.tile(images.labels, 2), images.class_names, np.array([3, 6])
    )
    select(joined, [5, 0, 2]).prefetch([0, 2])
    assert started == [("a", [2]), ("b", [2])]
