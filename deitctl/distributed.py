"""The processes that train together: who this one is, and the few things they must agree on.

torchrun starts them and says so in the environment; without it there is one. Numbers and small objects go over gloo on
the CPU, so that no accelerator waits for them; gradients go the device's own way (NCCL on CUDA, gloo on CPU).

Letters: R processes.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from deitctl.errors import ConfigError, DeitctlError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(days=2)
"""How long a process waits for another: fitting a teacher or scanning a slow disk takes one of them hours. A process that
dies is noticed at once, by its closed connection."""
ARRIVAL = 1800
"""Seconds that processes wait for the last one to come; a slow machine may scan the data first."""
BUCKET = 8_000_000
"""Numbers that are summed at a time: 32 MB, so that the copy of the gradients stays small."""


class ProcessLost(DeitctlError):
    """Another process of the run died or cannot be reached."""


@dataclass(frozen=True)
class World:
    """This process's place among those that work together."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of a batch of `count`, as even as pairs of neighbors allow: they stay together."""
        pairs = -(-count // 2)
        start, stop = (2 * (pairs * r // self.size) for r in (self.rank, self.rank + 1))
        return slice(min(start, count), min(stop, count))

    def all_gather_ints(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the numbers of every process, in the order of their ranks; all must pass as many."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        others = [torch.empty_like(mine) for _ in range(self.size)]
        with _noticing_losses():
            dist.all_gather(others, mine)
        return [values.tolist() for values in others]

    def gather(self, value: T) -> list[T]:
        """Return a small object of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _noticing_losses():
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Return the main process's value, whatever the others pass."""
        return self.gather(value if self.is_main else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until every process is here."""
        self.all_gather_ints([0])

    @torch.no_grad()
    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, the same to the bit in all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with _noticing_losses():
                dist.all_reduce(flat)
            parts = torch.split(flat, [t.numel() for t in bucket])
            torch._foreach_copy_(
                list(bucket), [p.view_as(t) for p, t in zip(parts, bucket, strict=True)]
            )

    @torch.no_grad()
    def broadcast_module_(self, model: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.size == 1:
            return
        with _noticing_losses():
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)


SINGLE_PROCESS = World()


def is_distributed() -> bool:
    """Say whether torchrun, or another launcher of its kind, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def main_process() -> bool:
    """Say whether this process speaks for the others, before they have met."""
    return int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """Return which of the processes of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launch_id() -> str:
    """Return the name that all restarts of one torchrun share, empty without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name != "none":
        return name
    parent = os.getppid()  # torchrun itself, where it was given no name
    try:
        born = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        born = ""
    return f"{platform.node()}-{parent}-{born}"


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the other processes for a block; within it, a second call finds them met.

    Raises:
        ConfigError: several processes on a device that cannot talk.
        ProcessLost: they do not come.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"Several processes cannot share {device.type}.",
            "Run without torchrun, or --device cpu.",
        )
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _noticing_losses():
        store, rank, size = _meeting_place()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_fresh_prefix_store(store, rank, size),
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@cache
def _meeting_place() -> tuple[Store, int, int]:
    """Return the launcher's store, this process's rank and how many there are; opened once and kept.

    Where the first process serves it, one that comes to a second meeting early would find the store of the first, and
    lose it while they meet.
    """
    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


def _fresh_prefix_store(store: Store, rank: int, size: int) -> Store:
    """Return a part of torchrun's store that only these starts of the processes use.

    The store outlives a restart (seen with torch 2.15), and the dead processes' addresses in it would be dialled. So
    the first process names a new corner, and tells it to whoever shows a number that nobody has shown before.
    """
    mine = f"{os.getpid()}-{time.time_ns()}"
    deadline = time.monotonic() + ARRIVAL

    def said(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if rank == 0:
        waiting = set(range(1, size))
        while waiting and time.monotonic() < deadline:
            for other in list(waiting):
                if said(f"ready/{other}") == mine:
                    waiting.discard(other)
                elif hello := said(f"hello/{other}"):
                    store.set(f"corner/{other}", f"{hello} {mine}")
            time.sleep(0.02)
    else:
        store.set(f"hello/{rank}", mine)
        waiting = {0}
        while waiting and time.monotonic() < deadline:
            hello, _, corner = said(f"corner/{rank}").partition(" ")
            if hello == mine:
                store.set(f"ready/{rank}", corner)
                return PrefixStore(corner, store)
            time.sleep(0.02)
    if waiting:
        raise RuntimeError(f"process {min(waiting)} did not come in {ARRIVAL} s")
    return PrefixStore(mine, store)


@contextmanager
def _noticing_losses() -> Iterator[None]:
    """Turn torch's many words for a broken connection into one line."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "DataLoader worker" in str(error):
            raise
        raise ProcessLost(
            "Another process of this run is gone, or cannot be reached.",
            "Its own last line says why; torchrun --max-restarts N starts all of them again where they stopped. (torch says: "
            f"{' '.join(str(error).split())[-120:]})",
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type in groups of about `BUCKET` numbers."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and (
            group[0].dtype != tensor.dtype
            or sum(t.numel() for t in group) + tensor.numel() > BUCKET
        ):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
