"""Objects come over a socket as they were sent, in a file in memory or in the socket itself."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deitctl.data import channel
from deitctl.data.channel import Channel
from deitctl.data.loader import Batch
from deitctl.data.samplers import SampleKey


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.05)
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


def pass_on(ends: tuple[Channel, Channel], value: Any) -> Any:
    ours, theirs = ends
    sender = threading.Thread(target=theirs.send, args=(value,))
    sender.start()
    received = ours.receive()
    sender.join()
    return received


@pytest.fixture(params=["file", "socket"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Linux has files in memory; macOS and Windows have not."""
    if request.param == "socket":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return request.param


def make_batch(count: int = 40) -> Batch:
    images = torch.arange(count * 3 * 32 * 32).to(torch.uint8).reshape(count, 3, 32, 32)
    return Batch(
        images=images,
        labels=torch.arange(count),
        keys=[SampleKey(0, n, 1) for n in range(count)],
        slots=list(range(count)),
        unreadable=[(SampleKey(0, 99, 0), "x.png is empty")],
        teacher_images=[torch.empty((0, 3, 0, 0), dtype=torch.uint8)],
        teacher_rows=[[]],
    )


def test_a_batch_arrives_as_it_was_sent(way, ends):
    sent = make_batch()
    received = pass_on(ends, sent)
    for ours, theirs in zip(received, sent, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        elif isinstance(theirs, list) and theirs and isinstance(theirs[0], torch.Tensor):
            assert all(map(torch.equal, ours, theirs))
        else:
            assert ours == theirs
    assert type(received.keys[0]) is SampleKey
    received.images.add_(1)  # memory of its own, which may be written
    assert torch.equal(received.images, sent.images + 1)


@pytest.mark.parametrize("value", [None, [], b"x" * 100_000, "text", {"a": [1, 2]}])
def test_any_object_arrives(value, way, ends):
    assert pass_on(ends, value) == value


def test_arrays_are_aligned_and_keep_shape_and_order(way, ends):
    arrays = [np.ones(3, np.uint8), np.arange(9999.0), np.asfortranarray(np.eye(200))]
    for ours, theirs in zip(pass_on(ends, arrays), arrays, strict=True):
        assert np.array_equal(ours, theirs)
        assert ours.flags.aligned


def test_messages_keep_their_order(ends):
    ours, theirs = ends
    theirs.send(1)
    theirs.send_alive()
    theirs.send(make_batch())
    theirs.send(3)
    signs: list[int] = []
    assert ours.receive() == 1
    assert len(ours.receive(lambda: signs.append(1)).keys) == 40
    assert signs == [1]
    assert ours.receive() == 3


def test_a_closed_end_is_the_end(ends):
    ours, theirs = ends
    theirs.end.close()
    with pytest.raises(EOFError):
        ours.receive()
    with pytest.raises(EOFError):
        ours.send(make_batch())


@pytest.mark.parametrize("num_bytes", [1, 8, channel.HEADER.size, channel.HEADER.size + 20])
def test_an_end_in_the_middle_of_a_message_is_the_end(num_bytes, ends):
    ours, theirs = ends
    header = channel.HEADER.pack(channel.INLINE, 1000, 1)
    theirs.end.sendall((header + bytes(100))[:num_bytes])
    theirs.end.close()
    with pytest.raises(EOFError):
        ours.receive()


def test_waiting_calls_back_also_in_the_middle_of_a_message(ends):
    ours, theirs = ends
    calls: list[int] = []

    class Stop(Exception):
        pass

    def wait() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise Stop

    with pytest.raises(Stop):
        ours.receive(wait=wait)
    theirs.end.sendall(channel.HEADER.pack(channel.INLINE, 1000, 1) + bytes(5))
    with pytest.raises(Stop):
        ours.receive(wait=wait)


def test_a_full_socket_waits_for_the_reader(ends, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    ours, theirs = ends
    reader: list[Any] = []
    thread = threading.Timer(0.2, lambda: reader.append(theirs.receive()))
    thread.start()
    ours.send(bytes(3_000_000))
    thread.join()
    assert reader == [bytes(3_000_000)]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS and Windows have no such files")
def test_limits_of_files_and_descriptors_leave_the_socket(ends, monkeypatch):
    import resource

    def refuse(_: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        assert len(pass_on(ends, make_batch()).keys) == 40
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert len(pass_on(ends, make_batch()).keys) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS and Windows have no such files")
def test_a_receiver_without_descriptors_says_so(ends):
    import resource

    ours, theirs = ends
    theirs.send(make_batch())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the lowest number that is free is what the next file would get
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            ours.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="macOS and Windows have no such files")
def test_labels_that_are_kept_keep_no_images_and_no_descriptors(ends):
    """As an evaluation does, of every batch."""
    kept: list[Any] = []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        batch = pass_on(ends, make_batch())
        assert "memfd:deitctl" in Path("/proc/self/maps").read_text()  # the images'
        kept.append((batch.labels, batch.keys, batch.images[0, 0, 0, 0].item()))
    del batch
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/maps").read_text().count("memfd:deitctl") == 0
    assert all(torch.equal(labels, torch.arange(40)) for labels, *_ in kept)
    kept[0][0].add_(1)  # memory of its own, which may be written
    assert torch.equal(kept[1][0], torch.arange(40))
