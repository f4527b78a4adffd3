"""The mean and deviation of each band, measured on training images: bands have no ImageNet's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from deitctl import rng
from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.models.model_config import ModelConfig
from deitctl.threads import DaemonThreads

NUM_MEASURED = 512
"""Training images at most that are measured."""
MAX_VALUES = 2**29
"""Of these images in all, after which no more are read."""
MIN_STD = 1 / 255
"""Of a band that is the same everywhere, which would be divided by 0."""
DIGITS = 6


class ChannelStats(NamedTuple):
    """Of the values of each band, in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure_channels(train: ImageDataset, seed: int, reporter: Reporter) -> ChannelStats:
    """Measure mean and deviation of each band over the pixels of a sample of training images.

    A function of the images and the seed: sums are of integers, so neither threads nor processes matter.

    Args:
        train: training images, read by their bands.
        seed: of the sample.
        reporter: receives what was measured, in a line.

    Raises:
        DataError: none of the images can be read.
    """
    count = len(train.labels)
    order = rng.generator(seed, "channels").permutation(count)[:NUM_MEASURED].tolist()
    sums, squares = np.zeros(train.bands, np.int64), np.zeros(train.bands, np.int64)
    num_pixels = num_images = 0
    with DaemonThreads(count_cores()) as threads:
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            for measured in threads.map(lambda index: _sum_channels(train, index), batch):
                if measured is not None:
                    sums, squares = sums + measured[0], squares + measured[1]
                    num_pixels, num_images = num_pixels + measured[2], num_images + 1
            if num_pixels * train.bands > MAX_VALUES:
                break
    if not num_images:
        raise DataError(f"None of {len(order)} training images can be read to measure their bands.")
    mean = sums / num_pixels / 255
    std = np.maximum(np.sqrt(np.maximum(squares / num_pixels / 255**2 - mean**2, 0)), MIN_STD)
    stats = ChannelStats(_round(mean), _round(std))
    reporter.note(
        f"Bands are normalized as measured on {num_images:,} of {count:,} training images: mean "
        f"{_describe(stats.mean)}, std {_describe(stats.std)}."
    )
    return stats


def _sum_channels(dataset: ImageDataset, index: int) -> tuple[Any, Any, int] | None:
    """Return the sum of each band's values, that of their squares, and the pixels; None if unreadable."""
    try:
        pixels = np.asarray(dataset.read(index))
    except DataError:
        return None
    # of 256 counts, in integers: the same however the work is divided
    counts = np.stack(
        [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(dataset.bands)]
    ).astype(np.int64)
    levels = np.arange(256, dtype=np.int64)
    return counts @ levels, counts @ levels**2, pixels.shape[0] * pixels.shape[1]


def _round(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), DIGITS) for value in values)


def _describe(values: Sequence[float]) -> str:
    text = ", ".join(f"{value:.3g}" for value in values[:6])
    return text + (" ..." if len(values) > 6 else "")


def set_channels(model_config: ModelConfig, stats: ChannelStats) -> ModelConfig:
    """Return a model's config that normalizes by these."""
    preprocessing = replace(model_config.preprocessing, mean=stats.mean, std=stats.std)
    return replace(model_config, preprocessing=preprocessing)


def write_channels(model_config: ModelConfig) -> str:
    """Return the normalization of a model of bands as text that `parse_channels` reads back."""
    pre = model_config.preprocessing
    return json.dumps([pre.mean, pre.std])


def parse_channels(text: str) -> ChannelStats | None:
    """Return what `write_channels` wrote; None for anything else."""
    try:
        mean, std = json.loads(text)
        return ChannelStats(tuple(map(float, mean)), tuple(map(float, std)))
    except (ValueError, TypeError):
        return None
