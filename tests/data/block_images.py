"""Images that lie in blocks, as those of row groups or whole remote shards do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitctl.data.readers.digits import ArrayDataset


@dataclass(frozen=True)
class BlockImages(ArrayDataset):
    """Gray images in blocks of `block_size`, of which `num_cached` are at hand at once."""

    block_size: int = 1
    num_cached: int = 4

    @property
    def blocks(self) -> NDArray[np.int32]:
        return (np.arange(len(self.labels)) // self.block_size).astype(np.int32)

    @property
    def num_cached_blocks(self) -> int:
        return self.num_cached


def make_block_images(
    labels: list[int], *, block_size: int, num_cached: int = 4, name: str = "made"
) -> BlockImages:
    """Return noise of 8 x 8 pixels under some labels."""
    count = len(labels)
    pixels = np.random.default_rng(count).integers(0, 255, (count, 8, 8)).astype(np.uint8)
    classes = tuple(f"c{label}" for label in range(max(labels) + 1))
    return BlockImages(
        pixels,
        np.array(labels, np.int64),
        classes,
        name,
        block_size=block_size,
        num_cached=num_cached,
    )
