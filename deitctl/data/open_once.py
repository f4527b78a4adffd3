"""Data that the main process opens for all others of a run: they list, stat and read nothing.

What is opened goes to each process as a pickle. On a host its processes map one copy of that, in a
file that exists in memory alone: eight processes do not hold the names of all images eight times.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from deitctl.data.arrays import pickling_by_content
from deitctl.data.channel import Message, encode, unpickle
from deitctl.data.dataset import ImageDataset
from deitctl.data.open_file import on_other_host, write_at
from deitctl.data.range_survey import spread
from deitctl.distributed import World
from deitctl.errors import DataError, DeitctlError, Interrupted

T = TypeVar("T")
PIECE_BYTES = 2**24
"""That are sent at a time."""
NUM_COMPARED = 16
"""Images of each dataset that every other host compares with the main process's."""


def open_once(
    open_data: Callable[[], T],
    world: World,
    list_datasets: Callable[[T], Sequence[ImageDataset]],
) -> T:
    """Return what the main process opens, in every process; collective.

    Args:
        open_data: opens data, in the main process alone; what it returns is picklable.
        world: the processes, of which the others wait as long as this takes.
        list_datasets: returns the images in what was opened, of which other hosts compare a few.

    Raises:
        DeitctlError: the main process's, in all of them; the others need not print it.
        DataError: another host has other images.
    """
    if world.size == 1:
        return open_data()
    opened: list[T] = []
    message = Message([], 0, 0)

    def open_here() -> tuple[list[int], int]:
        nonlocal message
        opened.append(open_data())
        with pickling_by_content():
            message = encode(opened[0])
        return [len(part) for part in message.parts], message.num_blocks

    lengths, num_blocks = world.run_on_main(open_here)
    hosts = world.all_gather_object(_identify_host())
    data = _share(message, lengths, hosts, world)
    if not opened:
        is_elsewhere = hosts[world.rank] != hosts[0]
        with on_other_host() if is_elsewhere else nullcontext():
            opened.append(unpickle(data, num_blocks))
    _require_same_images(list_datasets(opened[0]), hosts, world)
    return opened[0]


def _identify_host() -> tuple[str, ...]:
    """Return what is equal in processes that see each other's files in `/proc`; a name first."""
    texts = [platform.node(), "", ""]
    with suppress(OSError):
        texts[1] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        texts[2] = os.readlink("/proc/self/ns/pid")
    return tuple(texts)


def _share(
    message: Message, lengths: Sequence[int], hosts: Sequence[tuple[str, ...]], world: World
) -> memoryview:
    """Send the main process's message, and return it, in one copy for the processes of a host.

    Args:
        message: of the main process; empty in the others.
        lengths: of its parts, in bytes.
        hosts: of each process, by rank.
        world: the processes.
    """
    size, leader = sum(lengths), hosts.index(hosts[world.rank])
    descriptor = -1
    if leader == world.rank and hosts.count(hosts[leader]) > 1 and hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("deitctl-data")
    names = world.all_gather_object(
        f"/proc/{os.getpid()}/fd/{descriptor}" if descriptor >= 0 else ""
    )
    if leader != world.rank and names[leader]:
        with suppress(OSError):  # then it gets a copy of its own
            descriptor = os.open(names[leader], os.O_RDONLY)
    memory = None if descriptor >= 0 or world.is_main else mmap(-1, size)
    start = 0
    for piece in _broadcast(message, lengths, world):
        if memory is not None:
            memory[start : start + len(piece)] = piece
        elif leader == world.rank and descriptor >= 0:
            write_at(descriptor, start, piece)
        start += len(piece)
    world.barrier()  # until then the file is not complete
    if descriptor >= 0:
        # Copied where it is written to; nobody else has a name for the file, and cuts it.
        memory = mmap(descriptor, size, access=ACCESS_COPY)
    world.barrier()  # until then others may open it
    if descriptor >= 0:
        os.close(descriptor)
    return memoryview(b"" if memory is None else memory)


def _broadcast(message: Message, lengths: Sequence[int], world: World) -> Iterator[bytes]:
    """Yield the bytes of the main process's message in pieces, in every process."""
    parts = message.parts if world.is_main else [b""] * len(lengths)
    for part, length in zip(parts, lengths, strict=True):
        for start in range(0, length, PIECE_BYTES):
            piece = torch.empty(min(PIECE_BYTES, length - start), dtype=torch.uint8)
            if world.is_main:
                piece.numpy()[:] = np.frombuffer(part, np.uint8)[start : start + len(piece)]
            world.broadcast_(piece)
            yield piece.numpy().tobytes()


def _require_same_images(
    datasets: Sequence[ImageDataset], hosts: Sequence[tuple[str, ...]], world: World
) -> None:
    """Raise `DataError` where a host has other images than that of the main process; it reads a few."""
    if len(set(hosts)) == 1:
        return
    places = [
        (n, int(index))
        for n, dataset in enumerate(datasets)
        if not dataset.is_in_memory
        for index in spread(dataset.list_cheap().tolist(), NUM_COMPARED)
    ]
    is_first = hosts.index(hosts[world.rank]) == world.rank
    digests: list[int] = []
    failure: DeitctlError | None = None
    try:
        digests = [datasets[n].digest(index) if is_first else 0 for n, index in places]
    except Interrupted:  # of all processes, each by its own signal
        raise
    except DeitctlError as error:  # a host's whose store is lost to it alone, for example
        failure = error
    _raise_first(world.all_gather_object(failure), world)
    expected = world.broadcast_object(digests)
    differs = [
        datasets[n].name(index)
        for (n, index), mine, theirs in zip(places, digests, expected, strict=True)
        if is_first and theirs and mine != theirs
    ]
    errors = [
        DataError(
            f"{host[0]} has other bytes than {hosts[0][0]} for {name[0]}, or none.",
            "All machines of a run need the same files.",
        )
        for host, name in zip(hosts, world.all_gather_object(differs[:1]), strict=True)
        if name
    ]
    _raise_first(errors, world)


def _raise_first(errors: Sequence[DeitctlError | None], world: World) -> None:
    """Raise the first error that any process has, in all of them; the main one prints it."""
    for error in errors:
        if error is not None:
            error.is_reported = not world.is_main
            raise error
