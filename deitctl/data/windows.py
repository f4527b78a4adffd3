"""The order of images that are read by blocks: blocks in random order, images at random in a window of them.

A random order over all images would read a block for every image of it. Here images come from a window that slides
over the shuffled blocks: a block enters when another is done, so that reading never comes in bursts. Any place of an
epoch is a function of its generator alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Windows:
    """The blocks of a data set, and how many of them are mixed at a time."""

    blocks: NDArray[np.int32]
    """Block of each image, as `ImageDataset.blocks`, [N]."""
    size: int
    """Blocks that are begun and not done at any place of an order by `shuffle`, at most; 2 or more.

    Where images with and without labels are spread in it, up to twice as many.
    """

    @property
    def fingerprint(self) -> str:
        """Hash of which images lie in one block, as the order rests on it."""
        return hashlib.sha256(self.blocks.astype("<i4").tobytes()).hexdigest()[:16]

    def shuffle(
        self, images: NDArray[np.int64] | None, draw: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return an order of images, [n], as places in them.

        Args:
            images: of the data set, some more than once; None: all of it.
            draw: makes the order.
        """
        blocks = self.blocks if images is None else self.blocks[images]
        is_alone = blocks < 0
        present = np.flatnonzero(np.bincount(blocks[~is_alone]))
        num_blocks = len(present)
        if self.size >= num_blocks:
            return draw.permutation(len(blocks))
        ranks = np.zeros(int(present[-1]) + 1, np.float32)
        ranks[present] = draw.permutation(num_blocks)
        keys = draw.random(len(blocks))  # in place from here on, for a data set of 14 million
        places_alone = keys[is_alone] * num_blocks
        keys -= 0.5
        keys *= self.size
        keys += 0.5
        keys += ranks[blocks]
        # Folded at both ends: there half as many blocks, twice as dense, stand for those beyond, so that
        # the first batch is mixed too, and none has to be read twice.
        np.abs(keys, out=keys)
        np.subtract(num_blocks, keys, out=keys)
        np.abs(keys, out=keys)
        np.subtract(num_blocks, keys, out=keys)
        keys[is_alone] = places_alone
        return np.argsort(keys)

    def choose_stretch(self, is_labeled: NDArray[np.bool_]) -> int | None:
        """Return in how many images of the order those with labels are spread; None: in all.

        Spread in all, the images of both kinds move by places of their own: two windows where each kind has its
        own blocks, but windows that drift apart where blocks have both. There it is half a window.
        """
        is_in_block = self.blocks >= 0
        counts = np.bincount(self.blocks[is_in_block])
        labeled = np.bincount(self.blocks[is_in_block & is_labeled], minlength=len(counts))
        num_blocks = int(np.count_nonzero(counts))
        has_both = (labeled > 0) & (labeled < counts)
        shares_blocks = any(
            2 * part[has_both].sum() > part.sum() for part in (labeled, counts - labeled)
        )
        if self.size >= num_blocks or not shares_blocks:
            return None
        return max(2, len(self.blocks) * self.size // (2 * num_blocks))
