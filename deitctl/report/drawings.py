"""The figures of an evaluation, one function each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from deitctl.report.canvas import new_figure, text
from deitctl.report.contents import (
    HEAD_NAMES,
    OUTSIDE,
    Bin,
    Evaluated,
    confusion,
    most_confused,
    per_class,
)

RIGHT, WRONG, BETTER, GRAY = "#2a6fb0", "#c04a0a", "#8dbbe6", "#5d636b"
"""Right answers, mistakes, right more often than said, counts: told apart without red or green."""
MOST_CELLS = 25
"""Classes up to which the matrix has names and numbers; above, it is an image of dots."""
MOST_BARS = 40
"""Classes that have a bar; of more, those that are known least."""
MOST_EXAMPLES = 12
"""Images of a gallery that are drawn."""


def confusion_matrix(e: Evaluated) -> Any:
    """Draw the matrix: blue what is right, orange what is mistaken, by the share of the row."""
    classes = len(e.data.classes)
    labels, answers, counts = confusion(e)
    outside = bool((answers == OUTSIDE).any())
    columns = classes + outside
    share = counts / np.bincount(e.data.labels, minlength=classes)[labels]
    if classes > MOST_CELLS:
        return _dots(e, labels, answers, share)
    figure = new_figure(
        3.4 + 0.42 * columns,
        2.6 + 0.42 * classes,
        f"{e.name} on {e.data.name}: {e.top1:.1f} % top-1",
    )
    axes = figure.subplots()
    for label, answer, count, part in zip(labels, answers, counts, share, strict=True):
        x = classes if answer == OUTSIDE else answer
        alpha = 0.15 + 0.85 * (part if answer == label else part**0.5)
        axes.add_patch(_square(x, label, RIGHT if answer == label else WRONG, alpha))
        axes.text(
            x,
            label,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if alpha > 0.82 else "black",
        )
    names = [text(name) for name in e.data.classes]
    axes.set(
        xlim=(-0.5, columns - 0.5),
        ylim=(classes - 0.5, -0.5),
        aspect="equal",
        xlabel="taken for",
        ylabel="labeled",
    )
    axes.set_xticks(range(columns), names + ["not in the data"] * outside, rotation=90, fontsize=8)
    axes.set_yticks(range(classes), names, fontsize=8)
    axes.set_xticks(np.arange(columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes) - 0.5, minor=True)
    axes.grid(which="minor", color="#dedfdc")
    axes.tick_params(which="both", length=0)
    return figure


def _square(x: float, y: float, color: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=color, alpha=alpha, linewidth=0)


def _dots(e: Evaluated, labels: Any, answers: Any, share: Any) -> Any:
    """Draw a matrix too large for numbers as dots, beside what is most often confused."""
    figure = new_figure(
        13, 8.5, f"{e.name} on {e.data.name}: {e.top1:.1f} % top-1, {len(e.data.classes):,} classes"
    )
    axes, words = figure.subplots(1, 2, width_ratios=(3, 2))
    right, classes = labels == answers, len(e.data.classes)
    wrong, answers = (
        ~right,
        np.where(answers == OUTSIDE, classes + max(1, classes // 25), answers),
    )  # a column apart
    size = max(1.0, 250 / len(e.data.classes)) ** 2
    axes.scatter(
        answers[wrong],
        labels[wrong],
        s=size * (1 + 8 * share[wrong]),
        color=WRONG,
        linewidth=0,
        label="mistaken",
    )
    axes.scatter(
        answers[right],
        labels[right],
        s=size * (1 + 2 * share[right]),
        color=RIGHT,
        linewidth=0,
        label="right",
    )
    last, others = classes - 0.5, int(answers.max(initial=0)) >= classes
    axes.set(
        xlim=(-0.5, answers.max() + 0.5 if others else last),
        ylim=(last, -0.5),
        aspect="equal",
        xlabel="taken for, place in the data's order"
        + (" (far right: a class that the data does not have)" if others else ""),
        ylabel="labeled, place in the data's order",
    )
    legend = axes.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False
    )
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    words.axis("off")
    words.set_title("most often confused", loc="left", fontsize=10)
    for line, (label, answer, outside, count) in enumerate(most_confused(e, 24)):
        said = text(outside or e.data.classes[answer], 26)
        words.text(
            0,
            0.98 - line / 25,
            f"{count:,}",
            fontsize=9,
            va="top",
            color=WRONG,
            transform=words.transAxes,
        )
        pair = f"{text(e.data.classes[label], 26)} taken for {said}"
        words.text(0.09, 0.98 - line / 25, pair, fontsize=9, va="top", transform=words.transAxes)
    return figure


def class_bars(e: Evaluated) -> Any:
    """Draw recall as a bar and precision as a mark on it, the class known least on top."""
    images, right, answers = per_class(e)
    with np.errstate(invalid="ignore"):
        recall, precision = 100 * right / images, 100 * right / answers
    order = np.argsort(np.where(images > 0, recall, np.inf), kind="stable")[:MOST_BARS]
    some = (
        ""
        if len(order) == len(images)
        else f", the {len(order)} of {len(images):,} that it knows least"
    )
    figure = new_figure(9, 1.6 + 0.26 * len(order), f"{e.name} on {e.data.name}: classes{some}")
    axes = figure.subplots()
    at = np.arange(len(order))
    axes.barh(at, np.nan_to_num(recall[order]), color=RIGHT, height=0.7, label="recall")
    axes.plot(
        precision[order],
        at,
        "|",
        color="black",
        markersize=11,
        markeredgewidth=2,
        label="precision",
        clip_on=False,
    )
    axes.set_yticks(at, [f"{text(e.data.classes[n])} ({images[n]:,})" for n in order], fontsize=8)
    axes.set(
        ylim=(len(order) - 0.5, -0.5),
        xlim=(0, 101),
        xlabel="%, of the images of a class (recall) or of the answers naming it",
    )
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return figure


def reliability_diagram(e: Evaluated) -> Any:
    """Draw the reliability diagram, and beside it that at the fitted temperature."""
    drawn = [(f"calibration error {e.ece:.3f}", e.reliability)]
    if after := e.calibrated:
        drawn.append((f"{after.ece:.3f} at temperature {after.temperature:.3g}", after.reliability))
    figure = new_figure(
        0.8 + 4.6 * len(drawn),
        5.8,
        f"{e.name} on {e.data.name}: how often it is right, by its confidence",
    )
    rows = figure.subplots(2, len(drawn), squeeze=False, height_ratios=(4, 1), sharex=True)
    for column, (title, bins) in enumerate(drawn):
        _bars(rows[0][column], rows[1][column], bins)
        rows[0][column].set_title(title, fontsize=10)
    rows[0][0].set_ylabel("right, %")
    rows[1][0].set_ylabel("images")
    rows[0][0].legend(fontsize=8, loc="upper left")
    return figure


def _bars(axes: Any, counts: Any, bins: Sequence[Bin]) -> None:
    full = [b for b in bins if b.num_images]
    left, width = [100 * b.lower for b in full], [100 * (b.upper - b.lower) * 0.94 for b in full]
    accuracy, confidence = (
        100 * np.array([b.accuracy for b in full]),
        100 * np.array([b.confidence for b in full]),
    )
    both = np.minimum(accuracy, confidence)
    above, below = np.maximum(accuracy - confidence, 0), np.maximum(confidence - accuracy, 0)
    for height, bottom, color, alpha, label in (
        (both, 0, RIGHT, 1, "right"),
        (above, both, BETTER, 1, "right more often than said"),
        (below, both, WRONG, 0.45, "said, not right"),
    ):
        axes.bar(left, height, width, bottom, align="edge", color=color, alpha=alpha, label=label)
    axes.plot([0, 100], [0, 100], "k--", linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.grid(alpha=0.3)
    bars = counts.bar(left, [b.num_images for b in full], width, align="edge", color=GRAY)
    counts.bar_label(bars, fontsize=6)
    counts.set(xlabel="confidence, %")
    counts.margins(y=0.25)


def gallery(e: Evaluated, kind: str) -> Any:
    """Draw the first images of a gallery, each above its attention maps."""
    titles = {
        "mistakes": "most confident mistakes",
        "unsure": "least sure hits",
        "disagreements": "the heads disagree",
    }
    examples = e.examples[kind][:MOST_EXAMPLES]
    maps = list(dict.fromkeys(name for x in examples for name in x.maps or ()))
    columns = min(6, len(examples))
    lines = -(-len(examples) // columns)
    rows = lines * (1 + len(maps))
    figure = new_figure(
        max(4, 2.1 * columns),
        0.5 + lines * (2.7 + 2 * len(maps)),
        f"{e.name} on {e.data.name}: {titles[kind]}",
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for n, example in enumerate(examples):
        line, column = divmod(n, columns)
        said = [f"{head}: {text(guess, 16)}" for head, (guess, _) in (example.heads or {}).items()]
        said = said or [
            f"{text(guess, 20)}, {100 * score:.0f} %" for guess, score in example.guesses[:2]
        ]
        top = grid[line * (1 + len(maps))][column]
        top.imshow(_pixels(example.thumbnail))
        top.set_title(
            "\n".join([f"labeled {text(e.data.classes[e.data.labels[example.index]], 22)}", *said]),
            fontsize=7,
        )
        for below, name in enumerate(maps, 1):
            if example.maps and name in example.maps:
                axes = grid[line * (1 + len(maps)) + below][column]
                axes.imshow(_pixels(example.maps[name], under=example.thumbnail))
                axes.set_title(name, fontsize=6)
    return figure


def _pixels(image: bytes, under: bytes | None = None) -> Any:
    """Return an image's pixels; one that is not opaque lies on `under`."""
    top = Image.open(io.BytesIO(image)).convert("RGBA")
    if under is None:
        return np.asarray(top)
    ground = Image.open(io.BytesIO(under)).convert("RGBA").resize(top.size)
    return np.asarray(Image.alpha_composite(ground, top))


def side_by_side(evaluated: Sequence[Evaluated]) -> Any:
    """Draw top-1 of each with its interval, and of each head."""
    figure = new_figure(9, 1.6 + 0.5 * len(evaluated), "top-1 with its 95 % interval")
    axes = figure.subplots()
    for line, e in enumerate(evaluated):
        low, high = e.intervals.get("top1", (e.top1, e.top1))
        axes.errorbar(
            e.top1, line, xerr=[[e.top1 - low], [high - e.top1]], fmt="o", color=RIGHT, capsize=4
        )
        for mark, (rule, name) in zip("x+sd", HEAD_NAMES.items(), strict=True):
            if e.heads and rule in e.heads:
                shown = None if name in axes.get_legend_handles_labels()[1] else name
                axes.plot(e.heads[rule], line, mark, color=WRONG, label=shown, fillstyle="none")
    axes.set_yticks(range(len(evaluated)), [text(e.name, 40) for e in evaluated])
    axes.set(ylim=(len(evaluated) - 0.5, -0.5), xlabel="%")
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return figure
