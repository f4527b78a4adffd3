"""The library speaks to a reporter, never to a terminal."""

from __future__ import annotations

from contextlib import contextmanager

from deitctl.events import SilentReporter, track


class Counting(SilentReporter):
    def __init__(self) -> None:
        self.said: list[object] = []

    @contextmanager
    def task(self, label, total, unit="images"):
        self.said.append((label, total, unit))
        yield self
        self.said.append("closed")

    def advance(self, amount=1, **fields):
        self.said.append(amount)


def test_tracking_counts_each_item_after_it_is_done():
    reporter = Counting()
    assert list(track("ab", reporter, "scan", 2, "files")) == ["a", "b"]
    assert reporter.said == [("scan", 2, "files"), 1, 1, "closed"]


def test_silence_says_nothing(capsys):
    reporter = SilentReporter()
    reporter.note("a")
    reporter.warn("b")
    assert list(track([1], reporter, "c", None)) == [1]
    assert capsys.readouterr() == ("", "")
