"""Weights & Biases: a run of the project WANDB_PROJECT, or `deitctl`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deitctl.paths import read_json, write_json
from deitctl.trackers.tracker import PROJECT, Point, TrackedRun

CURSOR = "wandb.json"
"""In the run folder: what was handed over, which an offline W&B run does not know after a resume."""


class WandbTracker:
    """A run that a resume goes on with, by its id.

    W&B ignores a step that is older than its last one, so that what was handed over is handed over
    once.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Begin or go on with the run.

        Without a key, where W&B would ask for one, it writes offline, and `wandb sync` uploads it.
        """
        import wandb

        mode, project = (
            os.environ.get("WANDB_MODE") or None,
            os.environ.get("WANDB_PROJECT") or PROJECT,
        )
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self.place = f"project {project}"
        if mode == "offline":
            self.place = f"offline, `wandb sync {run.root}/wandb/offline-*` uploads it"
        self.cursor, self.steps_before = run.root / CURSOR, _read_cursor(run.root / CURSOR)
        self._steps = dict(self.steps_before)
        self.run = wandb.init(
            project=project,
            dir=str(run.root),
            id=run.run_id,
            name=run.name,
            config=dict(run.settings),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._image = wandb.Image

    def log(self, point: Point) -> None:
        """Add a record's numbers at its step."""
        self.run.log(point.values, step=point.step)
        self._steps[point.kind] = point.step
        write_json(self.cursor, self._steps)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Add an image to the run's media."""
        self.run.log({name: self._image(str(path))}, step=step)

    def finish(self, status: str) -> None:
        """Hand over what is left; waits for the upload."""
        self.run.finish(exit_code=1 if status == "failed" else 0)


def _read_cursor(path: Path) -> Mapping[str, int]:
    try:
        steps = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(steps, dict):
        return {}
    return {str(k): v for k, v in steps.items() if isinstance(v, int)}
