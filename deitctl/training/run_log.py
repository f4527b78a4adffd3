"""The records of metrics.jsonl, which may be torn, edited or somebody else's: what is none is passed
over, and a record that is read has the keys and types that whoever draws or judges a run relies on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deitctl.errors import DeitctlError
from deitctl.paths import open_regular

MAX_LOG_BYTES = 1 << 30
"""A day of a hundred steps a second logs 200 MB."""
MAX_LINE_BYTES = 1 << 16
MAX_KEYS = 100
MAX_NUMBER = 1e30
WEIGHTS = ("model", "ema")
PERCENTAGES = ("top1", "top5", "map", "macro_f1", "balanced_accuracy")
"""Metrics of an epoch, in percent or null; an older log has the first two alone."""


def read_records(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a kind, `step` or `epoch`, in their order; none if there is no log.

    Of a step: `step`, and numbers or null under other names, among them `lr`. Of an epoch: `epoch`,
    `step`, `top1` and `top5`, null of several labels an image, which have a `map` instead, `val_loss`,
    `heads`, `weights`, and anything under other names.

    Raises:
        DeitctlError: the log cannot be read.
    """
    try:
        with open_regular(path, MAX_LOG_BYTES) as file:
            # A longer line than any of ours comes in pieces, which are no records.
            while line := file.readline(MAX_LINE_BYTES):
                record = parse_record(line)
                if record is not None and record["kind"] == kind:
                    yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeitctlError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Make it readable, or move it away: the run then goes on without what it logged.",
        ) from error


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of the log, None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or len(record) > MAX_KEYS:
        return None
    match record.get("kind"):
        case "step":
            return _parse_step(record)
        case "epoch":
            return _parse_epoch(record)
    return None


def _parse_step(record: dict[str, Any]) -> dict[str, Any] | None:
    numbers = {name: value for name, value in record.items() if name != "kind"}
    # Names are drawn, where `$` begins a formula.
    if not all(name.isidentifier() and _is_number_or_null(v) for name, v in numbers.items()):
        return None
    return {"lr": None, **record} if _is_count(record.get("step"), 0) else None


def _parse_epoch(record: dict[str, Any]) -> dict[str, Any] | None:
    has_metric = record.get("top1") is not None or "map" in record
    defaults = {"top1": None, "top5": None, "val_loss": None, "heads": None, "weights": WEIGHTS[0]}
    record = defaults | record
    heads = record["heads"]
    is_valid = (
        _is_count(record.get("epoch"), 1)
        and _is_count(record.get("step"), 1)
        and all(record.get(name) is None or _is_percent(record[name]) for name in PERCENTAGES)
        and has_metric
        and _is_number_or_null(record["val_loss"])
        and record["weights"] in WEIGHTS
        and (heads is None or (isinstance(heads, dict) and all(map(_is_percent, heads.values()))))
    )
    return record if is_valid else None


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_NUMBER


def _is_number_or_null(value: Any) -> bool:
    # Compared, because NaN is in no range, and an integer may be too large for a float.
    return value is None or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -MAX_NUMBER <= value <= MAX_NUMBER
    )


def _is_percent(value: Any) -> bool:
    return value is not None and _is_number_or_null(value) and 0 <= value <= 100
