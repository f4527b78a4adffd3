"""Errors that a user can fix, which the command line turns into one line and an exit code.

DeitctlError            exit code 1
├── ConfigError         a value in a recipe, a file or a keyword is wrong
│   └── UsageError      the command line itself is wrong (exit code 2)
├── DataError           a data set or an image cannot be used
│   └── ReadError       an image's bytes could not be read
├── ModelError          a model name or a checkpoint cannot be used
│   └── WeightsNotFound no file, no cache and no network gave the weights
├── TeacherError        the teacher cannot teach this data
├── DataChanged         a file that many images are read from was changed while in use
├── StoreLost           a store of files does not answer any more
├── LoaderLost          a loader process ended, or no batch comes any more
├── ExtensionError      a function of the caller's failed, or returned something else than it is to
├── ExportError         the format is not there, or the exported file disagrees with the model
└── Interrupted         SIGINT, SIGTERM or SIGHUP stopped it (exit code 130, 143 or 129)
"""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

NOT_THE_CALLERS = (os.path.dirname(__file__) + os.sep, "site-packages", "<frozen")
"""Of the file of a line: what is no caller's."""


class DeitctlError(Exception):
    """Something a user can fix: `message` says what happened and to what, `hint` what to do."""

    exit_code = 1
    is_reported = False
    """Whether another process of the run prints it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(DeitctlError):
    """A value in a recipe, a file or a keyword is wrong."""


class UsageError(ConfigError):
    """The command line itself is wrong: its options do not exist, fit or go together."""

    exit_code = 2


class DataError(DeitctlError):
    """A data set or an image cannot be used."""


class ReadError(DataError):
    """An image's bytes could not be read, which says nothing about the image: a later read may succeed."""


class ModelError(DeitctlError):
    """A model name or a checkpoint cannot be used."""


class WeightsNotFound(ModelError):
    """No file, no cache and no network gave the weights."""


class TeacherError(DeitctlError):
    """The teacher cannot teach this data."""


class ExportError(DeitctlError):
    """The format is not available, or the exported file disagrees with the model."""


class DataChanged(DeitctlError):
    """A file that many images are read from was changed while in use. Not a `DataError`, which may be one image's."""


class StoreLost(DeitctlError):
    """A store that many images are read from does not answer any more. Not a `DataError`, which may be one image's."""


class LoaderLost(DeitctlError):
    """A loader process ended, or cannot hand its batches over; what was computed before is right."""


class ExtensionError(DeitctlError):
    """A function of the caller's failed, or returned something else than it is to; see docs/extend.md."""

    @classmethod
    def from_exception(cls, what: str, error: BaseException) -> ExtensionError:
        """Return the error of `what`, which raised `error`, with the caller's last line on the way there."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if not any(part in f.filename for part in NOT_THE_CALLERS)]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return cls(f"{what} failed{where}: {reason}")


class Interrupted(DeitctlError):
    """A signal stopped the work; `resume_command` continues it, and `saved` says from what, as a sentence."""

    def __init__(self, signum: int, resume_command: str = "", saved: str = "") -> None:
        super().__init__("Interrupted.")
        self.signum = signum
        self.exit_code = 128 + signum
        self.resume_command = resume_command
        self.saved = saved


class Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP came. Not an `Exception`: code that recovers from failures must not catch it."""

    def __init__(self, signum: int, *, insists: bool = False) -> None:
        super().__init__(signum)
        self.signum = signum
        self.insists = insists
        """Whether it was sent again, so that the work is to stop in the middle of a step."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `Did you mean 'x' or 'y'?` for those of `names` nearest to `name`, or the empty string."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def require_positive(**numbers: object) -> None:
    """Raise `ConfigError` unless each argument is an integer of 1 or more."""
    for name, value in numbers.items():
        try:
            is_valid = operator.index(value) >= 1  # type: ignore[arg-type]
        except TypeError:
            is_valid = False
        if not is_valid:
            raise ConfigError(f"{name} = {value!r}: it is an integer of 1 or more.")
