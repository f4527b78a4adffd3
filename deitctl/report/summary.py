"""The summary of a report, as HTML that needs no JavaScript.

Metrics with their intervals, and what was evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from deitctl.evaluation.bootstrap import PairedComparison
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.result import BaseResult, EvalResult
from deitctl.report.contents import HEAD_TITLES, Contents, Facts

MAX_UNREADABLE = 200
"""Unreadable images that are listed."""


def render_summary(contents: Contents) -> str:
    """Return the section `#summary`."""
    results = [section.result for section in contents.sections]
    one = len(results) == 1
    body = _render_one(results[0]) if one else _render_several(results)
    if contents.comparisons:
        items = "".join(f"<li>{_render_comparison(c)}</li>" for c in contents.comparisons)
        body += f'<h3>Paired comparisons</h3><ul class="sentences">{items}</ul>'
    if one:
        about = render_facts("", [*contents.facts, *contents.sections[0].facts])
    else:
        about = render_facts("", contents.facts)
        about += "".join(render_facts(s.result.name, s.facts) for s in contents.sections)
    body += f"<details{' open' if one else ''}><summary>Setup</summary>{about}</details>"
    body += "".join(map(_render_trained_on, results)) + render_unreadable(results[0])
    return f'<section id="summary"><h2>Summary</h2>{body}</section>'


def format_percent(value: float) -> str:
    """Return a percentage with one decimal, with two where one would round to 100 or 0."""
    # "100.0 %" would say that no image is wrong.
    if 99.95 <= value < 100 or 0 < value < 0.05:
        return f"{min(max(value, 0.01), 99.99):.2f} %"
    return f"{value:.1f} %"


def _render_one(result: EvalResult) -> str:
    tiles = [
        (f"{result.loss:.3f}", "cross-entropy loss", _format_interval(result.loss_interval, ".3f")),
        (f"{result.ece:.3f}", "expected calibration error", ""),
    ]
    if result.top5 is not None:
        interval = _format_interval(result.top5_interval, ".1f")
        tiles.insert(0, (format_percent(result.top5), "top-5 accuracy", interval))
    if fitted := result.calibration:
        title = f"calibration error with fitted temperature {fitted.temperature:.3g}"
        tiles.append((f"{fitted.ece:.3f}", title, ""))
    if result.top1_among_classes is not None:
        title = f"top-1 among the data's {result.num_classes:,} classes only"
        tiles.append((format_percent(result.top1_among_classes), title, ""))
    if result.head_agreement is not None:
        tiles.append((format_percent(result.head_agreement), "head agreement", ""))
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{value}</dd>"
        + (f'<dd class="quiet">95 %: {interval}</dd>' if interval else "")
        + "</div>"
        for value, title, interval in tiles
    )
    interval = _format_interval(result.top1_interval, ".1f")
    images = f"{result.num_images:,} image{'' if result.num_images == 1 else 's'}"
    lead = f"top-1, 95 % interval {interval}, {images}"
    return (
        f'<p class="quiet" dir="auto">{escape(result.name)} on {escape(result.describe_images())}</p>'
        f'<p class="lead"><strong>{format_percent(result.top1)}</strong> <span>{lead}</span></p>'
        f'<dl class="tiles">{cells}</dl>{_render_heads(result)}'
    )


def _render_heads(result: EvalResult) -> str:
    if result.heads is None or result.head_intervals is None:
        return ""
    rows = [
        [
            escape(HEAD_TITLES[rule]),
            format_percent(top1),
            _format_interval(result.head_intervals[rule], ".1f"),
        ]
        for rule, top1 in result.heads.items()
    ]
    return render_table(["head rule", "top-1", "95 % interval"], rows)


def _render_several(results: Sequence[EvalResult]) -> str:
    ends = [r.top1 for r in results]
    for result in results:
        ends += [result.top1_interval.lower, result.top1_interval.upper]
    # One scale for all rows, so that their intervals can be compared by eye.
    best, scale = max(r.top1 for r in results), (min(ends), max(ends))
    heads = list(dict.fromkeys(rule for r in results for rule in r.heads or ()))
    # Without the column where no model has more than five classes.
    top5 = ["top-5"] if any(r.top5 is not None for r in results) else []
    columns = ["", "top-1", "95 % interval", "", *top5, "loss", "calibration error"]
    columns += [*(HEAD_TITLES[rule] for rule in heads), "images"]
    rows = []
    for result in results:
        top1 = format_percent(result.top1)
        rows.append(
            [
                f"<bdi>{escape(result.name)}</bdi>",
                f"<strong>{top1}</strong>" if result.top1 == best else top1,
                _format_interval(result.top1_interval, ".1f"),
                _draw_interval(result, *scale),
                *("" if result.top5 is None else format_percent(result.top5) for _ in top5),
                f"{result.loss:.3f}",
                f"{result.ece:.3f}",
                *(format_percent(result.heads[rule]) if result.heads else "" for rule in heads),
                f"{result.num_images:,}",
            ]
        )
    return render_table(columns, rows)


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column names the rows; cells are HTML."""
    head = f'<th scope="col">{columns[0]}</th>'
    head += "".join(f'<th scope="col" class="number">{escape(c)}</th>' for c in columns[1:])
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="table"><table class="plain">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _draw_interval(result: EvalResult, low: float, high: float) -> str:
    """Draw top-1 and its interval on the scale that all rows share."""
    interval, span = result.top1_interval, max(high - low, 1e-9)
    values = (interval.lower, result.top1, interval.upper)
    a, x, b = (6 + 108 * (value - low) / span for value in values)
    return (
        '<svg class="whisker" width="120" height="16" viewBox="0 0 120 16" aria-hidden="true">'
        f'<path d="M{a:.1f} 8H{b:.1f}M{a:.1f} 4v8M{b:.1f} 4v8"/>'
        f'<circle cx="{x:.1f}" cy="8" r="4"/></svg>'
    )


def _render_comparison(c: PairedComparison) -> str:
    a, b = (f"<bdi><strong>{escape(name)}</strong></bdi>" for name in (c.a, c.b))
    lower, upper = c.interval.lower, c.interval.upper
    # Exact binomial p-values get as small as 1e-100, which nobody reads.
    p = "p < 0.001" if c.p_value < 0.001 else f"p = {c.p_value:.3f}".rstrip("0").rstrip(".")
    among = " among the data's classes" if c.among_classes else ""
    # By the interval of the paired difference. Two overlapping intervals of their own show nothing,
    # as both models saw the same images.
    is_clear = lower > 0 or upper < 0
    return (
        f"{a} minus {b}: {_format_signed(c.top1_difference)} points of top-1{among}, "
        f"95 % interval {_format_signed(lower)} to {_format_signed(upper)}. "
        f"Only {a} correct: {c.only_a_correct:,}; only {b} correct: {c.only_b_correct:,} "
        f"(McNemar's exact test: {escape(p)})."
        + ("" if is_clear else " Not significant: the interval contains 0.")
    )


def _format_signed(value: float) -> str:
    text = f"{value:+.1f}"
    # U+2212 has the width of the plus sign.
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def render_facts(name: str, facts: Facts) -> str:
    """Return names and values as a list, below a heading if there is a name."""
    lines = "".join(
        f'<div><dt>{escape(key)}</dt><dd dir="auto">{escape(value)}</dd></div>'
        for key, value in facts
    )
    heading = f"<h3><bdi>{escape(name)}</bdi></h3>" if name else ""
    return f'{heading}<dl class="facts">{lines}</dl>'


def _render_trained_on(result: EvalResult) -> str:
    if not result.num_train_images:
        return ""
    return (
        f'<p class="warning" role="note">{result.num_train_images:,} of the '
        f"{result.num_images:,} images are training images of <bdi>{escape(result.name)}</bdi>: "
        "these figures say nothing about new images.</p>"
    )


def render_unreadable(result: BaseResult) -> str:
    """Return the images that could not be read, in a fold; empty if there are none."""
    count = len(result.read_errors)
    if not count:
        return ""
    lines = "".join(
        f"<li><bdi>{escape(name)}</bdi>: {escape(reason)}</li>"
        for name, reason in result.read_errors[:MAX_UNREADABLE]
    )
    rest = f"<p>and {count - MAX_UNREADABLE:,} more</p>" if count > MAX_UNREADABLE else ""
    images = "1 image" if count == 1 else f"{count:,} images"
    return (
        f'<details class="warning"><summary>{images} of {escape(result.data)} '
        f"could not be read and {'is' if count == 1 else 'are'} left out</summary>"
        f'<ul class="names">{lines}</ul>{rest}</details>'
    )


def _format_interval(interval: Interval | None, spec: str) -> str:
    return interval.format(spec) if interval else ""
