"""The images of a run: opened, as those that it began with if it goes on, and what it left open settled by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.data.run_data import read_run_data
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.unlabeled import select_labeled
from deitctl.distributed import World
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.paths import write_bytes
from deitctl.settings import write_toml
from deitctl.training.configure import settle_task
from deitctl.training.data_order import settle_order
from deitctl.training.earlier_runs import settle_as
from deitctl.training.extensions import Extensions
from deitctl.training.own_images import require_same_images, warn_of_trained_images
from deitctl.training.pinned_data import pin_data
from deitctl.training.resumption import restore_spelling
from deitctl.training.run_dir import Run

Datasets = tuple[ImageDataset, ImageDataset]  # training and validation images


def open_run_data(
    config: TrainConfig,
    datasets: Datasets | None,
    reporter: Reporter,
    world: World,
    extensions: Extensions,
    *,
    resume: bool,
) -> tuple[TrainConfig, Datasets]:
    """Open the images of a run; collective.

    Args:
        config: of the run, whose folder is there if it is resumed.
        datasets: training and validation images, if they are open already.
        reporter: receives what is to be known of the data.
        world: the processes.
        extensions: what the caller adds.
        resume: whether the run has begun: its images are those that it began with.

    Returns:
        The configuration, with its task, the commits of its data, and the order of its images settled; and the
        images.

    Raises:
        DeitctlError: bad data, or other than the run began with.
    """
    train, val = _open_images(config, datasets, reporter, world, resume=resume)
    config = pin_data(config, world)  # what it is now is what a resumed run trains on
    if config.distill is None:  # a teacher that is trained first, for example
        train = select_labeled(train)
    if resume:
        train, val = restore_spelling(Path(config.output_dir), train, val)
    if train.bands and extensions.augmentation is not None:
        raise ConfigError(
            f"An augmentation of the caller's gets a Pillow image of RGB, and these have {train.bands} bands.",
            "Leave it out.",
        )
    config = settle_task(config, train)
    if not resume or config.data_order == TrainConfig.data_order:
        config = _settle_order(config, train, world, resume=resume)
    train = train.with_augmentation(extensions.augmentation)
    require_same_images(config.data, train, val, world)
    if world.is_main:
        warn_of_trained_images(config, val, reporter)
    return config, (train, val)


def _open_images(
    config: TrainConfig,
    datasets: Datasets | None,
    reporter: Reporter,
    world: World,
    *,
    resume: bool,
) -> Datasets:
    """Return the images of a run; those that it began with if it is resumed."""
    if datasets is not None and config.data.startswith(PREFIX):  # which no command can open again
        return datasets
    root = Path(config.output_dir)
    run_data = read_run_data(root) if resume else None
    if run_data is not None and run_data.rows is not None and run_data.rows.is_held_out:
        datasets = None  # opened as the data is now
    elif Run(root).saved_position() is None:
        run_data = None  # killed before it wrote which images it holds out
    value_range = Run(root).saved_value_range() if run_data is not None else None
    if datasets is not None:
        train, val = datasets
        return (
            datasets
            if value_range is None
            else (train.with_value_range(value_range), val.with_value_range(value_range))
        )
    source = replace(Source.of(config), value_range=value_range or config.value_range)
    return open_for_training(source, reporter=reporter, run=run_data, world=world)


def _settle_order(
    config: TrainConfig, train: ImageDataset, world: World, *, resume: bool
) -> TrainConfig:
    """Return the configuration with the order of its images as the main process's cache has it; collective."""

    def settle() -> TrainConfig:
        if resume and Run(Path(config.output_dir)).saved_position() is not None:
            return config  # of an earlier version, which knew one order
        return settle_order(config, train)

    settled = world.run_on_main(settle)  # elsewhere the cache may be another
    return replace(config, data_order=settled.data_order, window=settled.window)


def store_settled(run: Run, config: TrainConfig) -> None:
    """Write what was settled of a run into its `run.toml`, if that was written before its data was opened.

    Args:
        run: a run without a checkpoint, for example of a sweep.
        config: of the run, as `open_run_data` returns it.
    """
    existing = Run.open(run.root)[1]
    settled = settle_as(existing, config)
    if settled != existing:
        write_bytes(run.config_file, write_toml(settled).encode())
