"""The run folder: its files by name, its configuration, its log."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.data.value_range import parse_range
from deitctl.errors import ConfigError, DeitctlError, ModelError
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS
from deitctl.models.model_config import ValueRange
from deitctl.paths import (
    DiskError,
    open_no_follow,
    read_json,
    read_text,
    refuse_links,
    require_creatable,
    suggest_path,
    write_bytes,
)
from deitctl.records import to_json
from deitctl.settings import from_dict, read_toml, write_toml
from deitctl.training.normalization import ChannelStats, parse_channels
from deitctl.training.run_log import read_records
from deitctl.training.saved_state import read_record

MAX_RECORD_BYTES = 1 << 30
"""Of result.json, which names every image that could not be read."""
NOTHING_SAVED = "Nothing was saved."
MAX_LAUNCH_ID = 4096
"""Bytes of the name of a launch."""
MAX_PART_BYTES = 60
"""Of each part of a run's name; file systems allow 255 in all."""


class Run:
    """Paths of a run folder, its configuration and its log."""

    def __init__(self, root: Path, *, writes: bool = True) -> None:
        """Name the files of `root`; of several processes only the main one `writes` them."""
        self.root, self.writes = root, writes
        self.config_file = root / "run.toml"
        self.result_file = root / "result.json"
        self.metrics_file = root / "metrics.jsonl"
        self.checkpoint = root / "checkpoint"
        self.launch_id_file = root / "launch_id"
        self.lock_file = root / "lock"
        self.figures = root / "figures"
        self.incidents = root / "incidents"
        self.on_record: Callable[[Mapping[str, Any]], None] = lambda record: None
        """Called with every record that is logged."""

    @classmethod
    def create(cls, root: Path, config: TrainConfig) -> Run:
        """Make a new run folder; raise `DeitctlError` if a run is in it or it cannot be written."""
        run = cls(root)
        run.require_new()
        write_bytes(run.config_file, write_toml(config).encode())
        return run

    def require_creatable(self) -> None:
        """Raise `DiskError` if the folder's files are not its own, or cannot be made."""
        self.require_own_names()
        require_creatable(self.config_file, within=self.root)

    def require_new(self) -> None:
        """Raise `DeitctlError` if a run is in the folder, which need not exist."""
        if not self.checkpoint.exists() and not (self.root / WEIGHTS).exists():
            return
        resume = f"deitctl train --resume {self.quoted}"
        raise DeitctlError(
            f"{self.root} already holds a run.",
            f"Name another --output, or train that one longer: {resume} --more-epochs N"
            if self.result() is not None
            else f"Name another --output, or continue it: {resume}",
        )

    @classmethod
    def open(cls, root: Path) -> tuple[Run, TrainConfig]:
        """Open a run folder that exists; raise `ConfigError` if it is none."""
        run = cls(root)
        if not run.config_file.is_file():
            raise ConfigError(
                f"{root} is not a run: it has no run.toml.",
                f"Did you mean {str(root.parent)!r}?"
                if (root.parent / "run.toml").is_file()  # of one of its folders
                else suggest_path(root) or "A run is a folder that `deitctl train` made.",
            )
        settings = read_toml(run.config_file)
        # earlier versions knew no other
        settings = {"task": "classification", "data_order": "full"} | settings
        return run, from_dict(TrainConfig, settings, str(run.config_file))

    def extend(self, config: TrainConfig, launch: str) -> None:
        """Give a finished run more epochs, those of `config`; `launch` as `read_launch_id`.

        A kill at any moment leaves a run that `--resume` finishes.
        """
        self.result_file.unlink(missing_ok=True)
        write_bytes(self.config_file, write_toml(config).encode())
        write_bytes(self.launch_id_file, launch.encode())

    @property
    def quoted(self) -> str:
        """Return the folder as a shell takes it."""
        return shlex.quote(str(self.root))

    @property
    def has_model(self) -> bool:
        """Whether weights have been saved."""
        return (self.root / WEIGHTS).is_file() and (self.root / CONFIG).is_file()

    def result(self) -> dict[str, Any] | None:
        """Return what the finished run ended with, None if it is not finished."""
        try:
            value = read_json(self.result_file, MAX_RECORD_BYTES)
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def teacher_top1(self) -> float | None:
        """Return the accuracy of the finished run's teacher, percent; None without one."""
        teacher = (self.result() or {}).get("teacher")
        top1 = teacher.get("top1") if isinstance(teacher, dict) else None
        return float(top1) if isinstance(top1, int | float) and 0 <= top1 <= 100 else None

    def saved_position(self) -> tuple[int, int] | None:
        """Return the epochs and steps done at the last checkpoint, None if there is none."""
        # A run that is killed between the two renames of a save has the one before.
        for record in self._read_records():
            epoch, step = record.get("epoch"), record.get("step")
            if isinstance(epoch, int) and isinstance(step, int):
                return epoch, step
        return None

    def saved_value_range(self) -> ValueRange | None:
        """Return the value range of the data that the run began with; None if it is not known."""
        for record in self._read_records():
            return parse_range(str(record.get("value_range", "")))
        return None

    def saved_channels(self) -> ChannelStats | None:
        """Return the normalization of bands that the run began with; None without a checkpoint or bands."""
        for record in self._read_records():
            return parse_channels(str(record.get("channels", "")))
        return None

    def _read_records(self) -> Iterator[dict[str, Any]]:
        """Yield what is written of the last checkpoint, and of the one before it."""
        for folder in (self.checkpoint, self.checkpoint.with_name(f"{self.checkpoint.name}.old")):
            with suppress(ModelError):
                yield read_record(folder)

    def describe_saved(self) -> str:
        """Return what of an unfinished run is on the disk, as a sentence."""
        if position := self.saved_position():
            epochs, steps = position
            return f"The last checkpoint, of step {steps} (epochs done: {epochs}), is whole."
        if self.has_model:
            return f"Of the training nothing was saved but its best weights, {self.root / WEIGHTS}."
        return NOTHING_SAVED

    def explain_full_disk(self, error: DiskError) -> DeitctlError:
        """Return the error of a failed write during training, with what is saved and how to go on."""
        repair = "Free some space" if error.is_full else "Make it writable"
        return DeitctlError(
            f"{error.message} {self.describe_saved()}",
            f"{repair}, then: deitctl train --resume {self.quoted}",
        )

    def read_launch_id(self) -> str:
        """Return the launch of several processes that started the run, empty if one process did."""
        try:
            return read_text(self.launch_id_file, MAX_LAUNCH_ID)
        except (OSError, ValueError):
            return ""  # none of ours: no launch has such a name

    def log(self, record: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; NaN and infinities, which JSON lacks, become null."""
        if not self.writes:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with os.fdopen(open_no_follow(self.metrics_file, flags), "ab") as file:
                file.write(json.dumps(to_json(record)).encode() + b"\n")
        except OSError as error:
            raise DiskError.from_os_error(self.metrics_file, error) from error
        self.on_record(record)

    def measure_log(self) -> int:
        """Return the size of metrics.jsonl in bytes."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_log(self, size: int) -> None:
        """Drop what was logged after the state that a resume starts from."""
        if not self.writes or not os.path.lexists(self.metrics_file):
            return
        try:
            with os.fdopen(open_no_follow(self.metrics_file, os.O_RDWR), "rb+") as file:
                end = file.seek(0, os.SEEK_END)
                file.truncate(min(size, end))
                # A line that was cut, by a power failure or by somebody's hand, must not swallow the
                # next one.
                if end := file.seek(0, os.SEEK_END):
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
        except OSError as error:
            raise DiskError.from_os_error(self.metrics_file, error) from error

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the logged objects of a kind, `step` or `epoch`; see `read_records`."""
        return read_records(self.metrics_file, kind)

    def require_own_names(self) -> None:
        """Raise `DiskError` if a folder of the run, or a file that it writes in place, is a link.

        The run itself may be one, and so may files that are replaced by others.
        """
        names = (self.lock_file, self.metrics_file, self.figures, self.incidents, self.checkpoint)
        swapped = (f"{self.checkpoint.name}.new", f"{self.checkpoint.name}.old")
        refuse_links(self.root, (*(path.name for path in names), *swapped))


def create_run_folder(*parts: str) -> Path:
    """Make the folder runs/PARTS, joined by hyphens, or runs/PARTS-2 and so on where that is taken,
    and return it.

    Of processes that start at the same moment each gets its own.

    Args:
        parts: of its name, at most four; what no file name should have is replaced, and the end of
            a long part is left out, so that the others stay.

    Raises:
        DiskError: runs/ cannot be written.
    """
    stem = require_runs_folder(*parts).name
    for number in count(1):
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.parent.mkdir(exist_ok=True)
            if not _make_folder(path):
                continue
        except OSError as error:
            raise DiskError.from_os_error(path, error) from error
        return path
    raise AssertionError("count() does not end")


def require_runs_folder(*parts: str) -> Path:
    """Return the folder that `create_run_folder` begins with; raise `DiskError` if it cannot be made."""
    path = Path("runs") / ("-".join(map(_shorten, parts)).strip("-.") or "run")
    require_creatable(path / "run.toml", within=path)
    return path


def _shorten(part: str) -> str:
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in part)
    return plain.encode()[:MAX_PART_BYTES].decode(errors="ignore")


def _make_folder(path: Path) -> bool:
    """Make a folder; return whether this process did, which is false if it was there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
