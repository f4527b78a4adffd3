"""Signals are remembered and acted on between two steps; one that is repeated interrupts at once."""

from __future__ import annotations

import signal
import threading

import pytest

from deitctl.errors import Signalled
from deitctl.training import signals as stopping
from deitctl.training.signals import StopRequest, hold_signals

NAMES = ["SIGINT", "SIGTERM"]


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_remembered_until_raise_if_set(name: str) -> None:
    signum = getattr(signal, name)
    stop = StopRequest()
    with hold_signals(stop):
        stop.raise_if_set()  # nothing came yet
        signal.raise_signal(signum)
        assert stop.signum == signum
        with pytest.raises(Signalled) as stopped:
            stop.raise_if_set()
    assert stopped.value.signum == signum
    assert not stopped.value.insists


def test_signals_within_a_second_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    with hold_signals(stop):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a launcher passes it on in its own way
        assert stop.signum == signal.SIGINT


def test_a_signal_repeated_later_raises_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = StopRequest()
    with hold_signals(stop):
        signal.raise_signal(signal.SIGINT)
        now[0] += stopping.REPEAT_WINDOW_S
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.01
        with pytest.raises(Signalled) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.insists
        assert stopped.value.signum == signal.SIGTERM
        assert stop.signum == signal.SIGINT


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_sigusr1_asks_to_save_and_not_to_stop() -> None:
    stop = StopRequest()
    with hold_signals(stop):
        assert not stop.save_requested
        for _ in range(3):
            signal.raise_signal(signal.SIGUSR1)
        stop.raise_if_set()
        assert stop.save_requested


@pytest.mark.parametrize("fails", [False, True])
def test_previous_handlers_are_restored(fails: bool) -> None:
    numbers = [getattr(signal, n) for n in (*NAMES, "SIGUSR1") if hasattr(signal, n)]
    before = [signal.getsignal(n) for n in numbers]
    try:
        with hold_signals(StopRequest()):
            assert not set(before) & {signal.getsignal(n) for n in numbers}
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [signal.getsignal(n) for n in numbers] == before


def test_outside_the_main_thread_handlers_are_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        stop = StopRequest()
        with hold_signals(stop):
            found.append((stop.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)]


def test_the_signal_of_another_process_counts_between_two_steps() -> None:
    stop = StopRequest()
    stop.raise_if_set(0)
    with pytest.raises(Signalled) as stopped:
        stop.raise_if_set(signal.SIGTERM)
    assert stopped.value.signum == signal.SIGTERM
    stop.request_stop(signal.SIGINT)
    stop.raise_if_set(0)  # the others do not know of it yet
