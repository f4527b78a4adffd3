"""Collectives, sharding and rendezvous, in one process and in two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from deitctl import distributed as module
from deitctl.distributed import (
    SINGLE_PROCESS,
    World,
    is_distributed,
    is_main_process,
    launch_id,
    local_rank,
    process_group,
)
from deitctl.errors import ConfigError

CPU = torch.device("cpu")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@given(size=st.integers(1, 20), count=st.integers(0, 300))
def test_shards_cover_a_batch_in_order_evenly_and_keep_pairs_together(
    size: int, count: int
) -> None:
    shards = [World(rank, size).shard(count) for rank in range(size)]
    assert [place for shard in shards for place in range(count)[shard]] == list(range(count))
    assert all(s.start % 2 == 0 or s.start == count for s in shards)
    assert all(a.stop == b.start for a, b in pairwise(shards))
    lengths = [s.stop - s.start for s in shards]
    assert max(lengths) - min(lengths) <= (2 if count % 2 == 0 else 3)


def test_collectives_of_one_process_are_no_ops() -> None:
    values, model = [torch.ones(2)], torch.nn.Linear(2, 2)
    before = model.weight.clone()
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.all_gather_ints([3, 4]) == [[3, 4]]
    marker = object()
    assert SINGLE_PROCESS.all_gather_object(marker) == [marker]
    assert SINGLE_PROCESS.broadcast_object(marker) is marker
    SINGLE_PROCESS.all_reduce_(values)
    SINGLE_PROCESS.broadcast_module_(model)
    SINGLE_PROCESS.barrier()
    assert torch.equal(values[0], torch.ones(2))
    assert torch.equal(model.weight, before)
    # whatever the device
    with process_group(CPU) as world, process_group(torch.device("mps")) as other:
        assert world is other is SINGLE_PROCESS


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (False, True, 0, "")),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (False, True, 0, "")),
        ({"WORLD_SIZE": "2", "RANK": "0"}, (True, True, 0, "")),
        ({"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"}, (True, False, 1, "")),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "job-7"},
            (True, False, 0, "job-7"),
        ),
    ],
)
def test_ranks_are_read_from_the_environment(
    values: dict[str, str], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert (is_distributed(), is_main_process(), local_rank(), launch_id()) == expected


def test_launch_id_without_a_run_id_names_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launch_id() == launch_id()
    assert str(os.getppid()) in launch_id()


def test_several_processes_on_a_device_without_a_backend_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Several processes cannot share mps"):
        process_group(torch.device("mps")).__enter__()


def test_buckets_are_of_one_dtype_and_bounded_and_keep_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BUCKET_NUMEL", 10)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 10, 11, 0, 3)] + [
        torch.zeros(2, dtype=torch.float64)
    ]
    groups = list(module._buckets(tensors))
    assert [[t.numel() for t in g] for g in groups] == [[4, 6], [1], [10], [11], [0, 3], [2]]
    assert [id(t) for g in groups for t in g] == [id(t) for t in tensors]
    assert list(module._buckets([])) == []


def rendezvous_of_two(store: dist.Store) -> list[dist.Store]:
    stores: list[dist.Store | None] = [None, None]

    def join(rank: int) -> None:
        stores[rank] = module._fresh_prefix_store(store, rank, 2)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [prefix_store for prefix_store in stores if prefix_store is not None]


def test_each_start_gets_a_fresh_prefix_whatever_dead_processes_left_in_the_store() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    store.set("hello/1", "of a process that died before it was answered")
    first, first_too = rendezvous_of_two(store)
    first.set("address", "old")
    assert first_too.get("address") == b"old"
    second, second_too = rendezvous_of_two(store)
    assert not second.check(["address"])
    second_too.set("address", "new")
    assert second.get("address") == b"new"
    assert first.get("address") == b"old"


def test_rendezvous_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENDEZVOUS_TIMEOUT_S", 0.1)
    for rank, missing in ((0, 1), (1, 0)):
        with pytest.raises(RuntimeError, match=f"process {missing} did not arrive"):
            module._fresh_prefix_store(dist.HashStore(), rank, 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The record of each of two processes (see pair.py)."""
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if k not in NAMES}
    common = {
        **inherited,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    program = Path(__file__).with_name("pair.py")
    pair = [
        subprocess.Popen(
            [sys.executable, str(program), str(out)],
            env={**common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    stderrs = [process.communicate(timeout=100)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 3], stderrs
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def plan() -> object:
    """The helper's own tensors and networks."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("pair", Path(__file__).with_name("pair.py"))
    assert spec is not None
    assert spec.loader is not None
    pair = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pair)
    return pair


def test_all_gather_and_broadcast_exchange_values(two: list[dict[str, object]]) -> None:
    for rank, seen in enumerate(two):
        assert seen["place"] == [rank, 2, rank == 0]
        assert seen["all_gather_ints"] == [[0, 10, -(2**40)], [1, 11, -(2**40)]]
        assert seen["gather"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x" * 100}]
        assert seen["broadcast_object"] == "said by 0"


def test_all_reduce_sums_in_place(two: list[dict[str, object]]) -> None:
    first, second = (plan().tensors_of(rank) for rank in (0, 1))
    expected = [(a.double() + b.double()).tolist() for a, b in zip(first, second, strict=True)]
    for seen in two:
        assert seen["sums"] == expected
        assert seen["in_place"]


def test_broadcast_module_copies_parameters_and_buffers_of_rank_0(
    two: list[dict[str, object]],
) -> None:
    expected = {k: v.double().tolist() for k, v in plan().network(0).state_dict().items()}
    assert plan().network(1).state_dict()["1.num_batches_tracked"] == 2
    for seen in two:
        assert seen["model"] == expected


def test_process_group_can_be_nested_and_opened_again(
    two: list[dict[str, object]],
) -> None:
    for rank, seen in enumerate(two):
        assert seen["nested"] == [rank, 2, [[0], [1]]]
        assert seen["after nested"] == [[0], [1]]
        assert seen["met again"] == [[0], [1]]


def test_a_lost_process_is_reported_in_one_line(two: list[dict[str, object]]) -> None:
    message, hint = two[0]["lost"]
    assert message == "Another process of this run is gone, or cannot be reached."
    assert "\n" not in message
    assert len(message) < 220
    assert "--max-restarts" in hint


def test_two_processes_on_one_gpu_are_refused() -> None:
    store = dist.HashStore()
    store.set("gpu/1", "host GPU-1")
    module._require_own_gpu(store, 0, 2, "host GPU-0")
    with pytest.raises(ConfigError, match="Processes 0 and 1 of this run have the same GPU"):
        module._require_own_gpu(store, 0, 2, "host GPU-1")


def test_one_process_makes_the_gpu_that_was_named_the_current_one(monkeypatch):
    entered = []

    @contextmanager
    def enter(device):
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", enter)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        with process_group(device) as world:
            assert world.size == 1
    assert entered == [torch.device("cuda", 1)]
