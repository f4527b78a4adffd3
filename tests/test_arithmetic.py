"""Torch's switches are as each precision and option claims, for a block, and the program's come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch

from deitctl.arithmetic import (
    WORKSPACE_VARIABLE,
    explain_nondeterminism,
    prepare_cublas,
    set_arithmetic,
)
from deitctl.device import Device, choose_device
from deitctl.errors import ConfigError

CUDA = torch.device("cuda")


def read_switches() -> dict[str, object]:
    """Return all that is set, by both kinds of torch's switches."""
    backends = torch.backends
    return {
        "cuda.matmul": backends.cuda.matmul.fp32_precision,
        "cudnn.conv": backends.cudnn.conv.fp32_precision,
        "cudnn.rnn": backends.cudnn.rnn.fp32_precision,
        "mkldnn.matmul": backends.mkldnn.matmul.fp32_precision,
        "mkldnn.conv": backends.mkldnn.conv.fp32_precision,
        # which raise where they contradict the others
        "matmul": torch.get_float32_matmul_precision(),
        "cuda.matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "benchmark": backends.cudnn.benchmark,
    }


@pytest.fixture
def current(monkeypatch) -> list[str]:
    """The CUDA devices that are current one in the other, on a machine without any."""
    devices: list[str] = []

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        devices.append(str(device))
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", enter)
    return devices


@pytest.fixture
def programs_switches(monkeypatch, current):
    """The switches of a program that wants speed: none is what any precision of ours needs."""
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    yield read_switches()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_products_of_fp32_are_rounded_in_no_precision_but_tf32(programs_switches, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert programs_switches["mkldnn.matmul"] == "bf16"
    with Device(CUDA, dtype, "").computing():
        inside = read_switches()
    assert {v for k, v in inside.items() if "." in k and "allow" not in k} == {"ieee"}
    assert (inside["matmul"], inside["cuda.matmul.allow_tf32"]) == ("highest", False)
    assert not inside["cudnn.allow_tf32"]
    assert not inside["deterministic"]
    assert read_switches() == programs_switches


def test_the_device_that_computes_is_the_current_one(current):
    for name in ("cuda", "cuda:1"):
        with Device(torch.device(name), torch.float32, "").computing():
            assert current == [name]
        assert current == []
    with choose_device("cpu", "fp32").computing():
        assert current == []


def test_tf32_rounds_the_products_of_cuda_and_those_of_no_cpu(programs_switches):
    device = Device(CUDA, torch.float32, "", tf32=True)
    assert device.precision == "tf32"
    with device.computing():
        inside = read_switches()
    assert {inside[k] for k in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")} == {"tf32"}
    assert {inside[k] for k in ("mkldnn.matmul", "mkldnn.conv")} == {"ieee"}
    assert (inside["matmul"], inside["cudnn.allow_tf32"]) == ("high", True)
    assert read_switches() == programs_switches


def test_a_cpu_multiplies_in_fp32_whatever_the_program_has_set(programs_switches, noise):
    a, b = noise(64, 64), noise(64, 64)
    with set_arithmetic(tf32=False, deterministic=False):
        product = a @ b
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(product, a @ b)


def test_deterministic_sets_all_that_it_needs_and_fills_no_memory(programs_switches):
    device = choose_device("cpu", "fp32", deterministic=True)
    assert os.environ[WORKSPACE_VARIABLE] == ":4096:8"
    with device.computing():
        inside = read_switches()
    assert (inside["deterministic"], inside["fills"], inside["benchmark"]) == (True, False, False)
    assert read_switches() == programs_switches


def test_the_newer_switches_of_a_program_come_back_too():
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # and rnn is not: the former one raises
    with set_arithmetic(tf32=True, deterministic=False):
        assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    torch.backends.cudnn.allow_tf32 = True


def test_blocks_nest_and_an_error_leaves_none():
    before = read_switches()
    with suppress(ZeroDivisionError), set_arithmetic(tf32=True, deterministic=False):
        with set_arithmetic(tf32=False, deterministic=False):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert read_switches() == before


def test_a_thread_that_ends_first_leaves_the_switches_of_the_other():
    before, entered, leave = read_switches(), threading.Event(), threading.Event()

    def compute() -> None:
        with set_arithmetic(tf32=False, deterministic=False):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=compute)
    with set_arithmetic(tf32=False, deterministic=False):
        thread.start()
        assert entered.wait(30)
    assert not torch.backends.cudnn.allow_tf32
    leave.set()
    thread.join()
    assert read_switches() == before


def test_a_workspace_with_which_cublas_does_not_repeat_its_bits_is_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":16:8")
    prepare_cublas()
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":1024:2")
    with pytest.raises(ConfigError, match="does not repeat its bits.*Unset it"):
        choose_device("cpu", deterministic=True)


def test_an_operator_without_a_deterministic_kernel_is_named(monkeypatch):
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    tensor, index = torch.ones(4), torch.tensor([1, 1])  # refused on every device
    with (
        pytest.raises(ConfigError, match=r"^put_ has no kernel that repeats"),
        set_arithmetic(tf32=False, deterministic=True),
    ):
        tensor.put_(index, torch.zeros(2))
    with pytest.raises(RuntimeError), set_arithmetic(tf32=False, deterministic=True):
        torch.ones(2) @ torch.ones(3)  # any other error is as it was
    late = "this operation is not deterministic because it uses CuBLAS ... CUBLAS_WORKSPACE_CONFIG="
    assert "started before" in explain_nondeterminism(RuntimeError(late)).message


QUIET = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from deitctl.device import choose_device
    before = torch.backends.cudnn.allow_tf32
    with choose_device("cpu", "fp32").computing():
        pass
print(json.dumps([before, torch.backends.cudnn.allow_tf32, [str(w.message) for w in caught]]))
"""


def test_switches_are_set_when_a_device_computes_and_without_a_warning():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, []]
