"""Trackio: a run of the project TRACKIO_PROJECT, or `deitctl`, in its local store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from deitctl.trackers.tracker import PROJECT, Point, TrackedRun

SERIES = {"step": "train/loss", "epoch": "val/loss"}
"""A number that every record of a kind has."""


class TrackioTracker:
    """A run that a resume finds by its name, and goes on with after the last step that it has."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin or go on with the run."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self.place = f"project {project}, seen by `trackio show --project {project}`"
        # Names are all that trackio knows a run by, and folders of one name may be several runs.
        name = f"{run.name}-{run.run_id}"
        self.steps_before = _find_last_steps(project, name)
        with _quiet():
            self.run = trackio.init(
                project=project,
                name=name,
                config={key: str(value) for key, value in run.settings.items()},
                resume="allow",
                embed=False,
            )
        # Else trackio ends it once more, and prints so, when the interpreter exits.
        trackio.context_vars.current_run.set(None)
        self._image = trackio.Image

    def log(self, point: Point) -> None:
        """Add a record's numbers at its step."""
        self.run.log(point.values, step=point.step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Add an image to the run's media."""
        self.run.log({name: self._image(str(path))}, step=step)

    def finish(self, status: str) -> None:
        """Write what is left."""
        with _quiet():
            self.run.finish()  # type: ignore[no-untyped-call]


def _find_last_steps(project: str, name: str) -> Mapping[str, int]:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs(project, name)
    steps = {
        kind: [int(row["step"]) for row in logs if series in row] for kind, series in SERIES.items()
    }
    return {kind: max(numbers) for kind, numbers in steps.items() if numbers}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off stdout what trackio prints: it is for a command's data."""
    with redirect_stdout(StringIO()):
        yield
