"""How the library speaks without printing: it calls a `Reporter`, and the caller decides what is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """One running step: a bar on a terminal, a line every few seconds elsewhere."""

    def advance(self, amount: int = 1, **fields: object) -> None:
        """Count `amount` more units done; `fields` are shown beside the bar (loss, accuracy)."""

    def skip(self, amount: int) -> None:
        """Count units that were done before, which say nothing of the speed."""


class Reporter(Protocol):
    """Where a workflow says what it is doing."""

    def note(self, message: str) -> None:
        """Say something worth knowing."""

    def warn(self, message: str) -> None:
        """Say something the user should act on or know before trusting the result."""

    def task(
        self, label: str, total: int | None, unit: str = "images"
    ) -> AbstractContextManager[Task]:
        """Open a step of `total` units (None: unknown)."""


class _SilentTask:
    def advance(self, amount: int = 1, **fields: object) -> None:
        pass

    def skip(self, amount: int) -> None:
        pass


class SilentReporter:
    """The library's default: says nothing."""

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
    """Yield `items`, counting each one in a task of `reporter`."""
    with reporter.task(label, total, unit) as task:
        for item in items:
            yield item
            task.advance()
