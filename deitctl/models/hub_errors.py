"""What the hub's client raises, in one line: its errors are those of its transport, which change with its versions."""

from __future__ import annotations

import re


def find_status(error: BaseException) -> int:
    """Return the HTTP status of the hub's answer, 0 if there was none."""
    status = getattr(getattr(find_cause(error), "response", None), "status_code", 0)
    return int(status or 0)


def find_cause(error: BaseException) -> BaseException:
    """Return the error that has the hub's answer, which its client wraps in several; else the innermost."""
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    return error


def to_line(reason: object) -> str:
    """Return a reason in one line of 200 characters at most, without the period at its end."""
    return re.sub(r"\s+", " ", str(reason)).strip().rstrip(".")[:200]
