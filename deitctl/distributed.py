"""Process group of a distributed run: rank, collectives, rendezvous that survives restarts.

Integers and small objects are exchanged over gloo on the CPU, so that no accelerator waits for them;
gradients are reduced by the device's own backend (NCCL on CUDA, gloo on CPU). Whatever waits ends within minutes
when a process hangs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
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
from deitctl.heartbeat import Heartbeat
from deitctl.launchers import read_rank

T = TypeVar("T")
Room = dict[torch.dtype, Tensor]
"""Flat tensors, one of a dtype, into which a bucket of tensors is copied to be summed."""
SETUP_TIMEOUT_S = 1800.0
"""Of a collective before the steps, which a process may come to late: from a slow disk, or compiling."""
STEP_TIMEOUT_S = 720.0
"""Of a collective from the second step on. Loaders that get no data say so after ten minutes."""
WARN_AFTER_S, PAUSE_AFTER_S = 60.0, 2.0
RENDEZVOUS_TIMEOUT_S = 1800
BUCKET_NUMEL = 8_000_000  # 32 MB in fp32, which bounds the flat copy of the gradients
FLIGHT_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "2000",  # collectives
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""Variables by which NCCL records what each process waited for, and writes it where a collective timed out."""


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
        """Wait until a collective is done; raise `ProcessLost` after `STEP_TIMEOUT_S`."""
        start, warned, announced = time.monotonic(), False, False
        while not work.is_completed():
            waited = time.monotonic() - start
            # A tenth too late at most, and a tenth of a millisecond where all are as fast.
            time.sleep(min(max(waited / 10, 5e-5), 0.2))
            if waited > PAUSE_AFTER_S:
                self.pause()
                announced = announced or _announce_waiting("1")
            if waited > WARN_AFTER_S and not warned:
                warned = True
                self.warn(
                    f"Waiting for another process of this run for {waited:.0f} s: it is stopped, or its machine, "
                    f"disk or network hangs. This ends after {STEP_TIMEOUT_S / 60:.0f} minutes."
                )
            if waited > STEP_TIMEOUT_S:
                raise _describe_hanging(f"for {waited:.0f} s")
        if announced:
            _announce_waiting("")


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
            patience: how long the others are waited for; None: for the timeout of all collectives.
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
        self._meet_main()
        with _translate_connection_errors():
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Return the main process's value, picklable, whatever the others pass."""
        if self.size == 1:
            return value
        self._meet_main()
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
        self._meet_main()
        with _translate_connection_errors():
            dist.broadcast(tensor, src=0)

    def set_timeout(self, seconds: float) -> None:
        """Let every collective from now on fail after this time."""
        if dist.is_initialized():
            # torch 2.14 has a public one, and warns of the other
            set_timeout = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)
            set_timeout(timedelta(seconds=seconds), None)

    def _meet_main(self) -> None:
        """Wait for the main process, for hours perhaps, in which signals are handled."""
        if _heartbeat is not None:
            with _translate_connection_errors():
                _heartbeat.meet_main(STEP_TIMEOUT_S, _raise_main_hangs)

    def barrier(self) -> None:
        """Wait until every process has arrived."""
        self._meet_main()
        # Not dist.barrier(), which with NCCL would occupy the GPU.
        self.all_gather_ints([0])

    def reserve(self, tensors: Sequence[Tensor]) -> Room:
        """Return the memory that `all_reduce_` needs for these tensors; may run out of it, while nobody waits."""
        largest: dict[torch.dtype, tuple[int, Tensor]] = {}
        for bucket in _buckets(tensors) if self.size > 1 else ():
            numel, dtype = sum(t.numel() for t in bucket), bucket[0].dtype
            if dtype not in largest or largest[dtype][0] < numel:
                largest[dtype] = numel, bucket[0]
        return {dtype: like.new_empty(numel) for dtype, (numel, like) in largest.items()}

    @torch.no_grad()
    def all_reduce_(self, tensors: Sequence[Tensor], room: Room | None = None) -> None:
        """Replace tensors by their sums over the processes, bit-identical in all of them.

        Args:
            tensors: of any shapes.
            room: what `reserve` returned for these tensors; None: it is allocated, which may fail in one process alone.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            numel = sum(t.numel() for t in bucket)
            out = None if room is None else room[bucket[0].dtype][:numel]
            flat = torch.cat([t.reshape(-1) for t in bucket], out=out)
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
        self._meet_main()
        with _translate_connection_errors():
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)


SINGLE_PROCESS = World()
_heartbeat: Heartbeat | None = None
"""Of the process group that is open."""
_store: Store | None = None
"""That its processes reach, also when one of them is gone."""
FAILURE, WAITING = "failure", "waiting"
"""Keys there of why a process ends in the middle of what others wait for, and of those that wait themselves."""
MARGIN_S = 2.0
"""Between the timeouts of processes that began to wait for the same one."""
TIMED_OUT = re.compile(r"[Tt]imed out|[Tt]imeout")
_closed_first = weakref.WeakSet[Any]()


def close_before_leaving(closable: object) -> None:
    """Have an object's `close` called before this process leaves the process group that is open."""
    _closed_first.add(closable)


def announce_failure(failure: DeitctlError) -> None:
    """Tell the other processes why they are about to lose this one."""
    if _store is not None:
        with suppress(RuntimeError):
            _store.set(FAILURE, json.dumps([failure.message, failure.hint]))


@contextmanager
def translate_lost_process() -> Iterator[None]:
    """Within a pass that sums by itself, turn torch's errors of a broken connection into `ProcessLost`.

    Other errors, those of memory among them, stay as they are.
    """
    try:
        yield
    except RuntimeError as error:
        is_of_connection = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not is_of_connection or isinstance(error, torch.OutOfMemoryError):
            raise
        raise _describe_lost(error) from error


def _read_failure() -> ProcessLost | None:
    """Return the failure that a process announced before it was gone."""
    if _store is not None:
        with suppress(RuntimeError):
            if _store.check([FAILURE]):
                return ProcessLost(*json.loads(_store.get(FAILURE)))
    return None


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
        # The device that is current is what seeds, streams and events are of.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
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
    _join(device)
    yield World(dist.get_rank(), dist.get_world_size())
    # Not after an exception: it would wait for a collective that waits for a process that hangs. The
    # end of this process closes the connections.
    _leave()


def _join(device: torch.device) -> None:
    """Meet the other processes, and begin the heartbeat."""
    global _heartbeat, _store
    with _translate_connection_errors():
        launchers_store, rank, size = _open_store()
        store = _fresh_prefix_store(launchers_store, rank, size)
        is_cuda = device.type == "cuda"
        if is_cuda:
            _require_own_gpu(store, rank, size, _identify_gpu(device))
            for name, value in FLIGHT_RECORDER.items():
                os.environ.setdefault(name, value)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=SETUP_TIMEOUT_S),
            device_id=torch.device("cuda", torch.cuda.current_device()) if is_cuda else None,
        )
        _heartbeat = Heartbeat(PrefixStore("heartbeat", store), is_main=rank == 0)
        _store = store


def _leave() -> None:
    """Close what uses the process group, and destroy it."""
    global _heartbeat, _store
    for closable in list(_closed_first):
        closable.close()
    _closed_first.clear()
    if _heartbeat is not None:
        _heartbeat.close()
        _heartbeat = None
    _store = None
    dist.destroy_process_group()


def _identify_gpu(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    return f"{platform.node()} {getattr(properties, 'uuid', torch.cuda.current_device())}"


def _require_own_gpu(store: Store, rank: int, size: int, gpu: str) -> None:
    """Raise `ConfigError` if another process has the same GPU, which NCCL would refuse by a riddle."""
    store.set(f"gpu/{rank}", gpu)
    owners = [other for other in range(size) if store.get(f"gpu/{other}").decode() == gpu]
    if len(owners) > 1:
        raise ConfigError(
            f"Processes {' and '.join(map(str, owners))} of this run have the same GPU.",
            "Start as many as there are GPUs (torchrun --nproc-per-node N), with --device cuda and no number.",
        )


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


def _raise_main_hangs(waited: float) -> None:
    raise _describe_hanging(f"for {waited:.0f} s", [0])


def _announce_waiting(value: str) -> bool:
    """Say at the store that this process waits in a collective ("1"), or no more ("")."""
    if _store is not None:
        with suppress(RuntimeError):
            _store.set(f"{WAITING}/{dist.get_rank()}", value)
    return True


def _list_silent() -> list[int]:
    """Return the ranks that do not wait as this one does, as far as the store tells."""
    if _store is None:
        return []
    _announce_waiting("1")
    time.sleep(MARGIN_S)  # for those whose timeout ends a little later
    with suppress(RuntimeError):
        keys = [f"{WAITING}/{rank}" for rank in range(dist.get_world_size())]
        return [n for n, key in enumerate(keys) if not (_store.check([key]) and _store.get(key))]
    return []


def _describe_hanging(how_long: str, silent: Sequence[int] | None = None) -> ProcessLost:
    silent = _list_silent() if silent is None else silent
    who = f"{'Process' if len(silent) == 1 else 'Processes'} {', '.join(map(str, silent))}"
    return ProcessLost(
        f"{who if silent else 'Another process'} of this run did not answer {how_long}.",
        "Its machine, disk or network hangs, or it was stopped; torchrun --max-restarts N restarts all "
        "where they stopped.",
    )


@contextmanager
def _translate_connection_errors() -> Iterator[None]:
    """Turn torch's many errors for a broken connection into `ProcessLost`."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _describe_lost(error) from error


def _describe_lost(error: Exception) -> ProcessLost:
    if failure := _read_failure():
        return failure
    if TIMED_OUT.search(str(error)):
        return _describe_hanging("within the timeout")
    return ProcessLost(
        "Another process of this run is gone, or cannot be reached.",
        "Its own last line says why; torchrun --max-restarts N restarts all where they stopped. "
        f"(torch says: {' '.join(str(error).split())[-120:]})",
    )


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
