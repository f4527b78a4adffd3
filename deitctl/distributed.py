"""Process group of a distributed run: rank, collectives, rendezvous that survives restarts.

Integers and small objects are exchanged over gloo on the CPU, so that no accelerator waits for them;
gradients are reduced by the device's own backend (NCCL on CUDA, gloo on CPU).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
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

from deitctl.cores import count_cores
from deitctl.errors import ConfigError, DeitctlError, Interrupted
from deitctl.launchers import read_rank

T = TypeVar("T")
# A collective may wait while one process fine-tunes a teacher or scans a slow disk, for hours. A
# process that dies is noticed at once all the same, by its closed connection.
COLLECTIVE_TIMEOUT = timedelta(days=2)
STEP_TIMEOUT_S = 1800.0
"""Of a step's first exchange. Loaders that get no data give up after ten minutes."""
WARN_AFTER_S, PAUSE_AFTER_S = 60.0, 2.0
MAX_PAUSE_S = 0.2
"""Between two looks at whether the main process has sent."""
RENDEZVOUS_TIMEOUT_S = 1800
BUCKET_NUMEL = 8_000_000  # 32 MB in fp32, which bounds the flat copy of the gradients


class ProcessLost(DeitctlError):
    """Another process of the run died or cannot be reached."""


@dataclass(frozen=True)
class Patience:
    """How long a process waits for the others within a step, where each has its part of the batch to do.

    One that is stopped, or whose machine hangs, keeps its connection, so that nothing else tells.
    """

    pause: Callable[[], None]
    """Called after some seconds, again and again; may raise, to stop."""
    warn: Callable[[str], None]
    """Receives a warning after a minute."""

    def poll(self, work: dist.Work) -> None:
        """Wait until a collective is done; raise `ProcessLost` if it is not within half an hour."""
        start, warned = time.monotonic(), False
        while not work.is_completed():
            waited = time.monotonic() - start
            # A tenth too late at most, and a tenth of a millisecond where all are as fast.
            time.sleep(min(max(waited / 10, 5e-5), 0.2))
            if waited > PAUSE_AFTER_S:
                self.pause()
            if waited > WARN_AFTER_S and not warned:
                warned = True
                self.warn(
                    f"Waiting for another process of this run for {waited:.0f} s: it is stopped, or its machine, "
                    f"disk or network hangs. This ends after {STEP_TIMEOUT_S / 60:.0f} minutes."
                )
            if waited > STEP_TIMEOUT_S:
                raise ProcessLost(
                    f"Another process of this run did not finish its part of a step in {waited:.0f} s.",
                    "Its machine, disk or network hangs, or it was stopped.",
                )


@dataclass(frozen=True)
class World:
    """Rank and size of the process group, and its collectives; no-ops with one process."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Return this process's slice of a batch of `count` images."""
        # Mixing pairs neighbors (0 with 1, 2 with 3), so a slice holds whole pairs and no pair
        # spans two processes.
        pairs = -(-count // 2)
        start, stop = (2 * (pairs * r // self.size) for r in (self.rank, self.rank + 1))
        return slice(min(start, count), min(stop, count))

    def all_gather_ints(
        self, numbers: Sequence[int], patience: Patience | None = None
    ) -> list[list[int]]:
        """Return the integers of every process, by rank; all processes must pass equally many.

        Args:
            numbers: of this process.
            patience: how long the others are waited for; None: for `COLLECTIVE_TIMEOUT`.
        """
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        with _translate_connection_errors():
            work = dist.all_gather(gathered, mine, async_op=True)
            if patience is not None:
                patience.poll(work)
            work.wait()
        return [values.tolist() for values in gathered]

    def all_gather_object(self, value: T) -> list[T]:
        """Return a small picklable object of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _translate_connection_errors():
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Return the main process's value, picklable, whatever the others pass."""
        if self.size == 1:
            return value
        self.broadcast_(torch.zeros(1))  # for hours, perhaps, in which signals are handled
        values: list[Any] = [value]
        with _translate_connection_errors():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        received: T = values[0]
        return value if self.is_main else received

    def run_on_main(self, compute: Callable[[], T]) -> T:
        """Return what a function returns in the main process, in every process; collective.

        Raises:
            DeitctlError: the main process's, in all of them; the others need not print it.
        """
        if self.size == 1:
            return compute()
        value: T | None = None
        failure: DeitctlError | None = None
        if self.is_main:
            try:
                value = compute()
            except Interrupted:  # of all processes, each by its own signal
                raise
            except DeitctlError as error:
                failure = error
        received, failure_of_main = self.broadcast_object((value, failure))
        if failure is not None:
            raise failure
        if failure_of_main is not None:
            failure_of_main.is_reported = True
            raise failure_of_main
        return received  # type: ignore[return-value]

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor on the CPU by the main process's, which may come hours later."""
        with _translate_connection_errors():
            work = dist.broadcast(tensor, src=0, async_op=True)
            assert work is not None  # as for a process that is not of the group
            pause_s = 5e-5
            while not work.is_completed():  # so that signals are handled meanwhile
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            work.wait()

    def barrier(self) -> None:
        """Wait until every process has arrived."""
        # Not dist.barrier(), which with NCCL would occupy the GPU.
        self.all_gather_ints([0])

    @torch.no_grad()
    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, bit-identical in all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with _translate_connection_errors():
                dist.all_reduce(flat)
            parts = torch.split(flat, [t.numel() for t in bucket])
            torch._foreach_copy_(
                list(bucket), [p.view_as(t) for p, t in zip(parts, bucket, strict=True)]
            )

    @torch.no_grad()
    def broadcast_module_(self, model: nn.Module) -> None:
        """Copy the main process's parameters and buffers into every process's model."""
        if self.size == 1:
            return
        with _translate_connection_errors():
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)


SINGLE_PROCESS = World()


def is_distributed() -> bool:
    """Return whether torchrun, or a similar launcher, started this process as one of several."""
    return read_rank("WORLD_SIZE") > 1


def is_main_process() -> bool:
    """Return whether this is rank 0, also before the process group exists."""
    return read_rank("RANK") == 0


def local_rank() -> int:
    """Return this process's rank on its machine."""
    return read_rank("LOCAL_RANK")


def launch_id() -> str:
    """Return an identifier that all restarts of one torchrun share, empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if name != "none":
        return name
    # torchrun without --rdzv-id: its process id, and the start time because process ids are reused
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{platform.node()}-{parent}-{started}"


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the process group for a block; a nested call reuses the group that is open.

    Raises:
        ConfigError: several processes on a device type without a backend.
        ProcessLost: other processes do not arrive.
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
    if "OMP_NUM_THREADS" not in os.environ:  # which torchrun sets
        torch.set_num_threads(count_cores())
    with _translate_connection_errors():
        store, rank, size = _open_store()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_fresh_prefix_store(store, rank, size),
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    yield World(dist.get_rank(), dist.get_world_size())
    # Not after an exception: it would wait for a collective that waits for a process that hangs. The
    # end of this process closes the connections.
    dist.destroy_process_group()


@cache
def _open_store() -> tuple[Store, int, int]:
    """Return the launcher's store, this process's rank and the world size."""
    # Opened once and cached: where rank 0 serves the store, a process that is early for a second
    # rendezvous would connect to the store of the first one, and lose it when that closes.
    try:
        store, rank, size = next(rendezvous("env://"))
    except ValueError as error:
        raise ConfigError(
            f"The environment's MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE do not fit: {error}.",
            "torchrun sets them.",
        ) from error
    return store, rank, size


def _fresh_prefix_store(store: Store, rank: int, size: int) -> Store:
    """Return a prefix of torchrun's store that only this start of the processes uses.

    The store outlives a restart (seen with torch 2.15) and still holds the addresses of the dead
    processes, which would be dialed. So rank 0 sends a new prefix to each process in answer to an
    identifier that no earlier process had: hello/R -> prefix/R -> ready/R.
    """
    identifier = f"{os.getpid()}-{time.time_ns()}"
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if rank == 0:
        missing = set(range(1, size))
        while missing and time.monotonic() < deadline:
            for other in list(missing):
                if read(f"ready/{other}") == identifier:
                    missing.discard(other)
                elif hello := read(f"hello/{other}"):
                    store.set(f"prefix/{other}", f"{hello} {identifier}")
            time.sleep(0.02)
    else:
        missing = {0}
        store.set(f"hello/{rank}", identifier)
        while time.monotonic() < deadline:
            addressee, _, prefix = read(f"prefix/{rank}").partition(" ")
            if addressee == identifier:
                store.set(f"ready/{rank}", prefix)
                return PrefixStore(prefix, store)
            time.sleep(0.02)
    if missing:
        raise RuntimeError(f"process {min(missing)} did not arrive within {RENDEZVOUS_TIMEOUT_S} s")
    return PrefixStore(identifier, store)


@contextmanager
def _translate_connection_errors() -> Iterator[None]:
    """Turn torch's many errors for a broken connection into `ProcessLost`."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ProcessLost(
            "Another process of this run is gone, or cannot be reached.",
            "Its own last line says why; torchrun --max-restarts N restarts all where they stopped. "
            f"(torch says: {' '.join(str(error).split())[-120:]})",
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype in groups of about `BUCKET_NUMEL` elements, in order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (
            bucket[0].dtype != tensor.dtype
            or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_NUMEL
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
