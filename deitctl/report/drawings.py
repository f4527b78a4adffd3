"""The figures of an evaluation and of a run, one function each, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deitctl.evaluation.metrics import ReliabilityBin
from deitctl.paths import atomic_path
from deitctl.report.contents import (
    GALLERY_TITLES,
    HEAD_TITLES,
    OUTSIDE,
    Curves,
    ModelSection,
    count_classes,
    count_pairs,
    list_confusions,
)

# Blue and orange can be distinguished without red or green.
CORRECT, WRONG, UNDERCONFIDENT, GRAY = "#2a6fb0", "#c04a0a", "#8dbbe6", "#5d636b"
MAX_CELLS = 25
"""Classes up to which the matrix has names and numbers; above, it is a scatter plot."""
MAX_BARS = 40
MAX_CONFUSIONS = 24
MAX_EXAMPLES = 12
GALLERY_COLUMNS = 6


def new_figure(width: float, height: float, title: str) -> Any:
    """Return an empty figure of so many inches."""
    # No pyplot: it keeps figures in a global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(to_plain_text(title, 100))
    return figure


def to_plain_text(name: str, limit: int = 28) -> str:
    """Return a name cut to `limit` characters, in which matplotlib finds no formula."""
    name = "".join(c if c.isprintable() else " " for c in name)
    # An unpaired `$` in a file name is a parse error of mathtext.
    return (name if len(name) <= limit else f"{name[: limit - 1]}…").replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically; raise `DiskError` if that fails."""
    # format is stated, as the temporary name has no suffix that matplotlib could go by.
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_confusion_matrix(section: ModelSection) -> Any:
    """Draw the confusion matrix: blue correct, orange wrong, by the fraction of the row."""
    titles, classes = section.subject.class_titles, section.result.num_classes
    labels, preds, counts = count_pairs(section)
    # Of the row: a rare class is as visible as a frequent one.
    fractions = counts / count_classes(section)[0][labels]
    if classes > MAX_CELLS:
        return _draw_scatter_matrix(section, labels, preds, fractions)
    from matplotlib.patches import Rectangle

    has_outside = bool((preds == OUTSIDE).any())
    columns = classes + has_outside
    figure = new_figure(3.4 + 0.42 * columns, 2.6 + 0.42 * classes, _title(section))
    axes = figure.subplots()
    for label, pred, count, fraction in zip(labels, preds, counts, fractions, strict=True):
        x, color = classes if pred == OUTSIDE else pred, CORRECT if pred == label else WRONG
        # The root lets a few mistakes among many images be seen.
        alpha = 0.15 + 0.85 * (fraction if pred == label else fraction**0.5)
        corner = (x - 0.47, label - 0.47)
        axes.add_patch(Rectangle(corner, 0.94, 0.94, facecolor=color, alpha=alpha, linewidth=0))
        ink = "white" if alpha > 0.82 else "black"
        axes.text(x, label, f"{count:,}", ha="center", va="center", fontsize=8, color=ink)
    names = [to_plain_text(title) for title in titles]
    axes.set(
        xlim=(-0.5, columns - 0.5),
        ylim=(classes - 0.5, -0.5),
        aspect="equal",
        xlabel="predicted",
        ylabel="labeled",
    )
    axes.set_xticks(range(columns), names + ["not in the data"] * has_outside, rotation=90)
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes) - 0.5, minor=True)
    axes.grid(which="minor", color="#dedfdc")
    axes.tick_params(which="both", length=0, labelsize=8)
    return figure


def _title(section: ModelSection, rest: str = "") -> str:
    result = section.result
    return f"{result.name} on {result.data}: {rest or f'{result.top1:.1f} % top-1'}"


def _draw_scatter_matrix(section: ModelSection, labels: Any, preds: Any, fractions: Any) -> Any:
    """Draw a matrix too large for numbers as dots, beside the most frequent confusions."""
    titles, classes = section.subject.class_titles, section.result.num_classes
    figure = new_figure(13, 8.5, f"{_title(section)}, {classes:,} classes")
    axes, confusions = figure.subplots(1, 2, width_ratios=(3, 2))
    # Predictions that the data does not have stand in a column apart.
    x = np.where(preds == OUTSIDE, classes + max(1, classes // 25), preds)
    size = max(1.0, 250 / classes) ** 2
    correct = labels == preds
    for rows, growth, color, name in (
        (~correct, 8, WRONG, "wrong"),
        (correct, 2, CORRECT, "correct"),
    ):
        sizes = size * (1 + growth * fractions[rows])
        axes.scatter(x[rows], labels[rows], s=sizes, color=color, linewidth=0, label=name)
    last = classes - 0.5
    has_outside = int(x.max(initial=0)) >= classes
    axes.set(
        xlim=(-0.5, x.max() + 0.5 if has_outside else last),
        ylim=(last, -0.5),
        aspect="equal",
        xlabel="index of the predicted class" + " (far right: not in the data)" * has_outside,
        ylabel="index of the labeled class",
    )
    legend = axes.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False
    )
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    confusions.axis("off")
    confusions.set_title("most frequent confusions", loc="left", fontsize=10)
    style = {"fontsize": 9, "va": "top", "transform": confusions.transAxes}
    for line, (label, pred, outside, count) in enumerate(list_confusions(section, MAX_CONFUSIONS)):
        y, predicted = 0.98 - line / (MAX_CONFUSIONS + 1), outside or titles[pred]
        pair = f"{to_plain_text(titles[label], 26)} predicted as {to_plain_text(predicted, 26)}"
        confusions.text(0, y, f"{count:,}", color=WRONG, **style)
        confusions.text(0.09, y, pair, **style)
    return figure


def draw_class_bars(section: ModelSection) -> Any:
    """Draw recall as a bar and precision as a mark on it, the lowest recall on top."""
    images, correct, predicted = count_classes(section)
    # 0 / 0 for a class without images, or never predicted: NaN is drawn as nothing.
    with np.errstate(invalid="ignore"):
        recall, precision = 100 * correct / images, 100 * correct / predicted
    order = np.argsort(np.where(images > 0, recall, np.inf), kind="stable")[:MAX_BARS]
    lowest = f", the {len(order)} of {len(images):,} with the lowest recall"
    title = _title(section, "classes" + lowest * (len(order) < len(images)))
    figure = new_figure(9, 1.6 + 0.26 * len(order), title)
    axes = figure.subplots()
    y = np.arange(len(order))
    axes.barh(y, np.nan_to_num(recall[order]), color=CORRECT, height=0.7, label="recall")
    mark = {"color": "black", "markersize": 11, "markeredgewidth": 2, "clip_on": False}
    axes.plot(precision[order], y, "|", label="precision", **mark)
    titles = section.subject.class_titles
    axes.set_yticks(y, [f"{to_plain_text(titles[n])} ({images[n]:,})" for n in order], fontsize=8)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, 101), xlabel="recall, precision, %")
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_reliability(section: ModelSection) -> Any:
    """Draw the reliability diagram, and beside it the one with the fitted temperature."""
    result = section.result
    diagrams = [(f"calibration error {result.ece:.3f}", result.reliability)]
    if fitted := result.calibration:
        title = f"{fitted.ece:.3f} with fitted temperature {fitted.temperature:.3g}"
        diagrams.append((title, fitted.reliability))
    figure = new_figure(0.8 + 4.6 * len(diagrams), 5.8, _title(section, "accuracy by confidence"))
    rows = figure.subplots(2, len(diagrams), squeeze=False, height_ratios=(4, 1), sharex=True)
    for column, (title, bins) in enumerate(diagrams):
        # Images a bin below the diagram: a bin of three images says nothing.
        _draw_bins(rows[0][column], rows[1][column], bins)
        rows[0][column].set_title(title, fontsize=10)
    rows[0][0].set_ylabel("accuracy, %")
    rows[1][0].set_ylabel("images")
    rows[0][0].legend(fontsize=8, loc="upper left")
    return figure


def _draw_bins(axes: Any, counts: Any, bins: Sequence[ReliabilityBin]) -> None:
    left = [100 * b.lower for b in bins]
    width = [100 * (b.upper - b.lower) * 0.94 for b in bins]
    accuracy = 100 * np.array([b.accuracy for b in bins])
    confidence = 100 * np.array([b.confidence for b in bins])
    both, gap = np.minimum(accuracy, confidence), accuracy - confidence
    for height, bottom, color, alpha, label in (
        (both, 0, CORRECT, 1, "accuracy"),
        (np.maximum(gap, 0), both, UNDERCONFIDENT, 1, "underconfident"),
        (np.maximum(-gap, 0), both, WRONG, 0.45, "overconfident"),
    ):
        axes.bar(left, height, width, bottom, align="edge", color=color, alpha=alpha, label=label)
    axes.plot([0, 100], [0, 100], "k--", linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.grid(alpha=0.3)
    bars = counts.bar(left, [b.num_images for b in bins], width, align="edge", color=GRAY)
    counts.bar_label(bars, fontsize=6)
    counts.set(xlabel="confidence, %")
    counts.margins(y=0.25)


def draw_gallery(section: ModelSection, kind: str) -> Any:
    """Draw the first images of a gallery, each above its attention maps."""
    examples = section.galleries[kind][:MAX_EXAMPLES]
    tokens = list(dict.fromkeys(name for example in examples for name in example.maps))
    columns = min(GALLERY_COLUMNS, len(examples))
    lines, height = -(-len(examples) // columns), 1 + len(tokens)
    figure = new_figure(
        max(4, 2.1 * columns),
        0.5 + lines * (2.7 + 2 * len(tokens)),
        _title(section, GALLERY_TITLES[kind].lower()),
    )
    grid = figure.subplots(lines * height, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    titles, labels = section.subject.class_titles, section.result.labels
    for n, example in enumerate(examples):
        line, column = divmod(n, columns)
        preds = [
            f"{head}: {to_plain_text(guess, 16)}" for head, (guess, _) in example.heads.items()
        ] or [
            f"{to_plain_text(guess, 20)}, {100 * score:.0f} %"
            for guess, score in example.guesses[:2]
        ]
        label = to_plain_text(titles[int(labels[example.index])], 22)
        axes = grid[line * height][column]
        axes.imshow(_decode(example.thumbnail))
        axes.set_title("\n".join([f"labeled {label}", *preds]), fontsize=7)
        for below, name in enumerate(tokens, 1):
            if name in example.maps:
                axes = grid[line * height + below][column]
                axes.imshow(_decode(example.maps[name], under=example.thumbnail))
                axes.set_title(name, fontsize=6)
    return figure


def _decode(image: bytes, under: bytes | None = None) -> Any:
    """Return an image's pixels; one that is not opaque is laid over `under`."""
    top = Image.open(io.BytesIO(image)).convert("RGBA")
    if under is None:
        return np.asarray(top)
    ground = Image.open(io.BytesIO(under)).convert("RGBA").resize(top.size)
    return np.asarray(Image.alpha_composite(ground, top))


def draw_comparison(sections: Sequence[ModelSection]) -> Any:
    """Draw top-1 of each model with its interval, and of each head."""
    figure = new_figure(9, 1.6 + 0.5 * len(sections), "top-1 with its 95 % interval")
    axes = figure.subplots()
    results = [section.result for section in sections]
    for line, result in enumerate(results):
        interval = result.top1_interval
        error = [[result.top1 - interval.lower], [interval.upper - result.top1]]
        axes.errorbar(result.top1, line, xerr=error, fmt="o", color=CORRECT, capsize=4)
        for mark, (rule, title) in zip("x+sd", HEAD_TITLES.items(), strict=True):
            if result.heads and rule in result.heads:
                is_new = title not in axes.get_legend_handles_labels()[1]
                style = {"color": WRONG, "fillstyle": "none", "label": title if is_new else None}
                axes.plot(result.heads[rule], line, mark, **style)
    axes.set_yticks(range(len(results)), [to_plain_text(r.name, 40) for r in results])
    axes.set(ylim=(len(results) - 0.5, -0.5), xlabel="%")
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return figure


def draw_run(curves: Curves) -> Any:
    """Draw loss, accuracy and learning rate of a run."""
    figure = new_figure(13, 4, curves.run)
    loss, accuracy, rate = figure.subplots(1, 3)
    steps, epochs = curves.steps, curves.epochs
    at = [s["step"] / curves.steps_per_epoch for s in steps]
    x = [e["epoch"] for e in epochs]
    for part in curves.losses:
        loss.plot(at, [s.get(part) for s in steps], label=part, linewidth=1, alpha=0.85)
    loss.plot(x, [e["val_loss"] for e in epochs], "k.-", label="validation")
    for head in curves.heads:
        accuracy.plot(x, curves.list_top1(head), ".-", label=HEAD_TITLES[head])
    if not curves.heads:
        accuracy.plot(x, curves.list_metric(), ".-", label=curves.metric_title)
    if curves.teacher_top1 is not None:
        accuracy.axhline(curves.teacher_top1, color="gray", linestyle="--", label="teacher")
    rate.plot(at, [s["lr"] for s in steps], color="tab:green")
    for axes, name in (
        (loss, "loss"),
        (accuracy, f"validation {curves.metric_title}, %"),
        (rate, "learning rate"),
    ):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    loss.legend(fontsize=8)
    accuracy.legend(fontsize=8)
    return figure
