"""Notes, warnings and progress of the library, which does not print: a `Reporter` receives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """Progress of one step: a bar on a terminal, a line every few seconds elsewhere."""

    def advance(self, amount: int = 1, **fields: object) -> None:
        """Add `amount` to the units done; `fields` (loss, accuracy) are displayed beside the bar."""

    def skip(self, amount: int) -> None:
        """Add units that were done before this start, which do not count for the speed."""


class Reporter(Protocol):
    """Receives the messages and the progress of a function."""

    def note(self, message: str) -> None:
        """Receive information."""

    def warn(self, message: str) -> None:
        """Receive what the user should act on, or know before trusting the result."""

    def task(
        self, label: str, total: int | None, unit: str = "images"
    ) -> AbstractContextManager[Task]:
        """Begin a step of `total` units (None: unknown)."""


class _SilentTask:
    def advance(self, amount: int = 1, **fields: object) -> None:
        pass

    def skip(self, amount: int) -> None:
        pass


class SilentReporter:
    """The default: ignores everything. A base class for reporters that do not."""

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        yield _SilentTask()


def track(
    items: Iterable[T], reporter: Reporter, label: str, total: int | None, unit: str = "images"
) -> Iterator[T]:
    """Yield `items`, and report each as one unit of a task."""
    with reporter.task(label, total, unit) as task:
        for item in items:
            yield item
            task.advance()
