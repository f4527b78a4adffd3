"""How windows of blocks mix classes, at the size of ImageNet: `python benchmarks/mixing.py`.

1,281,167 labels of 1,000 classes in 1,281 shards, once sorted by class as folders are listed, once shuffled when
written.
Of each window: the classes of a batch of 1,024 on average and in the worst of the batches looked at, the shards that
the images of a batch are in, those that are begun and not done, and the time in which the order is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deitctl.data.epoch_steps import batch_start, steps_per_epoch
from deitctl.data.samplers import EpochOrder
from deitctl.data.windows import Windows

NUM_IMAGES, NUM_CLASSES, NUM_SHARDS, BATCH = 1_281_167, 1000, 1281, 1024
WINDOWS = (16, 64, 256, 512, 0)
NUM_BATCHES = 100


def main() -> None:
    """Print a table."""
    blocks = (np.arange(NUM_IMAGES) * NUM_SHARDS // NUM_IMAGES).astype(np.int32)
    by_class = np.arange(NUM_IMAGES) * NUM_CLASSES // NUM_IMAGES
    shuffled = np.random.default_rng(0).permutation(by_class)
    print(
        "| window, shards | classes, sorted | least | classes, shuffled | least | shards a batch | open | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in WINDOWS:
        start = time.process_time()
        windows = Windows(blocks, size) if size else None
        order = EpochOrder(NUM_IMAGES, seed=0, epoch=0, windows=windows)
        seconds = time.process_time() - start
        batches = list(iterate_batches(order))
        cells = [f"{size or 'all'}"]
        for labels in (by_class, shuffled):
            counts = [len(np.unique(labels[batch])) for batch in batches]
            cells += [f"{np.mean(counts):.0f}", f"{min(counts)}"]
        cells.append(f"{np.mean([len(np.unique(blocks[batch])) for batch in batches]):.0f}")
        cells += [f"{count_open(blocks[order._order])}", f"{seconds:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def iterate_batches(order: EpochOrder) -> Iterator[NDArray[np.int64]]:
    """Yield the images of some batches, spread over an epoch."""
    steps = steps_per_epoch(len(order), BATCH)
    for step in np.linspace(0, steps - 1, NUM_BATCHES).astype(int).tolist():
        start, stop = (batch_start(len(order), BATCH, n) for n in (step, step + 1))
        yield np.array([key.index for key in order[start:stop]])


def count_open(blocks: NDArray[np.int32]) -> int:
    """Return the most blocks that are begun and not done at a place of an order."""
    places = np.arange(len(blocks))
    first, last = np.full(NUM_SHARDS, len(blocks)), np.zeros(NUM_SHARDS, np.int64)
    np.minimum.at(first, blocks, places)
    np.maximum.at(last, blocks, places)
    changes = np.zeros(len(blocks) + 1, np.int64)
    np.add.at(changes, first, 1)
    np.add.at(changes, last + 1, -1)
    return int(changes.cumsum().max())


if __name__ == "__main__":
    main()
