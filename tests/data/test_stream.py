"""Streams give the same batches for any number of loaders, and end in one line whatever happens to one."""

from __future__ import annotations

import errno
import faulthandler
import gc
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from deitctl.data import loader_pool, loader_process, stream
from deitctl.data.channel import Channel
from deitctl.data.stream import batched_range, stream_batches
from deitctl.errors import DataError, LoaderLost

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="on Windows these take seconds")
STOPPED = signal.SIGSTOP if hasattr(signal, "SIGSTOP") else 0


@pytest.fixture(autouse=True)
def _leave_no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loader_pool, "POLL_S", 0.05)
    monkeypatch.setattr(loader_process, "POLL_S", 0.05)
    monkeypatch.setattr(stream, "POLL_S", 0.05)
    yield
    assert multiprocessing.active_children() == []


def double(number: int) -> int:
    return 2 * number


def quiet_double(number: int) -> int:
    faulthandler.disable()  # pytest's, which describes a signal on stderr
    return 2 * number


def load(function: Callable[[int], Any] = double, count: int = 40, **options: Any) -> Any:
    options = {"workers": 2, **options}
    return stream_batches(function, list, batched_range(count, 4), **options)


def kill_after_first(batches: Iterator[Any], signum: int, which: int = 0) -> None:
    """Take a batch, then signal a loader and wait until it is ended or stopped."""
    next(batches)
    process = sorted(multiprocessing.active_children(), key=lambda p: p.pid or 0)[which]
    assert process.pid is not None
    os.kill(process.pid, signum)
    if signum != STOPPED:
        process.join(5)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 4])
def test_batches_and_their_order_do_not_depend_on_the_loaders(workers, ahead):
    expected = [[2 * n for n in part] for part in batched_range(41, 4)]
    assert list(load(count=41, workers=workers, ahead=ahead)) == expected


def test_ranges_cover_every_number_once():
    assert [list(part) for part in batched_range(5, 2)] == [[0, 1], [2, 3], [4]]
    assert list(batched_range(0, 2)) == []


def test_a_stream_of_nothing_ends():
    assert list(load(count=0)) == []


def test_keys_are_read_as_far_ahead_as_batches_are_prepared():
    taken = []

    def keys() -> Iterator[list[int]]:
        for n in range(20):
            taken.append(n)
            yield [n]

    with closing(stream_batches(double, list, keys(), workers=2, ahead=3)) as batches:
        assert taken == []  # nothing before the first batch is asked for
        for n in range(5):
            assert next(batches) == [2 * n]
            assert len(taken) == 2 * 3 + n + 1


def test_loaders_work_at_the_same_time():
    def sleep(number: int) -> int:
        time.sleep(0.05)
        return os.getpid()

    pids = list(itertools.chain(*load(sleep, count=16)))
    assert len(set(pids)) == 2
    assert pids[:4] == [pids[0]] * 4 != pids[4:8]


@pytest.mark.parametrize(
    ("signum", "words"),
    [
        ("SIGKILL", "ended by SIGKILL, most often because memory ran out"),
        ("SIGBUS", "ended by SIGBUS, most often because a file that it read was cut"),
        ("SIGXCPU", "ended by SIGXCPU."),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_a_lost_loader_is_one_line_at_once(signum, words, which):
    with closing(load(quiet_double, count=400)) as batches:
        kill_after_first(batches, getattr(signal, signum), which)
        start = time.monotonic()
        with pytest.raises(LoaderLost, match=words) as lost:
            next(batches)
        assert "--workers 0" in lost.value.hint
        assert time.monotonic() - start < 1


def test_a_loader_that_exits_is_lost():
    with pytest.raises(LoaderLost, match=r"A loader process ended \(exit code 7\)"):
        list(load(lambda n: os._exit(7)))


def raise_it(error: BaseException) -> Callable[[int], Any]:
    def load_or_raise(number: int) -> int:
        if number == 9:
            raise error
        return number

    return load_or_raise


class Picky(Exception):
    """Cannot be made from its own arguments."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


@pytest.mark.parametrize("workers", [0, 2])
def test_exceptions_come_as_they_were_raised(workers):
    with pytest.raises(DataError) as caught:
        list(load(raise_it(DataError("x.png is empty.", "Remove it.")), workers=workers))
    assert str(caught.value) == "x.png is empty. Remove it."
    with pytest.raises(KeyError, match="nine") as missing:
        list(load(raise_it(KeyError("nine")), workers=workers))
    notes = "".join(getattr(missing.value, "__notes__", []))
    assert ("in load_or_raise" in notes) == bool(workers)


def test_batches_before_an_exception_come_first():
    batches = load(raise_it(KeyError("nine")))
    assert [next(batches), next(batches)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(KeyError):
        next(batches)


@pytest.mark.parametrize(
    "error", [Picky("a", "b"), KeyError(threading.Lock())], ids=["arguments", "contents"]
)
def test_exceptions_that_cannot_be_sent_are_named(error):
    with pytest.raises(RuntimeError, match=f"{type(error).__name__} in a loader process") as caught:
        list(load(raise_it(error)))
    assert "in load_or_raise" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_in_a_loader_is_an_error_of_the_parents(error):
    with pytest.raises(RuntimeError, match=f"{type(error).__name__} in a loader process"):
        list(load(raise_it(error)))


def test_a_message_that_breaks_off_ends_the_loader_and_not_the_next_batch(monkeypatch):
    send, parent, sent = Channel._send_bytes, os.getpid(), []

    def send_half(self: Channel, data: bytes | memoryview, *wait: Any) -> None:
        if os.getpid() != parent and len(data) == 100_000:
            sent.append(data)
            if len(sent) == 2:
                send(self, data[:50_000])
                raise OSError(errno.ENOBUFS, "No buffer space available")
        send(self, data)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(Channel, "_send_bytes", send_half)
    make = partial(torch.full, (100_000,), dtype=torch.uint8)
    with closing(stream_batches(make, list, ([n] for n in range(6)), workers=1)) as batches:
        assert next(batches)[0].unique().tolist() == [0]
        with pytest.raises(LoaderLost, match="could not send a batch"):
            next(batches)


class Unreadable:
    """Keys that can be pickled, and not be read again."""

    def __reduce__(self) -> Any:
        return refuse_to_load, ()


def refuse_to_load() -> None:
    raise LookupError("no such class")


def test_keys_that_a_loader_cannot_read_are_an_exception():
    keys = [[0], [1], [Unreadable()], [3]]
    batches: Any = stream_batches(double, list, keys, workers=1, ahead=4)  # type: ignore[arg-type,type-var]
    assert [next(batches), next(batches)] == [[0], [2]]
    with pytest.raises(LookupError, match="no such class"):
        next(batches)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS has no limit that is as simple")
def test_a_data_set_that_holds_every_descriptor_still_gets_keys():
    """Keys come in the socket: a file would need a descriptor."""

    def hold_all(text: str) -> int:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        return len(text)

    import resource

    held: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # those that this process has open already, shards of other tests for example, and some more
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, limit), hard))
    try:
        keys = ([text] for text in ["x" * 100_000] * 4)
        assert list(stream_batches(hold_all, list, keys, workers=1)) == [[100_000]] * 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_loaders_draw_their_own_numbers_and_the_same_ones_again():
    def draw(_: int) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        batches = list(load(draw, count=8))
        drawn = [x for batch in batches for sample in batch for x in sample]
        assert len(set(drawn)) == 2 * 4 * 3
        assert list(load(draw, count=8)) == batches
        torch.manual_seed(6)
        assert list(load(draw, count=8)) != batches


def test_no_handler_of_the_parents_is_left_in_a_loader():
    def list_handlers(_: int) -> list[str]:
        signums = signal.valid_signals()
        handled = [signal.Signals(n).name for n in signums if callable(signal.getsignal(n))]
        return [*handled, str(signal.set_wakeup_fd(-1))]

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.signal(signal.SIGXCPU, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer)
    try:
        assert list(load(list_handlers, count=2, workers=1)) == [[["-1"], ["-1"]]]
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGXCPU, previous)
        os.close(reader)
        os.close(writer)


def test_samples_that_cannot_be_sent_are_an_exception():
    with pytest.raises(TypeError, match="pickle"):
        list(load(lambda n: threading.Lock()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Memory ran out in a loader process. .*--workers 0"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files.*ulimit -n 4096"),
        (RuntimeError("can't start new thread"), "cannot start a thread.*--workers 0"),
    ],
)
def test_shortages_in_a_loader_are_one_line(error, words):
    with pytest.raises(LoaderLost, match=words):
        list(load(raise_it(error)))


def test_loaders_that_cannot_be_started_are_one_line(monkeypatch):
    def refuse() -> int:
        if len(multiprocessing.active_children()) == 1:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    fork = os.fork
    monkeypatch.setattr(os, "fork", refuse)
    words = "No loader process can be started: Resource temporarily unavailable. .*--workers 0"
    with pytest.raises(LoaderLost, match=words):
        list(load())


def test_too_few_descriptors_to_start_are_one_line():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
    try:
        with pytest.raises(LoaderLost, match=r"too many open files .*ulimit -n 4096"):
            list(load(workers=8))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("ending", ["close", "garbage", "exception"])
def test_loaders_end_with_their_stream(ending):
    batches = load(count=400)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    if ending == "close":
        batches.close()
    elif ending == "exception":
        with pytest.raises(KeyError):
            batches.throw(KeyError)
    else:
        ring: list[Any] = [batches]
        ring.append(ring)
        del batches, ring
        gc.collect()
    assert multiprocessing.active_children() == []


def stop_all_after_first(batches: Iterator[Any]) -> None:
    next(batches)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)


class Stop(Exception):
    pass


@pytest.mark.parametrize("pin", [None, list])
def test_signals_are_obeyed_while_loaders_are_stopped(pin):
    calls = []

    def pause() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with closing(load(count=4000, pause=pause, pin=pin)) as batches:
        stop_all_after_first(batches)
        start = time.monotonic()
        with pytest.raises(Stop):
            for _ in batches:
                pass
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("pin", [None, list])
def test_batches_that_do_not_come_are_a_warning_and_then_an_error(pin, monkeypatch, reporter):
    monkeypatch.setattr(stream, "WARN_AFTER_S", 0.2)
    monkeypatch.setattr(stream, "MAX_WAIT_S", 0.6)
    with closing(load(count=4000, reporter=reporter, pin=pin)) as batches:
        stop_all_after_first(batches)
        with pytest.raises(LoaderLost, match="No image came from the loader processes for 1 s"):
            for _ in batches:
                pass
    (warning,) = reporter.warnings
    assert "they wait for the data" in warning


def test_a_loader_that_goes_on_after_a_stop_is_waited_for(monkeypatch):
    with closing(load(count=400)) as batches:
        stop_all_after_first(batches)
        pids = [process.pid for process in multiprocessing.active_children()]
        threading.Timer(0.3, lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]).start()
        assert len(list(batches)) == 99


def test_a_batch_may_take_longer_than_an_image(monkeypatch):
    """What counts is that images are loaded, however large the batch is."""
    monkeypatch.setattr(stream, "MAX_WAIT_S", 0.5)

    def sleep(number: int) -> int:
        time.sleep(0.2)
        return number

    assert list(stream_batches(sleep, list, [range(6)], workers=1)) == [list(range(6))]


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_come_in_order_and_end(workers):
    pinned = load(count=41, workers=workers, pin=lambda batch: ["pinned", *batch])
    assert list(pinned) == [["pinned", *batch] for batch in load(count=41, workers=0)]


def test_exceptions_of_pinning_and_of_loaders_pass_the_thread():
    def refuse(_: Sequence[int]) -> list[int]:
        raise RuntimeError("no pages")

    with pytest.raises(RuntimeError, match="no pages"):
        list(load(pin=refuse))
    with pytest.raises(KeyError, match="nine"):
        list(load(raise_it(KeyError("nine")), pin=list))
    with closing(load(count=400, pin=list)) as batches:
        kill_after_first(batches, signal.SIGKILL)
        with pytest.raises(LoaderLost, match="SIGKILL"):
            list(batches)


def test_a_want_of_memory_for_pinning_is_not_the_loaders():
    def refuse(_: Sequence[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(LoaderLost, match="^Memory ran out while a batch was pinned"):
        list(load(pin=refuse))


def test_a_pin_that_hangs_does_not_keep_the_end_of_a_stream(monkeypatch):
    monkeypatch.setattr(stream, "END_S", 0.1)
    release = threading.Event()

    def hang(batch: list[int]) -> list[int]:
        if batch[0]:
            release.wait(20)
        return batch

    batches = load(count=400, pin=hang)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 5
    release.set()


def test_closing_a_pinned_stream_ends_its_thread():
    batches = load(count=400, pin=list)
    next(batches)
    batches.close()
    assert "deitctl-pin" not in {thread.name for thread in threading.enumerate()}
