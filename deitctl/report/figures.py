"""Writes the figures of an evaluation and of a run as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deitctl.report.contents import Contents, Curves
from deitctl.report.drawings import (
    draw_class_bars,
    draw_comparison,
    draw_confusion_matrix,
    draw_gallery,
    draw_reliability,
    draw_run,
    save_figure,
)


def draw_figures(contents: Contents, folder: Path) -> list[Path]:
    """Write what a report shows as PNG files and return their paths.

    They are confusion, per_class, reliability and one per gallery with images (mistakes, unsure,
    disagreements). Those of several models are numbered (`confusion-2.png`), and comparison.png
    shows the models side by side. A run adds curves.png.

    Args:
        contents: what is drawn.
        folder: created if it does not exist; files of these names are replaced.

    Raises:
        DiskError: a file cannot be written.
    """
    several = len(contents.sections) > 1
    figures = {"comparison": draw_comparison(contents.sections)} if several else {}
    for number, section in enumerate(contents.sections, 1):
        drawn = {
            "confusion": draw_confusion_matrix(section),
            "per_class": draw_class_bars(section),
            "reliability": draw_reliability(section),
        }
        drawn |= {
            name: draw_gallery(section, name)
            for name, examples in section.galleries.items()
            if examples
        }
        figures |= {f"{name}-{number}" if several else name: f for name, f in drawn.items()}
    if contents.curves:
        figures["curves"] = draw_run(contents.curves)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def draw_curves(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    *,
    teacher_top1: float | None,
    title: str,
) -> None:
    """Write loss, accuracy and learning rate of a run as PNG.

    Args:
        path: the file.
        steps: step records of the log.
        epochs: epoch records of the log.
        teacher_top1: the teacher's accuracy in percent, drawn as a line.
        title: of the figure.
    """
    curves = Curves(run=title, steps=steps, epochs=epochs, teacher_top1=teacher_top1)
    save_figure(draw_run(curves), path)
