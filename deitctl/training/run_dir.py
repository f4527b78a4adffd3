"""The run folder: its files by name, its configuration, its log."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, DeitctlError
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS
from deitctl.paths import DiskError, read_json, write_bytes
from deitctl.records import to_json
from deitctl.settings import from_dict, read_toml, write_toml


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

    @classmethod
    def create(cls, root: Path, config: TrainConfig) -> Run:
        """Make a new run folder; raise `DeitctlError` if a run is in it or it cannot be written."""
        run = cls(root)
        if run.checkpoint.exists() or (root / WEIGHTS).exists():
            raise DeitctlError(
                f"{root} already holds a run.",
                f"Name another --output, or continue it: deitctl train --resume {root}",
            )
        write_bytes(run.config_file, write_toml(config).encode())
        return run

    @classmethod
    def open(cls, root: Path) -> tuple[Run, TrainConfig]:
        """Open a run folder that exists; raise `ConfigError` if it is none."""
        run = cls(root)
        if not run.config_file.is_file():
            raise ConfigError(
                f"{root} is not a run: it has no run.toml.",
                "A run is a folder that `deitctl train` made.",
            )
        return run, from_dict(TrainConfig, read_toml(run.config_file), str(run.config_file))

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
            # Large, because it names every image that could not be read.
            value = read_json(self.result_file, 1 << 30)
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def read_launch_id(self) -> str:
        """Return the launch of several processes that started the run, empty if one process did."""
        file = self.launch_id_file
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def log(self, record: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; NaN and infinities, which JSON lacks, become null."""
        if not self.writes:
            return
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(record)) + "\n")
        except OSError as error:
            raise DiskError.from_os_error(self.metrics_file, error) from error

    def measure_log(self) -> int:
        """Return the size of metrics.jsonl in bytes."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_log(self, size: int) -> None:
        """Drop what was logged after the state that a resume starts from."""
        if self.writes and self.metrics_file.exists():
            os.truncate(self.metrics_file, min(size, self.measure_log()))

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the logged objects of a kind, `step` or `epoch`."""
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # no line of ours
                if isinstance(record, dict) and record.get("kind") == kind:
                    yield record


def new_run_folder(stem: str) -> Path:
    """Return runs/STEM, or runs/STEM-2 and so on where that is taken."""
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).strip("-.") or "run"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
