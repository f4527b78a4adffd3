"""Batches are sized by the memory of an accelerator, and stay small elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from deitctl.device import Device, choose_device
from deitctl.evaluation.batch_size import DEFAULT, LARGEST, choose_batch_size, measure_image_bytes
from deitctl.evaluation.eval_model import EvalModel
from deitctl.models.model_config import Preprocessing

MIB = 2**20


@dataclass(frozen=True)
class CountingDevice(Device):
    """A CPU that counts its memory as an accelerator does: each image of a forward pass takes a MiB."""

    free: int | None = None
    counts: bool = True

    @property
    def is_synchronous(self) -> bool:
        return False

    def read_free_memory(self) -> int | None:
        return self.free

    def reset_peak_memory(self) -> int | None:
        return 100 * MIB if self.counts else None

    def read_peak_memory(self) -> int | None:
        return (100 + DEFAULT) * MIB

    def empty_cache(self) -> None:
        pass


class Net(nn.Module):
    def __init__(self, words: str = "") -> None:
        super().__init__()
        self.words, self.sizes = words, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if self.words:
            raise RuntimeError(self.words)
        return images.flatten(1)[:, :3]


def build(net: nn.Module) -> EvalModel:
    return EvalModel(model=net, preprocessing=Preprocessing(img_size=8), rows=(0, 1, 2), head="cls")


def device_of(free: int | None, **fields: bool) -> CountingDevice:
    return CountingDevice(torch.device("cpu"), torch.float32, "counted", free=free, **fields)


@pytest.mark.parametrize(
    ("free", "num_images", "workers", "size"),
    [
        (1000 * MIB, 50_000, 4, 256),  # half of it, a power of two
        (8000 * MIB, 50_000, 4, LARGEST),
        (8000 * MIB, 50_000, 16, LARGEST),
        (8000 * MIB, 10_000, 16, 256),  # so that each loader has two batches or more
        (8000 * MIB, 360, 4, DEFAULT),
        (90 * MIB, 50_000, 4, 32),  # less than elsewhere, where memory is short
        (MIB, 50_000, 4, 1),
    ],
)
def test_a_batch_is_a_power_of_two_that_memory_has_room_for_and_gives_all_loaders_work(
    free: int, num_images: int, workers: int, size: int
) -> None:
    assert choose_batch_size([build(Net())], device_of(free), num_images, workers) == size


def test_an_image_is_measured_with_one_batch_of_each_model() -> None:
    nets = [Net(), Net()]
    assert measure_image_bytes([build(net) for net in nets], device_of(None)) == MIB
    assert [net.sizes for net in nets] == [[DEFAULT], [DEFAULT]]


def test_where_memory_is_not_known_a_batch_has_64_images() -> None:
    net = Net()
    cpu = choose_device("cpu", "fp32")
    for device in (cpu, device_of(None), device_of(8000 * MIB, counts=False)):
        assert choose_batch_size([build(net)], device, 50_000, 4) == 64
    assert net.sizes == []  # and nothing is computed for it


def test_where_there_is_no_room_for_the_measurement_a_batch_has_64_images() -> None:
    full, broken = Net("CUDA out of memory"), Net("shapes cannot be multiplied")
    assert choose_batch_size([build(full)], device_of(8000 * MIB), 50_000, 4) == 64
    with pytest.raises(RuntimeError, match="shapes"):
        choose_batch_size([build(broken)], device_of(8000 * MIB), 50_000, 4)
