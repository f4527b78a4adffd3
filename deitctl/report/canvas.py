"""A figure of matplotlib without a window: made, written on, saved."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from deitctl.paths import DiskError


def new_figure(width: float, height: float, title: str) -> Any:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # no window, and no global state of pyplot
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(text(title, 100))
    return figure


def text(name: str, most: int = 28) -> str:
    """Return a name as matplotlib is to draw it: short, and with no formulas in it."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; raise `DeitctlError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".png")
        os.close(handle)
        figure.savefig(name, dpi=110)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise DiskError.from_os_error(path, error) from error
