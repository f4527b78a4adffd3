"""A model that is divided among processes trains to the weights of one process, and goes on in any number of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

Cases = dict[str, dict[str, torch.Tensor]]


def run(out: Path, case: str, size: int) -> Cases:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    program = Path(__file__).with_name("fsdp_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(out), case],
            env={**common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    stderrs = [process.communicate(timeout=60)[1] for process in processes]
    assert not any(process.returncode for process in processes), stderrs
    return torch.load(out / f"{case}.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def two(folder: Path) -> Cases:
    return run(folder, "two", 2)


def measure(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference."""
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


def test_weights_and_ema_are_those_of_one_process_to_rounding(two) -> None:
    assert measure(two["whole"], two["one"]) < 1e-4


def test_micro_batches_change_no_more_than_rounding(two) -> None:
    assert measure(two["micro"], two["whole"]) < 1e-4


def test_a_process_without_a_readable_image_joins_and_the_run_goes_on(two) -> None:
    assert all(value.isfinite().all() for value in two["lost"].values())
    assert measure(two["lost"], two["whole"]) > 1e-4


def test_resume_is_bit_equal(two) -> None:
    assert measure(two["resumed"], two["whole"]) == 0


def test_two_processes_save_and_three_go_on(folder: Path, two) -> None:
    assert measure(run(folder, "three", 3)["three"], two["whole"]) < 1e-4
