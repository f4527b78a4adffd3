"""Choice of device and precision, memory and compilation; here on the CPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from deitctl import device as module
from deitctl.device import PRECISIONS, Device, choose_device, cpu_has_bf16, ran_out_of_memory
from deitctl.errors import ConfigError

CPU = torch.device("cpu")


def test_cpu_is_always_available():
    assert choose_device("cpu").torch_device == CPU
    assert choose_device("cpu", "fp32") == Device(CPU, torch.float32, "chosen with --precision")
    assert choose_device("cpu", "bf16").dtype is torch.bfloat16


def test_auto_precision_has_a_reason():
    device = choose_device("cpu")
    assert device.dtype is (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert "bf16" in device.reason


@pytest.mark.parametrize(
    ("name", "precision", "what"),
    [
        ("gpu", "auto", "There is no device 'gpu'"),
        ("cpu:1", "auto", "There is no device 'cpu:1'"),
        ("cuda:x", "auto", "There is no device 'cuda:x'"),
        ("", "auto", "There is no device"),
        ("cpu", "fp8", "There is no precision 'fp8'"),
        ("cpu", "fp16", "not for CPUs"),
    ],
)
def test_unknown_devices_and_precisions_are_refused(name, precision, what):
    with pytest.raises(ConfigError, match=what):
        choose_device(name, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_missing_cuda_is_refused():
    with pytest.raises(ConfigError, match="No CUDA device"):
        choose_device("cuda:0")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is MPS here")
def test_missing_mps_is_refused():
    with pytest.raises(ConfigError, match="MPS is not available"):
        choose_device("mps")


@pytest.fixture
def mac(monkeypatch):
    """Torch says that MPS is there; nothing can be computed on it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", None), ("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_mps_computes_in_fp32_unless_another_precision_is_chosen(mac, precision, dtype):
    device = choose_device("auto", precision)
    assert device.torch_device.type == "mps"
    with device.autocast():
        assert torch.is_autocast_enabled("mps") is (dtype is not None)
        assert dtype in (None, torch.get_autocast_dtype("mps"))
    assert device.grad_scaler().is_enabled() is (precision == "fp16")
    assert (device.pins_memory, device.tf32) == (False, False)


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_tf32_is_refused_where_there_is_none(mac, name):
    with pytest.raises(ConfigError, match=f"TF32 is NVIDIA's, and this device is {name}"):
        choose_device(name, "tf32")


@pytest.mark.parametrize(("capability", "has_tf32"), [((7, 5), False), ((8, 6), True)])
def test_tf32_begins_with_ampere(monkeypatch, capability, has_tf32):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if has_tf32:
        device = choose_device("cuda", "tf32")
        assert (device.tf32, device.precision, device.dtype) == (True, "tf32", torch.float32)
        return
    with pytest.raises(ConfigError, match="compute capability is 7.5, and TF32 begins at 8.0"):
        choose_device("cuda", "tf32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_computes_in_the_precision(precision):
    with choose_device("cpu", precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is PRECISIONS[precision]


def test_grad_scaler_is_enabled_only_in_fp16():
    assert not choose_device("cpu", "bf16").grad_scaler().is_enabled()
    assert choose_device("cpu", "fp32").grad_scaler().scale(torch.tensor(2.0)) == 2.0


def test_convolutions_become_channels_last_with_equal_outputs(noise):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).requires_grad_(False)
    before = net(noise(1, 3, 8, 8))
    moved = choose_device("cpu", "fp32").to_device(net)
    assert moved[1].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(noise(1, 3, 8, 8)), before)


def test_a_deit_keeps_its_memory_format(deit):
    assert choose_device("cpu").to_device(deit()).patch_embed.proj.weight.is_contiguous()


def test_loader_workers_are_as_requested_or_at_most_eight():
    device = choose_device("cpu")
    assert device.choose_num_workers(3) == 3
    assert 0 <= device.choose_num_workers(-1) <= 8


def test_images_in_memory_get_no_loader_processes_on_a_cpu_unless_asked(
    digit_datasets, monkeypatch
):
    monkeypatch.setattr(module, "count_cores", lambda: 4)
    cpu, cuda = (Device(torch.device(kind), torch.float32, "") for kind in ("cpu", "cuda"))
    train, _ = digit_datasets
    assert train.is_in_memory
    assert cpu.choose_num_workers(-1) == 2
    assert cpu.choose_num_workers(-1, in_memory=train.is_in_memory) == 0
    assert cpu.choose_num_workers(1, in_memory=train.is_in_memory) == 1
    assert cuda.choose_num_workers(-1, in_memory=train.is_in_memory) == 4
    monkeypatch.setattr(module, "count_cores", lambda: 24)  # of 192 that 8 GPUs divide
    assert cuda.choose_num_workers(-1) == 16
    assert cpu.choose_num_workers(-1) == 8
    # an Apple GPU needs none of the cores, and is slower than NVIDIA's
    mps = Device(torch.device("mps"), torch.float32, "")
    assert mps.choose_num_workers(-1) == 8
    monkeypatch.setattr(module, "count_cores", lambda: 4)
    assert mps.choose_num_workers(-1) == mps.choose_num_workers(-1, in_memory=True) == 4


def test_cuda_only_calls_do_nothing_on_the_cpu():
    device = choose_device("cpu")
    device.synchronize()
    assert device.read_peak_memory() is None
    assert not device.pins_memory
    assert device.to_device(torch.ones(1)).device == CPU


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            ),
            True,
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul"), False),
        (RuntimeError(""), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt("out of memory"), False),
    ],
)
def test_out_of_memory_is_distinguished_from_other_errors(error, expected):
    assert ran_out_of_memory(error) == expected


def test_out_of_memory_of_the_cpu_allocator_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(error.value)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_precision_is_the_name_that_chooses_it(name):
    assert choose_device("cpu", name).precision == name


def test_empty_cache_does_nothing_visible():
    choose_device("cpu").empty_cache()


def test_preferred_micro_batches_keep_activations_below_the_mmap_threshold():
    cpu = Device(torch.device("cpu"), torch.bfloat16, "")
    # deit_small in bf16: 55 images of 198 x 1,536 numbers
    assert cpu.preferred_micro_batch_size(608_256) == 32
    assert cpu.preferred_micro_batch_size(10**9) == 2
    assert cpu.preferred_micro_batch_size(0) == 0
    assert Device(torch.device("cuda"), torch.bfloat16, "").preferred_micro_batch_size(608_256) == 0


HEAP = """
import ctypes, sys
from deitctl.device import choose_device
if sys.argv[1] == "ours":
    choose_device("cpu").tune_malloc()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
c.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in "abcdefghij"]})
layers = [c.malloc(20 * 2**20) for _ in range(8)]
for layer in layers:
    c.free(layer)
print(c.mallinfo2().a)  # bytes of the heap, blocks of their own left out
"""


@pytest.mark.skipif(
    sys.platform != "linux"
    or "LD_PRELOAD" in os.environ
    or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="another malloc, or an older glibc",
)
def test_tune_malloc_keeps_freed_memory(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    heap_bytes = {
        who: int(
            subprocess.run(
                [sys.executable, "-c", HEAP, who], capture_output=True, text=True, check=True
            ).stdout
        )
        for who in ("ours", "glibc")
    }
    assert heap_bytes["ours"] > heap_bytes["glibc"] + 150 * 2**20
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")  # who says so wants memory back
    done = subprocess.run(
        [sys.executable, "-c", HEAP, "ours"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < heap_bytes["ours"] - 100 * 2**20


@pytest.mark.parametrize(
    ("name", "value", "keeps"),
    [
        ("MALLOC_ARENA_MAX", "1", False),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", False),
        ("LANG", "C", True),
    ],
)
def test_malloc_settings_of_the_environment_win(monkeypatch, name, value, keeps):
    for other in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(other)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", "linux")
    device = choose_device("cpu")
    assert device.keeps_freed_memory is keeps
    assert device.describe_settings().keeps_freed_memory is keeps
    assert not Device(torch.device("mps"), torch.float32, "").keeps_freed_memory
