"""How well an order mixes the classes: how many of them the images of a batch have."""

from __future__ import annotations

import numpy as np

from deitctl.data.dataset import Labels
from deitctl.data.epoch_steps import batch_start, steps_per_epoch
from deitctl.data.samplers import EpochOrder

NUM_BATCHES = 32
"""That are looked at, spread over the epoch."""


def count_batch_classes(labels: Labels, order: EpochOrder, batch_size: int) -> float:
    """Return how many classes the images of a batch have, on average of some batches of an epoch.

    Args:
        labels: of the training images, [N] or [N,K].
        order: of the epoch.
        batch_size: images of the largest batch.
    """
    steps, counts = steps_per_epoch(len(order), batch_size), []
    for step in np.unique(np.linspace(0, steps - 1, NUM_BATCHES).astype(int)).tolist():
        start, stop = (batch_start(len(order), batch_size, n) for n in (step, step + 1))
        in_batch = labels[[key.index for key in order[start:stop]]]
        if labels.ndim == 2:
            counts.append(int((in_batch > 0).any(axis=0).sum()))
        else:
            counts.append(len(np.unique(in_batch[in_batch >= 0])))
    return float(np.mean(counts))
