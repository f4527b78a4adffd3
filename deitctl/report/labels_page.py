"""The report of images with several labels each, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.report.html import build_curves, fill_page, to_data_uri
from deitctl.report.labels_contents import (
    MAX_CURVES,
    HardImage,
    LabelsContents,
    LabelsSection,
    compute_threshold_curves,
)
from deitctl.report.summary import render_facts, render_table, render_unreadable

SCRIPTS = ("dom.js", "chart.js", "curves.js", "labels.js", "labels_page.js", "frame.js")


def render_labels_page(contents: LabelsContents) -> str:
    """Return the page."""
    sections = {
        "classes": "Classes",
        "thresholds": "Thresholds",
        "confusions": "Confusions",
        **({"curves": "Curves"} if contents.curves else {}),
        "hard": "Hardest images",
    }
    payload = {
        "models": [_build_model(section) for section in contents.sections],
        "curves": build_curves(contents.curves) if contents.curves else None,
    }
    return fill_page(contents, SCRIPTS, _render_summary(contents), sections, payload)


def _build_model(section: LabelsSection) -> dict[str, Any]:
    result = section.result
    scores = list(result.per_class.values())
    order = np.argsort([-1 if s.average_precision is None else s.average_precision for s in scores])
    drawn = [int(n) for n in order if scores[n].num_images][:MAX_CURVES]
    return {
        "name": result.name,
        "classes": [
            [
                s.title,
                s.num_images,
                s.average_precision,
                s.f1,
                s.precision,
                s.recall,
                s.threshold,
                s.ece,
            ]
            for s in scores
        ],
        "thresholds": {str(n): compute_threshold_curves(result, n) for n in drawn},
        "from_model": result.thresholds_from == "model",
        "confusions": [[c.label, c.predicted, c.num_images] for c in result.confusions],
        "images": [_build_image(image) for image in section.hard_images],
    }


def _build_image(image: HardImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "image": to_data_uri(image.thumbnail),
        "loss": image.loss,
        "missed": [list(pair) for pair in image.missed],
        "wrong": [list(pair) for pair in image.wrong],
        "hits": [list(pair) for pair in image.hits],
    }


def _render_summary(contents: LabelsContents) -> str:
    results = [section.result for section in contents.sections]
    rows = [_list_metrics(result) for result in results]
    table = render_table(
        ["", *(result.name for result in results)],
        [[name, *(dict(row)[name] for row in rows)] for name, _ in rows[0]],
    )
    first = results[0]
    body = f'<p class="quiet" dir="auto">{escape(first.describe_images())}</p>{table}'
    if contents.comparisons:
        items = "".join(
            f"<li><bdi>{escape(c.a)}</bdi> minus <bdi>{escape(c.b)}</bdi>: {c.map_difference:+.2f} points of mAP, "
            f"95 % interval {c.interval.format('+.2f')}.</li>"
            for c in contents.comparisons
            if c.interval is not None and c.map_difference is not None
        )
        body += f'<h3>Paired comparisons</h3><ul class="sentences">{items}</ul>'
    facts = render_facts("", contents.facts) + "".join(
        render_facts(section.result.name if len(results) > 1 else "", section.facts)
        for section in contents.sections
    )
    body += f"<details open><summary>Setup</summary>{facts}</details>{render_unreadable(first)}"
    return f'<section id="summary"><h2>Summary</h2>{body}</section>'


def _list_metrics(result: MultilabelResult) -> Sequence[tuple[str, str]]:
    at = (
        "the model's thresholds" if result.thresholds_from == "model" else "cross-fitted thresholds"
    )
    if result.has_seen_images:
        at += ", which were fitted to these images"

    def show(value: float | None, interval: Interval | None = None) -> str:
        if value is None:
            return "none"
        return f"{value:.2f}" + (f" ({interval.format('.1f')})" if interval else "")

    return [
        ("mAP, % (95 % interval)", show(result.map, result.map_interval)),
        ("micro average precision, %", show(result.micro_ap)),
        ("macro F1, %", show(result.macro_f1, result.macro_f1_interval)),
        ("micro F1, %", show(result.micro_f1, result.micro_f1_interval)),
        ("mean F1 of images, %", show(result.sample_f1, result.sample_f1_interval)),
        ("F1 at", at),
        ("macro F1 at cross-fitted thresholds, %", show(result.fitted.macro_f1)),
        ("micro F1 at these, %", show(result.fitted.micro_f1)),
        ("mean F1 of images at these, %", show(result.fitted.sample_f1)),
        ("loss", f"{result.loss:.4f}"),
        ("calibration error, mean of classes", f"{result.ece:.4f}"),
        ("labels an image", f"{result.labels_per_image:.2f}"),
    ]
