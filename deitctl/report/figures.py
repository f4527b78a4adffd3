"""Images of a run and of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deitctl.report.canvas import new_figure, save
from deitctl.report.contents import HEAD_NAMES, Contents, Curves
from deitctl.report.drawings import (
    class_bars,
    confusion_matrix,
    gallery,
    reliability_diagram,
    side_by_side,
)


def draw_figures(contents: Contents, folder: Path) -> list[Path]:
    """Draw what a report shows into PNG files of a folder and return them.

    They are confusion, per_class, reliability and a gallery each (mistakes, unsure, disagreements); with several models
    or preprocessings these carry their numbers (`confusion-2.png`), and comparison.png sets them side by side. A run
    adds curves.png. A gallery without images is left out.

    Args:
        contents: what is drawn.
        folder: made if it is not there; files of these names are replaced.

    Raises:
        DeitctlError: it cannot be written.
    """
    several = len(contents.evaluated) > 1
    drawn = {"comparison": side_by_side(contents.evaluated)} if several else {}
    for number, e in enumerate(contents.evaluated, 1):
        figures = {
            "confusion": confusion_matrix(e),
            "per_class": class_bars(e),
            "reliability": reliability_diagram(e),
        }
        figures |= {name: gallery(e, name) for name, examples in e.examples.items() if examples}
        drawn |= {
            f"{name}-{number}" if several else name: figure for name, figure in figures.items()
        }
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        save(figure, paths[-1])
    if curves := contents.curves:
        paths.append(folder / "curves.png")
        draw_curves(
            paths[-1],
            curves.steps,
            curves.epochs,
            teacher_top1=curves.teacher_top1,
            title=curves.run,
        )
    return paths


def draw_curves(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    *,
    teacher_top1: float | None,
    title: str,
) -> None:
    """Draw loss, accuracy and learning rate of a run into `path`.

    Args:
        path: the PNG to write.
        steps: the log's step records.
        epochs: the log's epoch records.
        teacher_top1: the teacher's accuracy in percent, drawn as a line.
        title: the figure's title.
    """
    curves = Curves(run=title, steps=steps, epochs=epochs, teacher_top1=teacher_top1)
    figure = new_figure(13, 4, title)
    loss, accuracy, rate = figure.subplots(1, 3)
    per_epoch = epochs[0]["step"] if epochs else 1

    at = [s["step"] / per_epoch for s in steps]
    for part in curves.losses:
        loss.plot(at, [s[part] for s in steps], label=part, linewidth=1, alpha=0.85)
    loss.plot(
        [e["epoch"] for e in epochs], [e["val_loss"] for e in epochs], "k.-", label="validation"
    )
    loss.set(xlabel="epoch", ylabel="loss")

    x = [e["epoch"] for e in epochs]
    for head in curves.heads:
        accuracy.plot(x, [e["heads"][head] for e in epochs], ".-", label=HEAD_NAMES[head])
    if not curves.heads:
        accuracy.plot(x, [e["top1"] for e in epochs], ".-", label="top-1")
    if teacher_top1 is not None:
        accuracy.axhline(teacher_top1, color="gray", linestyle="--", label="teacher")
    accuracy.set(xlabel="epoch", ylabel="validation top-1, %")

    rate.plot(at, [s["lr"] for s in steps], color="tab:green")
    rate.set(xlabel="epoch", ylabel="learning rate")
    for axes in (loss, accuracy):
        axes.legend(fontsize=8)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    save(figure, path)
