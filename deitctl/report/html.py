"""The report as one HTML file that works offline.

Page, style, scripts, and the contents as JSON are in the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.metrics import ReliabilityBin
from deitctl.paths import write_bytes
from deitctl.report.contents import (
    GALLERY_TITLES,
    HEAD_TITLES,
    OUTSIDE,
    Contents,
    Curves,
    Example,
    ModelSection,
    count_classes,
    count_pairs,
    list_confusions,
)
from deitctl.report.labels_contents import LabelsContents
from deitctl.report.summary import render_summary

SCRIPTS = (
    "dom.js",
    "images.js",
    "matrix.js",
    "table.js",
    "confusion.js",
    "classes.js",
    "chart.js",
    "reliability.js",
    "curves.js",
    "page.js",
    "frame.js",  # last: the bar is as high as it gets
)
MAX_LISTED = 5_000
"""Images up to which all are listed by name; of more, only the mistakes."""
MAX_LISTED_MISTAKES = 20_000
"""Mistakes that are listed by name, the most confident first."""
MAX_CURVE_POINTS = 1_000
MAX_CONFUSIONS = 12


def write_page(contents: Contents, path: Path) -> None:
    """Write a report as one HTML file that loads nothing and sends nothing.

    Raises:
        DiskError: the file cannot be written.
    """
    # A file name on disk need not be valid text.
    write_bytes(path, render_page(contents).encode("utf-8", "replace"))


def render_page(contents: Contents) -> str:
    """Return the page."""
    return fill_page(
        contents,
        SCRIPTS,
        render_summary(contents),
        _name_sections(contents),
        build_payload(contents),
    )


def fill_page(
    contents: Contents | LabelsContents,
    scripts: Sequence[str],
    summary: str,
    sections: Mapping[str, str],
    payload: Mapping[str, Any],
) -> str:
    """Return a page.

    Args:
        contents: its title, version and command.
        scripts: names of the files that draw it.
        summary: its first section, HTML.
        sections: titles of the others by their ids.
        payload: JSON values that the scripts draw.
    """
    style = _read_part("page.css")
    script = "\n".join(_read_part(name) for name in scripts)
    links = {"summary": "Summary", **sections}
    # Template substitutes once: a `$` in a class name or path is not expanded again.
    return Template(_read_part("page.html")).substitute(
        # Only this style and this script: class names and paths in the page can neither run nor
        # load anything.
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        title=escape(contents.title),
        created=escape(contents.created),
        version=escape(contents.version),
        command=escape(contents.command),
        summary=summary,
        links="".join(f'<a href="#{name}">{title}</a>' for name, title in links.items()),
        sections="".join(
            f'<section id="{name}" hidden><h2>{title}</h2></section>'
            for name, title in sections.items()
        ),
        # Data, not script: the page's scripts set it with textContent, so names are text, whatever
        # is in them.
        contents=_dump_json(payload),
    )


def _name_sections(contents: Contents) -> dict[str, str]:
    galleries = dict(GALLERY_TITLES)
    if not any(section.result.heads for section in contents.sections):
        del galleries["disagreements"]
    return {
        "confusion": "Confusion",
        "classes": "Classes",
        "reliability": "Reliability",
        **({"curves": "Curves"} if contents.curves else {}),
        **galleries,
    }


def build_payload(contents: Contents) -> dict[str, Any]:
    """Return what the page's scripts draw, as JSON values."""
    images: dict[bytes, int] = {}  # each image once, whichever galleries show it
    models = [_build_model(section, images) for section in contents.sections]
    # Only images that the page can show have a name in it.
    indices = {index for model in models for index in model["listed"]["index"]}
    indices |= {
        example["index"]
        for model in models
        for gallery in model["galleries"].values()
        for example in gallery
    }
    return {
        "models": models,
        "data": _build_data(contents.sections[0], sorted(indices)),
        "images": [to_data_uri(image) for image in images],
        "curves": build_curves(contents.curves) if contents.curves else None,
    }


def _build_model(section: ModelSection, images: dict[bytes, int]) -> dict[str, Any]:
    result, preds = section.result, section.preds
    listed = _select_listed(section)
    titles = {int(n): section.get_outside_title(n) for n in listed if preds[n] == OUTSIDE}
    confusions = list_confusions(section, MAX_CONFUSIONS)
    outside = sorted({*titles.values(), *(title for _, _, title, _ in confusions if title)})
    return {
        "name": result.name,
        "cells": [values.tolist() for values in count_pairs(section)],
        "per_class": [values.tolist() for values in count_classes(section)],
        "confusions": confusions,
        "outside": outside,
        "listed": {
            "index": listed.tolist(),
            "label": result.labels.numpy()[listed].tolist(),
            "pred": preds[listed].tolist(),
            "outside": [outside.index(titles[n]) if n in titles else OUTSIDE for n in listed],
            # Three digits are what the page shows.
            "confidence": [round(float(c), 3) for c in result.confidences.numpy()[listed]],
            "mistakes_only": len(preds) > MAX_LISTED,
        },
        "ece": result.ece,
        "reliability": _build_bins(result.reliability),
        "calibration": result.calibration
        and {
            "temperature": result.calibration.temperature,
            "ece": result.calibration.ece,
            "num_images": result.calibration.num_images,
            "reliability": _build_bins(result.calibration.reliability),
        },
        "galleries": {
            name: [_build_example(section, example, images) for example in gallery]
            for name, gallery in section.galleries.items()
        },
    }


def _select_listed(section: ModelSection) -> NDArray[np.int64]:
    """Return the rows of the images that are listed by name, the most confident first."""
    order: NDArray[np.int64] = np.argsort(-section.result.confidences.numpy(), kind="stable")
    if len(order) > MAX_LISTED:
        order = order[~section.result.correct.numpy()[order]][:MAX_LISTED_MISTAKES]
    return order


def _build_data(section: ModelSection, rows: Sequence[int]) -> dict[str, Any]:
    subject, indices = section.subject, section.result.indices
    names = [str(subject.dataset.name(int(indices[row]))) for row in rows]
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    root = "".join(
        f"{level[0]}/" for level in takewhile(lambda level: len(set(level)) == 1, levels)
    )
    return {
        "classes": [str(title) for title in subject.class_titles],
        "root": root,
        "names": {row: name.removeprefix(root) for row, name in zip(rows, names, strict=True)},
    }


def _build_example(
    section: ModelSection, example: Example, images: dict[bytes, int]
) -> dict[str, Any]:
    def store(image: bytes) -> int:
        return images.setdefault(image, len(images))

    return {
        "index": int(example.index),
        "label": int(section.result.labels[example.index]),
        "guesses": [[title, round(float(score), 4)] for title, score in example.guesses],
        "image": store(example.thumbnail),
        "maps": {name: store(image) for name, image in example.maps.items()},
        "heads": {
            name: [title, round(float(score), 4)] for name, (title, score) in example.heads.items()
        },
    }


def _build_bins(bins: Sequence[ReliabilityBin]) -> list[list[float]]:
    return [[b.lower, b.upper, b.num_images, b.confidence, b.accuracy] for b in bins]


def build_curves(curves: Curves) -> dict[str, Any]:
    """Return what the curves of a run are drawn from, as JSON values."""
    # A regular part rather than averages: what is drawn was logged. The page states it.
    every = max(1, math.ceil(len(curves.steps) / MAX_CURVE_POINTS))
    steps, epochs = curves.steps[::every], curves.epochs
    top1 = {HEAD_TITLES[rule]: curves.list_top1(rule) for rule in curves.heads}
    return {
        "run": curves.run,
        "at": [s["step"] / curves.steps_per_epoch for s in steps],
        "losses": {name: [s.get(name) for s in steps] for name in curves.losses},
        "lr": [s.get("lr") for s in steps],
        "epochs": [e["epoch"] for e in epochs],
        "val_loss": [e["val_loss"] for e in epochs],
        "metric": curves.metric_title,
        "top1": top1 or {curves.metric_title: curves.list_metric()},
        "teacher_top1": curves.teacher_top1,
        "every": every,
    }


def _dump_json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in, nor be parsed as HTML."""
    text = json.dumps(_round(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _round(value: Any) -> Any:
    """Round to six digits; NaN and infinities, which JSON does not have, become null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _round(v) for key, v in value.items()}
    return [_round(v) for v in value] if isinstance(value, list | tuple) else value


def to_data_uri(image: bytes) -> str:
    """Return an encoded image as an address that holds it."""
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _hash(text: str) -> str:
    """Return a source expression of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_part(name: str) -> str:
    return files("deitctl.report").joinpath("page", name).read_text(encoding="utf-8")
