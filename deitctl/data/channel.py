"""Objects between a process and its loader: over a socket, large ones in files that exist in memory alone.

A socket for each loader, which closes when the loader ends: no lock that a dead process holds, nothing
in /dev/shm (64 MB in a container) and no file with a name.
"""

from __future__ import annotations

import copyreg
import errno
import io
import mmap
import os
import pickle
import socket
import struct
from collections import ChainMap
from collections.abc import Callable
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch import Tensor

HEADER = struct.Struct("<BQI")
"""Of a message: its kind, the bytes that follow, and the blocks in them."""
ALIVE, INLINE, FILE = range(3)
"""Kinds of messages: no object, one whose bytes follow, one in a file whose descriptor comes along."""
MIN_FILE_BYTES = 2**15
"""Smaller objects fit into a socket's buffer, several of them, so that sending does not wait."""
MAX_COPIED_BYTES = 2**16
"""Tensors and arrays up to this size are copied out of a message, so that one which is kept does not keep the message,
which has a file descriptor, and all of its images."""
ALIGNMENT = 64
"""Of blocks, in bytes: tensors lie in the received bytes themselves."""


class Message(NamedTuple):
    """An object in the form in which it is sent."""

    parts: list[bytes | memoryview]
    size: int
    """Of the parts together, in bytes."""
    num_blocks: int


def _wait_on() -> None:
    """Do nothing while nothing comes."""


class Channel:
    """One end of a socket, over which objects are sent and received; `EOFError` where the other is gone."""

    def __init__(self, end: socket.socket) -> None:
        """Keep `end`, a stream socket; with a timeout if there is something to do while nothing comes."""
        self.end = end
        self.is_within_message = False
        """Whether a message may have been received in part, or be no object."""

    def send(self, value: object) -> None:
        """Send a picklable object; its large tensors and arrays are not copied into the pickle."""
        self.send_message(encode(value))

    def send_message(
        self, message: Message, *, may_use_file: bool = True, wait: Callable[[], None] = _wait_on
    ) -> None:
        """Send an encoded object; after any exception but `EOFError` the other end cannot read on.

        Args:
            message: the object.
            may_use_file: whether the other end may need a file descriptor to receive it.
            wait: called at every timeout; may raise.
        """
        is_large = message.size >= MIN_FILE_BYTES
        if may_use_file and is_large and self._send_in_file(message):
            return
        self._send_bytes(HEADER.pack(INLINE, message.size, message.num_blocks), wait)
        for part in message.parts:
            self._send_bytes(part, wait)

    def send_alive(self) -> None:
        """Tell the other end that work goes on."""
        self._send_bytes(HEADER.pack(ALIVE, 0, 0))

    def receive(
        self, note_alive: Callable[[], None] = _wait_on, wait: Callable[[], None] = _wait_on
    ) -> Any:
        """Return the next object; after an exception within a message no other can be received.

        Args:
            note_alive: called where the other end says that work goes on.
            wait: called at every timeout; may raise.

        Raises:
            EOFError: the other end is closed.
            OSError: there is no descriptor left for a file.
        """
        while True:
            header, descriptors = self._receive_header(wait)
            kind, size, num_blocks = HEADER.unpack(header)
            if kind == INLINE:
                data = bytearray(size)
                self._receive_into(memoryview(data), wait)
                value = unpickle(memoryview(data), num_blocks)
                self.is_within_message = False
                return value
            if kind == FILE:
                if not descriptors:  # the system drops what it has no room for
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                try:
                    value = unpickle(memoryview(mmap.mmap(descriptors[0], size)), num_blocks)
                finally:
                    os.close(descriptors[0])
                self.is_within_message = False
                return value
            self.is_within_message = False
            note_alive()

    def _send_in_file(self, message: Message) -> bool:
        """Send an object in a file in memory; return whether the system has one for it."""
        if not hasattr(os, "memfd_create"):
            return False
        try:
            descriptor = os.memfd_create("deitctl")
        except OSError:
            return False
        try:
            with open(descriptor, "wb") as file:
                file.writelines(message.parts)
                file.flush()
                header = HEADER.pack(FILE, message.size, message.num_blocks)
                socket.send_fds(self.end, [header], [descriptor])
        except BrokenPipeError:
            raise EOFError from None
        except OSError:  # a limit on files' sizes or on descriptors under way
            return False
        return True

    def _send_bytes(self, data: bytes | memoryview, wait: Callable[[], None] = _wait_on) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.end.send(view) :]
            except TimeoutError:
                wait()
            except ConnectionError as error:
                raise EOFError from error

    def _receive_header(self, wait: Callable[[], None]) -> tuple[bytes, list[int]]:
        while True:
            self.is_within_message = True
            try:
                if hasattr(socket, "recv_fds"):
                    data, descriptors, _, _ = socket.recv_fds(self.end, HEADER.size, 1)
                else:
                    data, descriptors = self.end.recv(HEADER.size), []
                break
            except TimeoutError:
                self.is_within_message = False
                wait()
            except ConnectionError as error:
                raise EOFError from error
        if not data:
            raise EOFError
        header = bytearray(HEADER.size)
        header[: len(data)] = data
        self._receive_into(memoryview(header)[len(data) :], wait)
        return bytes(header), descriptors

    def _receive_into(self, view: memoryview, wait: Callable[[], None]) -> None:
        while view:
            try:
                count = self.end.recv_into(view)
            except TimeoutError:
                wait()
                continue
            except ConnectionError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            view = view[count:]


def encode(value: object) -> Message:
    """Return a picklable object as a message, which has the memory of its large tensors and arrays."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = _pickle(value, buffers)
    blocks: list[bytes | memoryview] = [pickled, *(buffer.raw() for buffer in buffers)]
    count = len(blocks)
    blocks.insert(0, struct.pack(f"<{count}Q", *map(len, blocks)))
    parts = [part for block in blocks for part in (block, bytes(_pad(len(block))))]
    return Message(parts, sum(map(len, parts)), count)


def _pad(size: int) -> int:
    return -size % ALIGNMENT


def _pickle(value: object, buffers: list[pickle.PickleBuffer]) -> bytes:
    """Return the pickle of an object without its large tensors and arrays, whose contents go to `buffers`."""

    def belongs_to_pickle(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes <= MAX_COPIED_BYTES:
            return True
        buffers.append(buffer)
        return False

    with closing(io.BytesIO()) as file:
        pickler = pickle.Pickler(file, protocol=5, buffer_callback=belongs_to_pickle)
        reducers: dict[type, Any] = {Tensor: _reduce_tensor}
        pickler.dispatch_table = ChainMap[type, Any](reducers, copyreg.dispatch_table)
        pickler.dump(value)
        return file.getvalue()


def _reduce_tensor(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
    return torch.from_numpy, (tensor.numpy(),)


def unpickle(data: memoryview, num_blocks: int) -> Any:
    """Return the object of a message; its large tensors and arrays keep `data`."""
    sizes = struct.unpack_from(f"<{num_blocks}Q", data)
    start, blocks = struct.calcsize(f"<{num_blocks}Q"), []
    start += _pad(start)
    for size in sizes:
        blocks.append(data[start : start + size])
        start += size + _pad(size)
    return ForkingPickler.loads(blocks[0], buffers=blocks[1:])
