"""How a run goes on from its checkpoint: of the same data and settings as it began with, or not at all."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deitctl.data.labels import name_labels
from deitctl.data.run_data import SPLIT_FILE, SplitRows, read_run_data
from deitctl.data.splits import list_relative_paths, relabel
from deitctl.data.subsets import select, select_extra, select_own
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.data.unlabeled import REST, select_labeled
from deitctl.errors import ConfigError, DataError, DeitctlError, ModelError
from deitctl.models.checkpoint_io import load_model_config
from deitctl.names import canonicalize_name
from deitctl.threads import map_patiently
from deitctl.training.best_weights import keeps_best, load_best
from deitctl.training.build import round_up_to_pairs
from deitctl.training.configure import name_command
from deitctl.training.freezing import thaw_if_due

if TYPE_CHECKING:
    from deitctl.data.dataset import ImageDataset
    from deitctl.training.state import Progress
    from deitctl.training.trainer import Trainer

EPOCHS, RESTARTS, PLANNED = "recipe.epochs", "recipe.restart_epochs", "recipe.planned_epochs"
MAX_NAMED = 3
"""Classes and images that a message names."""


def load_checkpoint(trainer: Trainer) -> None:
    """Load the saved state; a run that was stopped before its first checkpoint starts again.

    Raises:
        ConfigError: run.toml has other settings than the run began with.
        DataError: the images, their labels or what they are for have changed.
        ModelError: the checkpoint is damaged.
    """
    progress, folder = trainer.state.progress, trainer.run.checkpoint
    settings, data_fingerprint = progress.settings, progress.data_fingerprint
    is_saved = folder.exists() or folder.with_name(f"{folder.name}.old").exists()
    if is_saved:

        def require(began: Progress) -> None:
            # Before the tensors, which would not fit for another reason than theirs.
            require_same_settings(trainer, began, settings)
            require_same_data(trainer, began, data_fingerprint)
            thaw_if_due(trainer.state, trainer.context.recipe, began.epoch)

        trainer.state.load(folder, require)
        progress.settings, progress.data_fingerprint = settings, data_fingerprint
        if progress.epoch in trainer.context.recipe.restart_epochs:  # it has got more epochs
            progress.stopped = ""
    steps = trainer.context.steps_per_epoch
    if not 0 <= progress.step - progress.epoch * steps <= steps:
        raise ConfigError(
            f"{trainer.run.root} began with another division of epochs into steps: it is at step "
            f"{progress.step} in epoch {progress.epoch + 1}, and an epoch has {steps} now.",
            f"Start a new run: {name_command(trainer.config)} --config "
            f"{shlex.quote(str(trainer.run.config_file))} --output NEW",
        )
    if (progress.step > progress.epoch * steps) != bool(progress.images_in_epoch):
        raise ModelError(
            f"{folder} contradicts itself: it is at step {progress.step}, after {progress.epoch} epochs of {steps}, "
            f"with {progress.images_in_epoch} images of the next."
        )
    positions = set(trainer.world.all_gather_object((progress.step, progress.epoch)))
    if len(positions) > 1:
        raise DeitctlError(
            f"The processes see different checkpoints of {trainer.run.root}, of steps "
            f"{sorted({step for step, _ in positions})}.",
            "All machines of a run need its folder on a file system that they share.",
        )
    if progress.views_version != VIEWS_VERSION:
        trainer.reporter.warn(
            f"{trainer.run.root} began with another version's training views: what is left of it sees "
            "other crops and colors, so it ends otherwise than it would have."
        )
        progress.views_version = VIEWS_VERSION
    trainer.start_step = progress.step
    trainer.run.cut_log(progress.log_bytes)
    if trainer.config.micro_batch_size:
        progress.micro_batch_size = round_up_to_pairs(trainer.config.micro_batch_size)
    if is_saved and keeps_best(trainer):  # a run that starts again writes over them
        load_best(trainer)
    trainer.start_time = time.monotonic() - progress.seconds
    trainer.world.barrier()


def require_same_settings(trainer: Trainer, then: Progress, now: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the run's settings have been edited since its checkpoint was saved.

    Args:
        trainer: of the run.
        then: of the checkpoint; its settings are empty in those of earlier versions.
        now: of run.toml.
    """
    # What `--more-epochs` does, which a kill may have left without a checkpoint of its own.
    began: dict[str, Any] = then.settings
    phases = [*now[RESTARTS], now[EPOCHS]]
    restarts = began.get(RESTARTS)
    ended = then.epoch if then.stopped else began.get(EPOCHS)
    phases_then = [*(restarts if isinstance(restarts, list) else []), ended]
    if phases[: len(phases_then)] == phases_then and phases == sorted(phases):
        began = {**began, EPOCHS: now[EPOCHS], RESTARTS: now[RESTARTS]}
        planned = began.get(PLANNED) or []
        if len(phases) > len(phases_then) and now[PLANNED][: len(planned)] == planned:
            began[PLANNED] = now[PLANNED]
    changes = [
        f"{name.removeprefix('recipe.')} is {now.get(name, 'not set')}, was {value!s:.100}"
        for name, value in began.items()  # one that it lacks is a later version's, at its default
        if value != now.get(name)
    ]
    if changes:
        run = trainer.run
        raise ConfigError(
            f"{run.config_file} has other settings than {run.root} was trained with: {'; '.join(changes)}.",
            "Set them back, or start a new run with them: "
            f"{name_command(trainer.config)} --config {shlex.quote(str(run.config_file))} --output NEW. "
            "A run can be resumed with other settings of the machine, and made longer (--more-epochs).",
        )


def restore_spelling(
    run: Path, train: ImageDataset, val: ImageDataset
) -> tuple[ImageDataset, ImageDataset]:
    """Return the data of a run with the names and numbers that its classes began with.

    Names were taken as they are in earlier versions, decomposed or with spaces around, and numbered
    in the order of that spelling.

    Args:
        run: its folder.
        train: training images.
        val: validation images.
    """
    names: tuple[str, ...] = ()
    with suppress(ModelError):  # before its first epoch has ended, it has no model
        names = load_model_config(run).class_names or ()
    run_data = None if names else read_run_data(run)
    if run_data is not None and run_data.rows is not None:
        names = tuple(sorted(set(chain.from_iterable(run_data.rows.labels))))
    is_same = sorted(map(canonicalize_name, names)) == sorted(train.class_names)
    if not is_same or set(names) == set(train.class_names):
        return train, val
    return relabel(train, names), relabel(val, names)


def require_same_data(trainer: Trainer, began: Progress, now: str) -> None:
    """Raise `DataError` if images, labels or the split are others than the checkpoint's.

    Images that have other contents under the same names are counted in a warning.

    Args:
        trainer: of the run.
        began: of the checkpoint; those of earlier versions have no fingerprint.
        now: fingerprint of the data as it is.
    """
    run, setup = trainer.run, trainer.setup
    run_data = read_run_data(run.root)
    rows = None if run_data is None else run_data.rows
    is_other = began.data_fingerprint not in ("", now)
    if is_other or len(setup.train.labels) != began.num_train_images:
        name, change = _find_change(trainer, rows, began.num_train_images)
        raise DataError(
            f"{name} is not the data that {run.root} began with: {change}.",
            "Put it back, or start a new run on it.",
        )
    windows = setup.windows
    if windows is not None and began.blocks_fingerprint not in ("", windows.fingerprint):
        raise DataError(
            f"{trainer.config.data} lies in other blocks than when {run.root} began, which orders images by them.",
            "Put it back as it was, or start a new run on it.",
        )
    if rows is not None and trainer.world.is_main:
        _warn_of_contents(trainer, rows)


def _find_change(trainer: Trainer, rows: SplitRows | None, num_before: int) -> tuple[str, str]:
    """Return which data is another than a run's, and how."""
    config, setup = trainer.config, trainer.setup
    num_train = len(setup.train.labels)
    if rows is None:
        return config.data, f"{num_train} training images, before {num_before}"
    labeled = select_labeled(setup.train)
    own, own_rows = select_own(labeled), rows.take(extra=False)
    if own is setup.train or not has_rows(own_rows, own, setup.val):
        return config.data, describe_change(own_rows, own, setup.val)
    extra, extra_rows = select_extra(labeled), rows.take(extra=True)
    ref = f"--extra-data {', '.join(config.extra_data)}"
    nothing = select(setup.val, [])
    if extra_rows.paths and not has_rows(extra_rows, extra, nothing):
        return ref, describe_change(extra_rows, extra, nothing)
    listed = labeled if extra_rows.paths else own  # too many extra images are not listed
    name, kinds = config.data, []
    if len(listed.labels) < len(labeled.labels):
        name, kinds = ref, ["images"]
    if setup.num_unlabeled and config.distill is not None:
        unlabelled = config.distill.unlabelled
        name = config.data if kinds or unlabelled == REST else f"--unlabelled {unlabelled}"
        kinds = ["images of other sources"] if kinds else []
        kinds.append("images without labels")
    now, before = (count - len(listed.labels) for count in (num_train, num_before))
    return name, f"of its {now:,} {' or '.join(kinds)}, before {before:,}, some are others"


def has_rows(rows: SplitRows, train: ImageDataset, val: ImageDataset) -> bool:
    """Return whether images, in order and with their labels, are those of a run's rows."""
    paths = [*list_relative_paths(train), *list_relative_paths(val)]
    return list(rows.paths) == paths and list(rows.labels) == [
        *name_labels(train),
        *name_labels(val),
    ]


def describe_change(rows: SplitRows, train: ImageDataset, val: ImageDataset) -> str:
    """Say in which images data differs from a run's rows."""
    began = set(zip(rows.paths, rows.labels, rows.splits, strict=True))
    now = {
        (path, names, split)
        for split, dataset in (("train", train), ("val", val))
        for path, names in zip(list_relative_paths(dataset), name_labels(dataset), strict=True)
    }
    parts = []
    for verb, these, those in (("gone", began, now), ("new", now, began)):
        classes = sorted(_list_classes(these) - _list_classes(those))
        images = sorted(row[0] for row in these - those)
        if classes:
            parts.append(f"classes that are {verb}: {name_first(classes)}")
        if images:
            parts.append(f"images that are {verb} or have another label: {name_first(images)}")
    return "; ".join(parts) or f"its classes or images are in another order than in {SPLIT_FILE}"


def _list_classes(rows: Iterable[tuple[str, tuple[str, ...], str]]) -> set[str]:
    return set(chain.from_iterable(names for _, names, _ in rows))


def name_first(names: Sequence[str]) -> str:
    """Return the first `MAX_NAMED` names in words, and how many more there are."""
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest


def _warn_of_contents(trainer: Trainer, rows: SplitRows) -> None:
    setup, own_rows, extra_rows = trainer.setup, rows.take(extra=False), rows.take(extra=True)
    labeled, began = select_labeled(setup.train), iter(own_rows.num_bytes)
    changed = [
        dataset.name(index)
        for dataset in (select_own(labeled), setup.val)
        for index, size in zip(range(len(dataset.labels)), began, strict=False)
        if dataset.num_bytes(index) != size
    ]
    # Images of the data itself were matched by size already; extra ones are compared here alone.
    extra, digests = select_extra(labeled), extra_rows.digests
    sizes = extra.read_sizes().tolist() if extra_rows.paths else []
    now = map_patiently(extra.digest, range(len(sizes))) if any(digests) else digests
    contents = zip(sizes, now, extra_rows.num_bytes, digests, strict=False)
    changed += [
        extra.name(index)
        for index, (size, digest, size_then, digest_then) in enumerate(contents)
        if (size, digest) != (size_then, digest_then)
    ]
    if changed:
        trainer.reporter.warn(
            f"{len(changed)} images have other contents than when {trainer.run.root} began, and are taken as they "
            f"are now: {name_first(changed)}."
        )
