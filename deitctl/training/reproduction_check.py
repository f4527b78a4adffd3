"""What differs before a run is trained again: versions, machine, data, initial weights, teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deitctl.config import TrainConfig
from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_model, fingerprint_split
from deitctl.data.run_data import SplitRows, read_run_data
from deitctl.data.subsets import select_own
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.data.unlabeled import select_labeled
from deitctl.device import Device
from deitctl.distillation.preflight import Preflight
from deitctl.errors import ConfigError
from deitctl.events import Reporter, track
from deitctl.threads import DaemonThreads
from deitctl.training.recorded_run import RecordedRun
from deitctl.training.resumption import (
    describe_change,
    has_rows,
    name_first,
    restore_spelling,
)
from deitctl.training.session import MACHINE_FIELDS, describe_machine
from deitctl.training.trainer import Trainer

Datasets = tuple[ImageDataset, ImageDataset]
TITLES = {
    "num_threads": "threads",
    "num_processes": "processes",
    "cpu_capability": "CPU instructions",
    "device_name": "processor",
    "blas": "BLAS library",
    "jpeg_decoder": "JPEG decoder",
    "views_version": "version of the training views",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that differs from the run before the first step."""

    name: str
    """What: a key of sessions.jsonl, `data`, `views_version`, `initial_weights` or `teacher`."""
    recorded: str
    """In the run."""
    now: str
    """Here."""
    is_change: bool
    """Whether the runs must part by it: data, weights and teacher; versions and threads may give the same bits."""
    message: str
    """In a sentence, without its full stop."""


def open_data(recorded: RecordedRun, config: TrainConfig, reporter: Reporter) -> Datasets:
    """Open the images of a run as a new run would."""
    train, val = open_for_training(Source.of(config), reporter=reporter)
    return restore_spelling(recorded.root, train, val)


def find_differences(
    recorded: RecordedRun, device: Device, train: ImageDataset
) -> list[Difference]:
    """Return in which versions and properties of the machine the run's sessions differ from this process."""
    now = describe_machine(device, 1, is_in_memory=train.is_in_memory)
    differences = []
    for name in MACHINE_FIELDS:
        values = list(dict.fromkeys(getattr(s, name) for s in recorded.sessions))
        others = [str(value) for value in values if value != now[name]]
        if others:
            differences.append(_describe(name, " and ".join(map(str, values)), str(now[name])))
    began = recorded.checkpoint.get("views_version", VIEWS_VERSION)
    if began != VIEWS_VERSION:
        differences.append(_describe("views_version", str(began), str(VIEWS_VERSION)))
    return differences


def _describe(name: str, recorded: str, now: str) -> Difference:
    title = TITLES.get(name, name)
    message = f"{title}: {recorded} in the run, {now} here"
    if name == "num_threads":
        message += f" (as in the run: OMP_NUM_THREADS={recorded.partition(' ')[0]})"
    return Difference(name=name, recorded=recorded, now=now, is_change=False, message=message)


def find_data_changes(
    recorded: RecordedRun, datasets: Datasets, reporter: Reporter
) -> list[Difference]:
    """Return how the images differ from those that the run began with: names, labels, split, contents."""
    train, val = datasets
    labeled = select_own(select_labeled(train))
    run_data = read_run_data(recorded.root)
    rows = None
    if run_data is not None and run_data.rows is not None:
        rows = run_data.rows.take(extra=False)
    now, began = fingerprint_split(train, val), str(recorded.checkpoint.get("data_fingerprint", ""))
    change = ""
    if rows is not None and not has_rows(rows, labeled, val):
        change = describe_change(rows, labeled, val)
    elif began not in ("", now):
        are_others = rows is not None and labeled is not train
        kind = "images, labels or split"
        if are_others:
            kind = (
                "images of other sources" if recorded.config.extra_data else "images without labels"
            )
        change = f"it has other {kind}"
    elif rows is not None and (changed := list(_list_changed(rows, (labeled, val), reporter))):
        change = f"images with other contents: {name_first(changed)}"
    if not change:
        return []
    message = f"{recorded.config.data} is not the data that it began with: {change}"
    return [Difference(name="data", recorded=began, now=now, is_change=True, message=message)]


def _list_changed(rows: SplitRows, datasets: Datasets, reporter: Reporter) -> Iterator[str]:
    """Yield the names of images that have another size than a run's rows say, or another digest."""
    has_digests, position = any(rows.digests), 0
    label = "compare the images with the run's"
    with DaemonThreads(count_cores()) as threads:
        for dataset in datasets:
            count = len(dataset.labels)
            read = threads.map(dataset.digest, range(count)) if has_digests else iter([0] * count)
            for index, digest in enumerate(track(read, reporter, label, count)):
                is_same = dataset.num_bytes(index) == rows.num_bytes[position]
                if not is_same or digest != rows.digests[position]:
                    yield dataset.name(index)
                position += 1


def find_weight_changes(recorded: RecordedRun, trainer: Trainer) -> list[Difference]:
    """Return how the initial weights, or the teacher, differ from the run's; before the first step."""
    began = next((s.initial_weights for s in recorded.sessions if s.initial_weights), "")
    now, differences = fingerprint_model(trainer.state.model), []
    if began not in ("", now):
        source = recorded.config.weights or recorded.config.model
        message = f"the initial weights of {source} are others than the run began with"
        differences.append(_describe_change("initial_weights", began, now, message))
    teacher = trainer.setup.teacher
    preflights = [] if teacher is None else teacher.preflights
    return differences + find_teacher_changes(recorded.teacher, preflights)


def find_teacher_changes(
    record: Mapping[str, Any], preflights: Sequence[Preflight]
) -> list[Difference]:
    """Return which teachers have other weights than teacher.json says, each by its place."""
    more, differences = record.get("more_teachers"), []
    records = [record, *(more if isinstance(more, list) else [])] if record else []
    for preflight, earlier in zip(preflights, records, strict=False):
        began = str(earlier.get("weights_fingerprint", "")) if isinstance(earlier, dict) else ""
        now = preflight.weights_fingerprint
        if began != now:
            message = f"the teacher {preflight.name} has other weights than in the run"
            if preflight.finetuned != "no":
                message += ": it was fine-tuned again"
            differences.append(_describe_change("teacher", began, now, message))
    return differences


def _describe_change(name: str, recorded: str, now: str, message: str) -> Difference:
    return Difference(name=name, recorded=recorded, now=now, is_change=True, message=message)


def require_unchanged(
    recorded: RecordedRun, differences: Sequence[Difference], *, allow_changes: bool
) -> None:
    """Raise `ConfigError` for differences by which the runs must part, unless they are allowed."""
    changes = [difference.message for difference in differences if difference.is_change]
    if changes and not allow_changes:
        raise ConfigError(
            f"{recorded.root} cannot be reproduced: {'; '.join(changes)}.",
            "Put back what it was trained with, or see where they part: --allow-changes.",
        )


def report_differences(
    recorded: RecordedRun, differences: Sequence[Difference], reporter: Reporter
) -> None:
    """Say in a line each what differs before the first step, or that nothing does."""
    for difference in differences:
        reporter.warn(f"{difference.message}.")
    if not recorded.sessions:
        reporter.warn(
            f"{recorded.root} does not say with which versions and threads it was trained: an earlier "
            "version wrote it."
        )
    elif not differences:
        reporter.note(f"Versions, machine and data are those of {recorded.root}.")
