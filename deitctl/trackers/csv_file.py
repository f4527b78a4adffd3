"""The log as a table: RUN/metrics.csv, a row a record and a column a number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from deitctl.paths import write_bytes
from deitctl.trackers.tracker import Point, TrackedRun

FILE = "metrics.csv"


class CsvTracker:
    """Writes the table anew at the start, from the run's log, so that a resume doubles no row."""

    steps_before: Mapping[str, int] = {}  # none: it is written anew

    def __init__(self, run: TrackedRun) -> None:
        """Begin an empty table."""
        self.path = run.root / FILE
        self.place = str(self.path)
        self.columns = ["kind", "step"]
        self._write([])

    def log(self, point: Point) -> None:
        """Add a row; a column that is new makes the table be written anew."""
        row = {"kind": point.kind, "step": str(point.step)}
        row |= {name: repr(value) for name, value in point.values.items()}
        new = [name for name in row if name not in self.columns]
        if new:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._write([*rows, row])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Do nothing: the run folder has the image."""

    def finish(self, status: str) -> None:
        """Do nothing: every row is written."""

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_bytes(self.path, text.getvalue().encode())
