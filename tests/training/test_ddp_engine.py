"""Gradients that are summed during the backward pass are those that are summed after it, whatever goes wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

Cases = dict[str, dict[str, torch.Tensor]]
DEPTH = 3


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, object]]]:
    """What each of two processes trained (see ddp_processes.py)."""
    out = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    program = Path(__file__).with_name("ddp_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(out)],
            env={**common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    stderrs = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], stderrs
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def measure(cases: Cases, one: str, other: str) -> float:
    """Return the largest difference of two cases' weights."""
    pairs = zip(cases[one].values(), cases[other].values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def test_overlapped_sums_are_the_same_bits_as_sums_afterwards(two) -> None:
    cases = two[0]["cases"]
    assert measure(cases, "overlapped", "summed") == 0
    assert measure(cases, "convnet", "convnet, summed") == 0
    # All but the first, and the two in which buckets are made.
    assert two[0]["facts"]["overlapped steps"] >= 18


def test_processes_end_with_the_same_weights(two) -> None:
    for name, weights in two[1]["cases"].items():
        for key, value in weights.items():
            assert torch.equal(value, two[0]["cases"][name][key]), (name, key)


@pytest.mark.parametrize("case", ["overlapped", "micro-batches"])
def test_two_processes_train_what_one_trains(case, two) -> None:
    assert measure(two[0]["cases"], case, "alone") < 5e-5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_a_readable_image_takes_part(rank, two) -> None:
    cases = two[0]["cases"]
    assert measure(cases, f"no image in {rank}", f"no image in {rank}, summed") == 0
    assert measure(cases, f"no image in {rank}", "alone, few steps") > 0


@pytest.mark.parametrize("block", range(DEPTH))
@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_within_an_overlapped_pass_leaves_nobody_waiting(
    rank, block, two
) -> None:
    for facts in (two[0]["facts"], two[1]["facts"]):
        assert facts[f"micro-batch {rank} {block}"] == 2
    case = f"out of memory in {rank}, block {block}"
    assert measure(two[0]["cases"], case, "alone, few steps") < 5e-5


def test_weights_that_get_their_first_gradient_when_steps_overlap_are_summed_too(two) -> None:
    assert measure(two[0]["cases"], "late gradients", "late gradients, summed") == 0


def test_memory_that_runs_out_for_the_sum_halves_the_micro_batch_of_all(two) -> None:
    for process in two:
        assert process["facts"]["micro-batch sum"] == 2
    assert measure(two[0]["cases"], "out of memory in the sum", "alone, 4 steps") < 5e-5


def test_a_process_that_ends_within_an_overlapped_pass_is_reported_by_its_own_words(two) -> None:
    assert two[0]["facts"]["lost"] == ["ProcessLost", "Process 1 has no memory. Buy some."]
