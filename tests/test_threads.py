"""Results come in order, errors where they are asked for, and nobody waits for what still runs."""

from __future__ import annotations

import threading
import time

import pytest

from deitctl.threads import AHEAD, NUM_TRIED, NUM_WAITING, DaemonThreads, map_patiently


def test_results_come_in_the_order_of_the_items():
    with DaemonThreads(4) as threads:
        assert list(threads.map(lambda n: (time.sleep(n % 3 / 1000), n * n)[1], range(200))) == [
            n * n for n in range(200)
        ]


def test_items_are_taken_a_bounded_number_ahead():
    taken = []
    with DaemonThreads(2) as threads:
        results = threads.map(str, (taken.append(n) or n for n in range(1000)))
        assert next(results) == "0"
        assert len(taken) <= 2 * AHEAD + 1


def test_an_error_is_raised_where_its_result_is_asked_for():
    with DaemonThreads(2) as threads:
        results = threads.map(lambda n: 1 // n, [1, 0, 1])
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_the_end_waits_for_nothing_and_begins_nothing():
    hold, begun = threading.Event(), []

    def work(n: int) -> None:
        begun.append(n)
        hold.wait(10)

    start = time.monotonic()
    with DaemonThreads(1) as threads:
        futures = [threads.submit(work, n) for n in range(5)]
        while not begun:
            time.sleep(0.001)
    assert time.monotonic() - start < 5
    assert all(future.cancelled() for future in futures[1:])
    hold.set()
    futures[0].result(5)
    assert begun == [0]


@pytest.mark.parametrize(
    ("pause_s", "num_threads", "num_used"), [(0.0, 1, 1), (0.0, 3, 3), (5e-4, 1, NUM_WAITING)]
)
def test_what_is_waited_for_is_waited_for_by_many_threads(
    pause_s: float, num_threads: int, num_used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[int] = set()
    if not pause_s:  # work, of which other programs take the core for two thirds of the time
        monkeypatch.setattr(time, "thread_time", lambda: time.perf_counter() / 3)

    def work(n: int) -> int:
        used.add(threading.get_ident())
        time.sleep(pause_s or 0.001)
        return n * n

    count = 4 * NUM_TRIED
    results = map_patiently(work, range(count), num_threads=num_threads)
    assert list(results) == [n * n for n in range(count)]
    others = used - {threading.get_ident()}
    assert len(others) == (num_used if num_used > 1 else 0)


def test_an_error_is_raised_from_many_threads_too() -> None:
    def work(n: int) -> float:
        time.sleep(5e-4)
        return 1 / (200 - n)

    results = map_patiently(work, range(300))
    assert [next(results) for _ in range(200)] == [1 / (200 - n) for n in range(200)]
    with pytest.raises(ZeroDivisionError):
        next(results)
