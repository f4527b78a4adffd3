"""What a caller of the Python API adds to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Functions of the caller's that a run calls."""

    draw_figures: Callable[[Path], Sequence[Path]] | None = None
    """Draws the figures of the run in a folder, at its end, and returns their files."""


NO_EXTENSIONS = Extensions()
