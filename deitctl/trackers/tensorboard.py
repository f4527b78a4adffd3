"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from deitctl.trackers.tracker import Point, TrackedRun

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents.*"


class TensorBoardTracker:
    """Writes the event file anew at the start, from the run's log, so that a resume doubles nothing."""

    steps_before: Mapping[str, int] = {}  # none: it is written anew

    def __init__(self, run: TrackedRun) -> None:
        """Begin an event file in place of those of the run's earlier sessions."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run.root / FOLDER
        self.place = f"{folder}, seen by `tensorboard --logdir {shlex.quote(str(run.root.parent))}`"
        former = [path for path in folder.glob(EVENTS) if path.is_file() and not path.is_symlink()]
        # `purge_step` lets a TensorBoard that is open drop what it read from the former file.
        self.writer = SummaryWriter(str(folder), purge_step=0 if former else None)
        for path in former:
            path.unlink(missing_ok=True)
        settings = json.dumps(dict(run.settings), indent=1, default=str)
        self.writer.add_text("settings", f"```json\n{settings}\n```")

    def log(self, point: Point) -> None:
        """Add a point to the curve of each number."""
        for name, value in point.values.items():
            self.writer.add_scalar(name, value, point.step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Add an image to the page Images."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def finish(self, status: str) -> None:
        """Write what is left."""
        self.writer.close()
