"""Signals are remembered while the work is in pieces, and one that insists is obeyed at once."""

from __future__ import annotations

import signal
import threading

import pytest

from deitctl.errors import Signalled
from deitctl.training import signals as stopping
from deitctl.training.signals import held_signals

NAMES = ["SIGINT", "SIGTERM"]


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_remembered_and_acted_on_where_the_work_is_whole(name: str) -> None:
    signum = getattr(signal, name)
    with held_signals() as stop:
        stop.here()  # nothing came yet
        signal.raise_signal(signum)
        assert stop.signum == signum
        with pytest.raises(Signalled) as stopped:
            stop.here()
    assert stopped.value.signum == signum
    assert not stopped.value.insists


def test_one_press_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with held_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a launcher passes it on in its own way
        assert stop.signum == signal.SIGINT


def test_a_signal_that_is_repeated_later_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with held_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] += stopping.ONE_PRESS
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.01
        with pytest.raises(Signalled) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.insists
        assert stopped.value.signum == signal.SIGTERM
        assert stop.signum == signal.SIGINT


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_a_wish_to_save_is_no_wish_to_stop() -> None:
    with held_signals() as stop:
        assert not stop.save
        for _ in range(3):
            signal.raise_signal(signal.SIGUSR1)
        stop.here()
        assert stop.save


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_signals_are_whose_they_were(fails: bool) -> None:
    numbers = [getattr(signal, n) for n in (*NAMES, "SIGUSR1") if hasattr(signal, n)]
    before = [signal.getsignal(n) for n in numbers]
    try:
        with held_signals():
            assert not set(before) & {signal.getsignal(n) for n in numbers}
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [signal.getsignal(n) for n in numbers] == before


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with held_signals() as stop:
            found.append((stop.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)]
