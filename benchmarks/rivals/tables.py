"""Medians, ratios of the same round, and their spread, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

RATIOS = {  # (of deitctl, of a rival) -> how many times as fast, as cheap
    "images/s": lambda a, b: a["images_per_second"] / b["images_per_second"],
    "whole command": lambda a, b: b["seconds"] / a["seconds"],
    "CPU seconds": lambda a, b: b["cpu"] / a["cpu"],
    "to the same top-1": lambda a, b: time_to_same(b, a) / time_to_same(a, b),
    "memory, share": lambda a, b: a["memory"] / b["memory"],
}


def time_to_same(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the seconds that `one` took to the best top-1 that both reached, from the start of the command."""
    target = min(one["top1"], other["top1"])
    return float(next(seconds for seconds, top1 in one["curve"] if top1 >= target))


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return each contestant's medians, and the median ratios with their range of each pair of deitctl and a rival."""
    names, rounds = list(record["commands"]), [r["runs"] for r in record["rounds"]]
    ours = [n for n in names if n.startswith("deitctl")]
    medians = {name: _medians([r[name] for r in rounds]) for name in names}
    pairs = {
        f"{a} / {b}": {
            what: spread
            for what in RATIOS
            if (spread := _spread(what, [(r[a], r[b]) for r in rounds]))
        }
        for a in ours
        for b in names
        if b not in ours
    }
    return {"medians": medians, "ratios": pairs}


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [r["error"] for r in runs if "error" in r]
    if errors:
        return {"error": errors[0]}
    names = {k for r in runs for k, v in r.items() if isinstance(v, int | float)}
    return {k: statistics.median(r[k] for r in runs if r.get(k) is not None) for k in sorted(names)}


def _spread(
    what: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]
) -> tuple[float, float, float] | None:
    found = []
    for a, b in pairs:
        if "error" in a or "error" in b:
            continue
        try:
            found.append(RATIOS[what](a, b))
        except (
            KeyError,
            TypeError,
            ZeroDivisionError,
            StopIteration,
        ):  # the job has no such figure
            continue
    return (statistics.median(found), min(found), max(found)) if found else None


def markdown(record: dict[str, Any]) -> Iterator[str]:
    """Yield the two tables of a job: who took what, and ratios."""
    found, rounds = summary(record), len(record["rounds"])
    shown = {
        "images/s": ("images_per_second", "{:.2f}"),
        "whole command, s": ("seconds", "{:.1f}"),
        "CPU, s": ("cpu", "{:.1f}"),
        "peak memory, MiB": ("memory", "{:.0f}"),
        "top-1, %": ("top1", "{:.2f}"),
        "other first class than the first row's": ("other first class", "{:.0f}"),
    }
    columns = {t: c for t, c in shown.items() if any(c[0] in m for m in found["medians"].values())}
    yield f"### {record['job']}\n\n{record['question']} {rounds} round(s).\n"
    yield f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    for name, medians in found["medians"].items():
        cells = [
            form.format(medians[key]) if medians.get(key) is not None else ""
            for key, form in columns.values()
        ]
        yield f"| `{name}` | {medians['error'] if 'error' in medians else ' | '.join(cells)} |"
    kinds = [k for k in RATIOS if any(k in ratios for ratios in found["ratios"].values())]
    yield f"\n| times as fast (lowest to highest of the rounds) | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}"
    for pair, ratios in found["ratios"].items():
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(*ratios[k]) if k in ratios else "" for k in kinds
        ]
        yield f"| {pair} | {' | '.join(cells)} |"
    yield ""
