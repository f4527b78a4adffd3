"""Pictures of a run, as PNG."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deitctl.checkpoint import cannot_write

HEAD_NAMES = {"cls": "class head", "dist": "distillation head", "avg-logits": "both (logits averaged)"}


def draw_curves(
    path: Path, steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]], *,
    teacher_top1: float | None, title: str,
) -> None:  # fmt: skip
    """Draw loss, accuracy and learning rate of a run into `path`.

    Args:
        path: the PNG to write.
        steps: the log's step records.
        epochs: the log's epoch records.
        teacher_top1: the teacher's accuracy in percent, drawn as a line.
        title: the figure's title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, and no global state of pyplot
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, accuracy, rate = figure.subplots(1, 3)
    per_epoch = epochs[0]["step"] if epochs else 1

    at = [s["step"] / per_epoch for s in steps]
    for part in [k for k in (steps[0] if steps else {}) if k not in ("kind", "step", "epoch", "lr")]:
        loss.plot(at, [s[part] for s in steps], label=part, linewidth=1, alpha=0.85)
    loss.plot([e["epoch"] for e in epochs], [e["val_loss"] for e in epochs], "k.-", label="validation")
    loss.set(xlabel="epoch", ylabel="loss")

    x = [e["epoch"] for e in epochs]
    if epochs and epochs[0]["heads"]:
        for head, label in HEAD_NAMES.items():
            accuracy.plot(x, [e["heads"][head] for e in epochs], ".-", label=label)
    else:
        accuracy.plot(x, [e["top1"] for e in epochs], ".-", label="top-1")
    if teacher_top1 is not None:
        accuracy.axhline(teacher_top1, color="grey", linestyle="--", label="teacher")
    accuracy.set(xlabel="epoch", ylabel="validation top-1, %")

    rate.plot(at, [s["lr"] for s in steps], color="tab:green")
    rate.set(xlabel="epoch", ylabel="learning rate")
    for axes in (loss, accuracy):
        axes.legend(fontsize=8)
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".png")
        os.close(handle)
        figure.savefig(name, dpi=110)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise cannot_write(path, error) from error
