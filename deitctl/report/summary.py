"""The summary of a report, as HTML that needs no JavaScript: the few figures in words, and what they are of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from deitctl.report.contents import (
    HEAD_NAMES,
    Comparison,
    Contents,
    Data,
    Evaluated,
    Facts,
    Interval,
)

MOST_UNREADABLE = 200
"""Images that could not be read of which the names are shown."""


def summary(contents: Contents) -> str:
    """Return the section `#summary`."""
    one = len(contents.evaluated) == 1
    body = _one(contents.evaluated[0]) if one else _several(contents.evaluated)
    comparisons = "".join(f"<li>{_compared(c)}</li>" for c in contents.comparisons)
    if comparisons:
        body += f'<h3>Image by image</h3><ul class="sentences">{comparisons}</ul>'
    facts = (
        [("", (*contents.facts, *contents.evaluated[0].facts))] if one else [("", contents.facts)]
    )
    facts += [] if one else [(e.name, e.facts) for e in contents.evaluated]
    about = "".join(_facts(name, rows) for name, rows in facts if rows)
    body += (
        f"<details{' open' if one else ''}><summary>What was evaluated</summary>{about}</details>"
        if about
        else ""
    )
    unread = {id(e.data): e.data for e in contents.evaluated if e.data.unreadable}
    return f'<section id="summary"><h2>Summary</h2>{body}{"".join(_unreadable(data) for data in unread.values())}</section>'


def percent(value: float) -> str:
    """Return a percentage with one decimal; 100 and 0 are said of nothing else."""
    if 99.95 <= value < 100 or 0 < value < 0.05:
        return f"{min(max(value, 0.01), 99.99):.2f} %"
    return f"{value:.1f} %"


def _one(e: Evaluated) -> str:
    images = len(e.data.labels)
    tiles = [
        (percent(e.top5), "right within five guesses (top-5)", _between(e, "top5", ".1f")),
        (f"{e.loss:.3f}", "loss (cross-entropy)", _between(e, "loss", ".3f")),
        (f"{e.ece:.3f}", "expected calibration error", _between(e, "ece", ".3f")),
    ]
    if e.calibrated:
        tiles.append(
            (
                f"{e.calibrated.ece:.3f}",
                f"calibration error at temperature {e.calibrated.temperature:.3g}",
                "",
            )
        )
    if e.top1_among is not None:
        among = f"top-1 among the data's {len(e.data.classes):,} classes alone"
        tiles.append((percent(e.top1_among), among, _between(e, "top1_among", ".1f")))
    if e.agreement is not None:
        tiles.append(
            (
                percent(e.agreement),
                "of images on which the heads agree",
                _between(e, "agreement", ".1f"),
            )
        )
    shown = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{value}</dd>{note}</div>" for value, what, note in tiles
    )
    lead = (
        f'<p class="lead"><strong>{percent(e.top1)}</strong> <span>top-1{_interval(e, "top1", ".1f")}, '
        f"{images:,} image{'' if images == 1 else 's'}</span></p>"
    )
    return f'<p class="quiet" dir="auto">{escape(e.name)} on {escape(e.data.name)}</p>{lead}<dl class="tiles">{shown}</dl>{_heads(e)}'


def _heads(e: Evaluated) -> str:
    if not e.heads:
        return ""
    known = any(rule in e.intervals for rule in e.heads)
    rows = "".join(
        f'<tr><th scope="row">{escape(HEAD_NAMES.get(rule, rule))}</th><td class="number">{percent(top1)}</td>'
        + f'<td class="number quiet">{_range(e.intervals.get(rule), ".1f")}</td>' * known
        + "</tr>"
        for rule, top1 in e.heads.items()
    )
    columns = ["top-1"] + ["95 % interval"] * known
    head = "".join(f'<th scope="col" class="number">{column}</th>' for column in columns)
    return _table(f'<th scope="col">answered by</th>{head}', rows)


def _several(evaluated: Sequence[Evaluated]) -> str:
    ends = [end for e in evaluated for end in e.intervals.get("top1", (e.top1, e.top1))]
    best, scale = max(e.top1 for e in evaluated), (min(ends), max(ends))
    heads = list(dict.fromkeys(rule for e in evaluated for rule in e.heads or ()))
    one_data = len({e.data.name for e in evaluated}) == 1
    columns = ["top-1", "95 % interval", "", "top-5", "loss", "calibration error"]
    columns += [HEAD_NAMES.get(rule, rule) for rule in heads] + ["images"]
    rows = ""
    for e in evaluated:
        cells = [
            f"<strong>{percent(e.top1)}</strong>" if e.top1 == best else percent(e.top1),
            _range(e.intervals.get("top1"), ".1f"),
            _whisker(e, *scale),
            percent(e.top5),
            f"{e.loss:.3f}",
            f"{e.ece:.3f}",
            *(percent(e.heads[h]) if e.heads and h in e.heads else "" for h in heads),
            f"{len(e.data.labels):,}",
        ]
        data = "" if one_data else f'<br><span class="quiet">{escape(e.data.name)}</span>'
        figures = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows += f'<tr><th scope="row"><bdi>{escape(e.name)}</bdi>{data}</th>{figures}</tr>'
    head = "".join(f'<th scope="col" class="number">{escape(c)}</th>' for c in columns)
    return _table(f'<th scope="col"></th>{head}', rows)


def _table(head: str, rows: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="table"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _whisker(e: Evaluated, low: float, high: float) -> str:
    """Draw top-1 and its interval on the scale that all rows share."""
    span = max(high - low, 1e-9)
    a, b = e.intervals.get("top1", (e.top1, e.top1))
    x = [6 + 108 * (value - low) / span for value in (a, e.top1, b)]
    return (
        f'<svg class="whisker" width="120" height="16" viewBox="0 0 120 16" aria-hidden="true"><path d="M{x[0]:.1f} 8H{x[2]:.1f}'
        f'M{x[0]:.1f} 4v8M{x[2]:.1f} 4v8"/><circle cx="{x[1]:.1f}" cy="8" r="4"/></svg>'
    )


def _compared(c: Comparison) -> str:
    a, b = (
        f"<bdi><strong>{escape(c.a)}</strong></bdi>",
        f"<bdi><strong>{escape(c.b)}</strong></bdi>",
    )
    low, high = c.interval
    alone = f"The first alone has {c.only_a:,} right, the second alone {c.only_b:,}"
    chance = "p < 0.001" if c.p_value < 0.001 else f"p = {c.p_value:.3f}".rstrip("0").rstrip(".")
    clear = "" if low > 0 or high < 0 else " No difference is shown: the interval holds 0."
    among = " among the data's classes" if c.among_classes else ""
    return (
        f"{a} against {b}: {_signed(c.difference)} points of top-1{among}, 95 % interval {_signed(low)} to "
        f"{_signed(high)}. {alone} (McNemar's exact test: {chance}).{clear}"
    )


def _signed(value: float) -> str:
    said = f"{value:+.1f}"
    return "0.0" if said in ("+0.0", "-0.0") else said.replace("-", "−")


def _facts(name: str, rows: Facts) -> str:
    lines = "".join(
        f'<div><dt>{escape(key)}</dt><dd dir="auto">{escape(value)}</dd></div>'
        for key, value in rows
    )
    heading = f"<h3><bdi>{escape(name)}</bdi></h3>" if name else ""
    return f'{heading}<dl class="facts">{lines}</dl>'


def _unreadable(data: Data) -> str:
    count = len(data.unreadable)
    lines = "".join(
        f"<li><bdi>{escape(name)}</bdi>: {escape(why)}</li>"
        for name, why in data.unreadable[:MOST_UNREADABLE]
    )
    rest = f"<p>and {count - MOST_UNREADABLE:,} more</p>" if count > MOST_UNREADABLE else ""
    images = "image" if count == 1 else "images"
    return (
        f'<details class="warning"><summary>{count:,} {images} of {escape(data.name)} could not be read and '
        f'{"is" if count == 1 else "are"} left out</summary><ul class="names">{lines}</ul>{rest}</details>'
    )


def _interval(e: Evaluated, name: str, form: str) -> str:
    said = _range(e.intervals.get(name), form)
    return f", 95 % interval {said}" if said else ""


def _between(e: Evaluated, name: str, form: str) -> str:
    said = _range(e.intervals.get(name), form)
    return f'<dd class="quiet">95 %: {said}</dd>' if said else ""


def _range(interval: Interval | None, form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""
