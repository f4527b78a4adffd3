"""One HTML file that opens offline: the page, its style and script, and the contents as JSON within it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from deitctl.paths import write_bytes
from deitctl.report.contents import (
    HEAD_NAMES,
    OUTSIDE,
    Bin,
    Contents,
    Curves,
    Data,
    Evaluated,
    Example,
    confusion,
    most_confused,
    per_class,
)
from deitctl.report.summary import summary

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
)
ALL_NAMES = 5_000
"""Images up to which all of them are listed by name; of more, the mistakes alone."""
MOST_NAMES = 20_000
"""Mistakes that are listed by name, the most confident first."""
MOST_POINTS = 1_000
"""Steps of a run that are drawn."""
MOST_CONFUSED = 12
"""Pairs of classes in the list of those most often confused."""


def write_report(contents: Contents, path: Path) -> None:
    """Write a report as one HTML file that loads nothing and sends nothing.

    Args:
        contents: what it says.
        path: the file, replaced if it is there.

    Raises:
        DeitctlError: it cannot be written.
    """
    write_bytes(
        path, page(contents).encode("utf-8", "replace")
    )  # a name on disk need not be valid text


def page(contents: Contents) -> str:
    """Return the whole page."""
    style = _part("page.css")
    script = "\n".join(_part(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = _sections(contents)
    return Template(_part("page.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        title=escape(contents.title),
        created=escape(contents.created),
        version=escape(contents.version),
        command=escape(contents.command),
        summary=summary(contents),
        links="".join(
            f'<a href="#{name}">{label}</a>'
            for name, label in {"summary": "Summary", **sections}.items()
        ),
        sections="".join(
            f'<section id="{name}" hidden><h2>{label}</h2></section>'
            for name, label in sections.items()
        ),
        contents=_json(payload(contents)),
    )


def _sections(contents: Contents) -> dict[str, str]:
    sections = {"confusion": "Confusion", "classes": "Classes", "reliability": "Reliability"}
    if contents.curves:
        sections["curves"] = "Curves"
    names = {
        "mistakes": "Most confident mistakes",
        "unsure": "Least sure hits",
        "disagreements": "Heads that disagree",
    }
    return sections | {
        key: name
        for key, name in names.items()
        if key != "disagreements" or any(e.heads for e in contents.evaluated)
    }


def payload(contents: Contents) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON values."""
    data = list({id(e.data): e.data for e in contents.evaluated}.values())
    images: dict[bytes, int] = {}  # each image once, whichever galleries show it
    evaluated = [_evaluated(e, data, images) for e in contents.evaluated]
    listed: dict[int, set[int]] = {n: set() for n in range(len(data))}
    for e in evaluated:
        listed[e["data"]] |= {
            *e["listed"]["at"],
            *(x["at"] for g in e["galleries"].values() for x in g),
        }
    return {
        "evaluated": evaluated,
        "data": [_data(d, sorted(listed[n])) for n, d in enumerate(data)],
        "images": [_data_uri(image) for image in images],
        "curves": _curves(contents.curves) if contents.curves else None,
    }


def _evaluated(e: Evaluated, data: Sequence[Data], images: dict[bytes, int]) -> dict[str, Any]:
    labels, answers, counts = confusion(e)
    listed = _listed(e)
    outside = sorted(set(e.outside.values()))
    place = {name: n for n, name in enumerate(outside)}
    return {
        "name": e.name,
        "data": next(n for n, d in enumerate(data) if d is e.data),
        "cells": [labels.tolist(), answers.tolist(), counts.tolist()],
        "perClass": [part.tolist() for part in per_class(e)],
        "confused": [list(pair) for pair in most_confused(e, MOST_CONFUSED)],
        "outside": outside,
        "listed": {
            "at": listed.tolist(),
            "label": e.data.labels[listed].tolist(),
            "answer": e.predicted[listed].tolist(),
            "outside": [place.get(e.outside.get(int(n), ""), OUTSIDE) for n in listed],
            "confidence": [round(float(c), 3) for c in e.confidences[listed]],
            "mistakesOnly": len(e.data.labels) > ALL_NAMES,
            "mistakes": int((~e.correct).sum()),
        },
        "ece": e.ece,
        "reliability": _bins(e.reliability),
        "calibrated": e.calibrated
        and {
            "temperature": e.calibrated.temperature,
            "ece": e.calibrated.ece,
            "note": e.calibrated.note,
            "reliability": _bins(e.calibrated.reliability),
        },
        "galleries": {
            name: [_example(e, x, images) for x in gallery] for name, gallery in e.examples.items()
        },
    }


def _listed(e: Evaluated) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Choose the images that are listed by name: all of a few, of many the mistakes; the most confident first."""
    order = np.argsort(-e.confidences, kind="stable")
    return order if len(order) <= ALL_NAMES else order[~e.correct[order]][:MOST_NAMES]


def _data(data: Data, listed: Sequence[int]) -> dict[str, Any]:
    names = [str(data.names[n]) for n in listed]
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    root = "".join(
        f"{level[0]}/" for level in takewhile(lambda level: len(set(level)) == 1, levels)
    )
    return {
        "name": data.name,
        "classes": [str(c) for c in data.classes],
        "images": len(data.labels),
        "root": root,
        "names": {n: name.removeprefix(root) for n, name in zip(listed, names, strict=True)},
    }


def _example(e: Evaluated, example: Example, images: dict[bytes, int]) -> dict[str, Any]:
    def place(image: bytes) -> int:
        return images.setdefault(image, len(images))

    return {
        "at": int(example.index),
        "label": int(e.data.labels[example.index]),
        "guesses": [[label, round(float(score), 4)] for label, score in example.guesses],
        "image": place(example.thumbnail),
        "maps": {name: place(image) for name, image in (example.maps or {}).items()},
        "heads": {
            name: [label, round(float(s), 4)] for name, (label, s) in (example.heads or {}).items()
        },
    }


def _bins(bins: Iterable[Bin]) -> list[list[float]]:
    return [
        [
            b.lower,
            b.upper,
            b.num_images,
            b.confidence if b.num_images else 0,
            b.accuracy if b.num_images else 0,
        ]
        for b in bins
    ]


def _curves(curves: Curves) -> dict[str, Any]:
    every = max(1, math.ceil(len(curves.steps) / MOST_POINTS))
    steps, epochs = curves.steps[::every], curves.epochs
    per_epoch = epochs[0]["step"] if epochs else 1
    top1 = {HEAD_NAMES[rule]: [e["heads"][rule] for e in epochs] for rule in curves.heads}
    return {
        "run": curves.run,
        "at": [s["step"] / per_epoch for s in steps],
        "losses": {name: [s.get(name) for s in steps] for name in curves.losses},
        "rate": [s.get("lr") for s in steps],
        "epochs": [e["epoch"] for e in epochs],
        "validation": [e["val_loss"] for e in epochs],
        "top1": top1 or {"top-1": [e["top1"] for e in epochs]},
        "teacher": curves.teacher_top1,
        "every": every,
    }


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in, nor be taken for HTML."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for by null: a loss that was not finite."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _hash(text: str) -> str:
    """Return a source expression of a Content-Security-Policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return files("deitctl.report").joinpath("page", name).read_text(encoding="utf-8")
