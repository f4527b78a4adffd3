"""Streams that share loader processes give what each would give alone, and start no other process."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from deitctl.data import loader_pool, loader_process, stream
from deitctl.data.loader_pool import LoaderPool
from deitctl.data.stream import Functions, batched_range, stream_from
from deitctl.errors import LoaderLost

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="on Windows these take seconds")


@pytest.fixture(autouse=True)
def _leave_no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (loader_pool, loader_process, stream):
        monkeypatch.setattr(module, "POLL_S", 0.05)
    yield
    assert multiprocessing.active_children() == []


DOUBLE: Functions[int, int, list[int]] = Functions(lambda n: 2 * n, list)
NEGATE: Functions[int, int, list[int]] = Functions(lambda n: -n, list)


def list_batches(factor: int, length: int = 40) -> list[list[int]]:
    return [[factor * n for n in part] for part in batched_range(length, 4)]


def list_pids() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("pin", [None, list])
def test_streams_that_share_processes_give_what_each_gives_alone(workers, pin):
    with closing(LoaderPool([DOUBLE, NEGATE], workers)) as pool:
        training = stream_from(pool, DOUBLE, batched_range(40, 4), ahead=2, pin=pin)
        with closing(training):
            batches, pids = list(islice(training, 3)), list_pids()
            assert len(pids) == workers
            for _ in range(3):
                assert list(stream_from(pool, NEGATE, batched_range(40, 4), pin=pin)) == (
                    list_batches(-1)
                )
                batches += islice(training, 2)
            assert [*batches, *training] == list_batches(2)
            assert list_pids() == pids


def test_processes_go_on_with_no_more_than_was_to_be_prepared(tmp_path):
    def write(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    writing: Functions[int, int, list[int]] = Functions(write, list)
    with closing(LoaderPool([writing, NEGATE], 2)) as pool:
        training = stream_from(pool, writing, ([n] for n in count()), ahead=3)
        assert next(training) == [0]
        for _ in range(20):  # of which each waits for what was to be prepared before
            assert list(stream_from(pool, NEGATE, batched_range(40, 4))) == list_batches(-1)
        assert len(list(tmp_path.iterdir())) == 1 + 2 * 3
        training.close()


@pytest.mark.parametrize("pin", [None, list])
def test_a_stream_that_is_left_early_leaves_its_processes_to_the_others(pin):
    with closing(LoaderPool([DOUBLE, NEGATE], 2)) as pool:
        training = stream_from(pool, DOUBLE, batched_range(40, 4), pin=pin)
        assert next(training) == [0, 2, 4, 6]
        validation = stream_from(pool, NEGATE, batched_range(400, 4), pin=pin)
        next(validation)
        validation.close()
        pids = list_pids()
        assert list(training) == list_batches(2)[1:]
        assert list(stream_from(pool, NEGATE, batched_range(8, 4))) == list_batches(-1, 8)
        assert list_pids() == pids
        assert "deitctl-pin" not in {thread.name for thread in threading.enumerate()}


def fail(number: int) -> int:
    raise KeyError(number)


def test_an_exception_of_one_stream_is_not_the_others():
    failing: Functions[int, int, list[int]] = Functions(fail, list)
    with closing(LoaderPool([failing, NEGATE], 1)) as pool:
        broken = stream_from(pool, failing, batched_range(8, 4))
        with pytest.raises(KeyError):
            next(broken)
        assert list(stream_from(pool, NEGATE, batched_range(40, 4))) == list_batches(-1)


class Unreadable:
    """Can be pickled, and not be read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_processes_are_replaced_where_a_message_was_not_received_in_full():
    unreadable: Functions[int, Unreadable, list[Unreadable]] = Functions(
        lambda _: Unreadable(), list
    )
    with closing(LoaderPool([unreadable, NEGATE], 2)) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            next(stream_from(pool, unreadable, batched_range(8, 4)))
        pids = list_pids()
        assert list(stream_from(pool, NEGATE, batched_range(40, 4))) == list_batches(-1)
        assert not pids & list_pids()


def test_a_lost_process_is_an_error_of_every_stream():
    with closing(LoaderPool([DOUBLE, NEGATE], 2)) as pool:
        training = stream_from(pool, DOUBLE, batched_range(400, 4))
        next(training)
        process = multiprocessing.active_children()[0]
        process.kill()
        process.join()
        for batches in (stream_from(pool, NEGATE, batched_range(40, 4)), training):
            with pytest.raises(LoaderLost, match="SIGKILL"):
                list(batches)


class Recorded:
    """Writes down what it is to read, and what it reads."""

    def __init__(self, file: Path, seconds: float = 0.0) -> None:
        self.file, self.seconds = file, seconds

    def __getitem__(self, key: int) -> int:
        self.write(f"load {key}")
        time.sleep(self.seconds)
        return key

    def collate(self, samples: Sequence[int]) -> Any:
        return list(samples)

    def prefetch(self, keys: Sequence[int]) -> None:
        self.write(f"prefetch {' '.join(map(str, keys))}")

    def write(self, line: str) -> None:
        with open(self.file, "a") as file:
            file.write(line + "\n")


def test_the_next_batch_is_being_read_while_one_is_decoded(tmp_path, monkeypatch):
    """And what is left of both again, since there may have been no room for it."""
    monkeypatch.setattr(loader_process, "PREFETCH_EVERY", 2)
    reading = Recorded(tmp_path / "0")
    with closing(LoaderPool([reading], 0)) as pool:
        assert list(stream_from(pool, reading, [[1, 2, 3], [4], []])) == [[1, 2, 3], [4], []]
    assert reading.file.read_text().splitlines() == [
        *("prefetch 1 2 3 4", "load 1", "load 2", "prefetch 3 4", "load 3"),
        *("prefetch 4", "load 4"),
    ]


def test_a_loader_reads_ahead_too(tmp_path):
    reading, other = Recorded(tmp_path / "1", seconds=0.005), Recorded(tmp_path / "other")
    with closing(LoaderPool([reading, other], 1)) as pool:
        batches = stream_from(pool, reading, ([n] for n in range(20)), ahead=10)
        assert list(islice(batches, 5)) == [[n] for n in range(5)]
        assert list(stream_from(pool, other, [[7], [8]])) == [[7], [8]]
        assert list(batches) == [[n] for n in range(5, 20)]
    lines = reading.file.read_text().splitlines()
    assert lines[1::2] == [f"load {n}" for n in range(20)]
    alone = [n for n in range(20) if lines[2 * n] == f"prefetch {n}"]
    ahead = [n for n in range(20) if lines[2 * n] == f"prefetch {n} {n + 1}"]
    assert sorted(alone + ahead) == list(range(20))
    assert (
        len(ahead) >= 15
    )  # but the last, that before another stream's, and any whose next came late
    assert "prefetch 7 8" in other.file.read_text()


@pytest.mark.parametrize("pin", [None, list])
def test_what_a_stream_that_is_left_early_has_sent_for_is_not_made(tmp_path, pin):
    reading = Recorded(tmp_path / "1", seconds=0.02)
    with closing(LoaderPool([reading, NEGATE], 1)) as pool:
        for _ in range(2):
            training = stream_from(pool, reading, batched_range(400, 4), ahead=10, pin=pin)
            assert next(training) == [0, 1, 2, 3]
            training.close()
            assert list(stream_from(pool, NEGATE, batched_range(40, 4))) == list_batches(-1)
        pids = list_pids()
        assert next(iter(stream_from(pool, NEGATE, batched_range(4, 4)))) == [0, -1, -2, -3]
        assert list_pids() == pids
    lines = [line for line in reading.file.read_text().splitlines() if line.startswith("load")]
    assert 2 * 4 <= len(lines) < 2 * 30  # of 2 * 44


def test_a_process_that_takes_no_message_is_replaced(monkeypatch):
    with closing(LoaderPool([DOUBLE, NEGATE], 1)) as pool:
        training = stream_from(pool, DOUBLE, batched_range(400, 4))
        next(training)
        monkeypatch.setattr(loader_pool.Loader, "drop", raise_timeout)
        pids = list_pids()
        training.close()
        assert list(stream_from(pool, NEGATE, batched_range(40, 4))) == list_batches(-1)
        assert not pids & list_pids()


def raise_timeout(*_: object) -> None:
    raise TimeoutError
