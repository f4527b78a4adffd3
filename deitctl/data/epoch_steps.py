"""The division of an epoch into steps: as few as hold all its images in whole pairs, of almost equal size."""

from __future__ import annotations


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in an epoch over `count` images.

    The fewest that hold all images in whole pairs; an odd `batch_size` is rounded up to one.
    """
    return -(-_count_pairs(count) // _count_pairs(batch_size))


def batch_start(count: int, batch_size: int, number: int) -> int:
    """Return the place in an epoch's order at which its batch `number` begins."""
    # A full batch after the other would leave a rest, of one image at worst: noise as a gradient,
    # and an error in a batch norm. Dropping it, as DeiT does, leaves out up to a batch of images,
    # much of a small data set. Mixing pairs neighbors, so batches begin at even places.
    steps = steps_per_epoch(count, batch_size)
    return min(count, 2 * (_count_pairs(count) * number // steps))


def fit_batch_size(count: int, batch_size: int) -> int:
    """Return the images of the largest batch that `batch_size` comes to.

    Named in its place, it gives the same batches.
    """
    pairs, steps = _count_pairs(count), steps_per_epoch(count, batch_size)
    last_is_largest = steps == 1 or pairs % steps == 1  # all others have a pair less
    return 2 * -(-pairs // steps) - (count % 2 if last_is_largest else 0)


def _count_pairs(count: int) -> int:
    return -(-count // 2)
