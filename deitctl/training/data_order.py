"""The order in which a run reads its images: random over all, or by windows of blocks; and how well that mixes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import choose_draws, count_draws
from deitctl.data.epoch_steps import fit_batch_size
from deitctl.data.mixing import count_batch_classes
from deitctl.data.readers.hub_address import is_hub
from deitctl.data.samplers import EpochOrder
from deitctl.data.stores.address import is_remote
from deitctl.data.unlabeled import find_labeled
from deitctl.data.windows import Windows
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter

MIN_BLOCKS = 64
MIN_IMAGES = 65_536
"""Of a window: as many as fit into the cache, up to what both of these need."""
CACHE_SHARE = 0.75
"""Of the blocks in the cache that a window may have: the next are read meanwhile."""
WELL_MIXED = 0.8
"""Share of a random order's classes in a batch below which windows are warned of."""
HARDLY_LESS = 0.9
"""That share, of the window that is named in their place."""


@dataclass(frozen=True)
class OrderPlan:
    """The order of images that are read by blocks."""

    data_order: str
    """`window`, or `full` where a random order over all images was named."""
    window: int
    """Blocks that are mixed at a time; 0 for a full order."""
    num_blocks: int
    """Blocks that the training images are read with: row groups, or whole remote shards."""
    num_cached_blocks: int
    """Blocks that the cache of this machine holds."""
    classes_per_batch: float
    """Classes that the images of a batch have, on average."""
    classes_shuffled: float
    """The same in a random order over all images."""


def settle_order(config: TrainConfig, train: ImageDataset) -> TrainConfig:
    """Return the configuration with the order of its images, which is never auto, and its window.

    Raises:
        ConfigError: a window of data whose images are read one by one.
    """
    blocks = train.blocks
    if blocks is None:
        if config.data_order == "window" or config.window:
            named = "--data-order window" if config.data_order == "window" else "--window"
            raise ConfigError(
                f"{named} is for images that are read by blocks, and those of {config.data} are read one by one.",
                f"Leave it out: {_describe_reads(config.data)}.",
            )
        return replace(config, data_order="full")
    num_blocks = _count_blocks(blocks)
    is_cached = num_blocks <= train.num_cached_blocks
    if config.data_order == "full" or (
        config.data_order == "auto" and not config.window and is_cached
    ):
        return replace(config, data_order="full")
    num_cached, is_labeled = train.num_cached_blocks, find_labeled(train.labels)
    if not is_labeled.all() and Windows(blocks, 2).choose_stretch(is_labeled) is None:
        num_cached //= 2  # each of both kinds has a window
    size = config.window or _choose_window(len(blocks), num_blocks, num_cached)
    return replace(config, data_order="window", window=size)


def _describe_reads(data: str) -> str:
    """Return what each image costs that is read by itself."""
    if is_remote(data) and not is_hub(data):
        return "in any order each is a request to its store, or in a cache that holds them all"
    return "in any order each is a read of its own file or bytes"


def _choose_window(num_images: int, num_blocks: int, num_cached: int) -> int:
    enough = max(MIN_BLOCKS, -(-MIN_IMAGES * num_blocks // num_images))
    return max(1, min(enough, int(CACHE_SHARE * num_cached), num_blocks))


def make_windows(config: TrainConfig, train: ImageDataset) -> Windows | None:
    """Return the windows of a run's order; None for a random order over all images.

    Raises:
        DataError: the run began in an order of blocks, and the data has none now.
    """
    if config.data_order != "window":
        return None
    blocks = train.blocks
    if blocks is None:
        raise DataError(
            f"The run reads its images in an order of blocks, and those of {config.data} are in none.",
            "Name the data as it was: row groups or remote shards; or start a new run.",
        )
    return Windows(blocks, config.window)


def note_order(config: TrainConfig, train: ImageDataset, reporter: Reporter) -> OrderPlan | None:
    """Report the order of images that are read by blocks, in a line: a warning where it hardly mixes the
    classes, or reads blocks again and again.

    Returns:
        What it is; None where images are read one by one, or all blocks are at hand.
    """
    blocks, windows = train.blocks, make_windows(config, train)
    if blocks is None:
        return None
    num_blocks, num_cached = _count_blocks(blocks), train.num_cached_blocks
    if windows is None and num_blocks <= num_cached:
        return None
    shuffled = _count_classes(config, train, None)
    mixed = shuffled if windows is None else _count_classes(config, train, windows)
    if windows is None:
        reporter.warn(
            f"A random order over all images of {config.data} reads a block again for almost every image: the "
            f"cache holds {num_cached:,} of its {num_blocks:,} blocks. --data-order window reads each once an "
            "epoch; a larger --cache-size may hold all."
        )
    elif mixed >= WELL_MIXED * shuffled:
        reporter.note(
            f"{config.data} is read by windows of {min(config.window, num_blocks):,} of {num_blocks:,} blocks: "
            f"a batch has {mixed:,.0f} classes, {shuffled:,.0f} in a random order over all images."
        )
    else:
        _warn_of_sorted(config, train, windows, (mixed, shuffled), reporter)
    return OrderPlan(
        config.data_order,
        min(config.window, num_blocks),
        num_blocks,
        num_cached,
        round(mixed, 1),
        round(shuffled, 1),
    )


def _warn_of_sorted(
    config: TrainConfig,
    train: ImageDataset,
    windows: Windows,
    classes: tuple[float, float],
    reporter: Reporter,
) -> None:
    """Warn of windows in which a batch has few of the classes, and name one that has almost all."""
    mixed, shuffled = classes
    num_blocks, size = _count_blocks(windows.blocks), windows.size
    while size < num_blocks:
        size = min(2 * size, num_blocks)
        wider = Windows(windows.blocks, size)
        if _count_classes(config, train, wider) >= HARDLY_LESS * shuffled:
            break
    factor = size / max(1, train.num_cached_blocks)
    cache = f" with {factor:.1f} times the --cache-size" if factor > 1 else ""
    data = shlex.quote(config.data)
    reporter.warn(
        f"{config.data} is sorted by class: a batch has {mixed:,.0f} classes in windows of {windows.size:,} of "
        f"{num_blocks:,} blocks, {shuffled:,.0f} in a random order over all images. Use --window {size}{cache}, or "
        f"write the images anew in random order: deitctl pack {data} OUT --shuffle"
    )


def _count_blocks(blocks: NDArray[np.int32]) -> int:
    return len(np.unique(blocks[blocks >= 0]))


def _count_classes(config: TrainConfig, train: ImageDataset, windows: Windows | None) -> float:
    """Return the classes of a batch in the first epoch of a run, if it is ordered by these windows."""
    recipe, count = config.recipe, count_draws(train)
    order = EpochOrder(
        count,
        seed=config.seed,
        epoch=0,
        repeats=recipe.augment.repeated_aug,
        draws=choose_draws(train, recipe.sampling),
        windows=windows,
    )
    return count_batch_classes(train.labels, order, fit_batch_size(count, recipe.batch_size))
