"""A model whose weights are divided among processes by FSDP2's `fully_shard`: divided, gathered, saved.

Each process holds a part of every weight, of its average and of its moments. A block's weights are gathered before its
passes and dropped behind them; validation and files of weights gather all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from deitctl.data.fingerprint import fingerprint_model
from deitctl.device import Device
from deitctl.distributed import World
from deitctl.errors import ConfigError
from deitctl.models.vit import VisionTransformer

if TYPE_CHECKING:
    from deitctl.training.sharded_checkpoint import ShardedSnapshot
    from deitctl.training.state import SavedFiles, TrainState


class Sharding:
    """How a model is divided among the processes; made before its optimizer and its average."""

    def __init__(self, model: nn.Module, world: World, device: Device) -> None:
        """Divide the parameters of `model`, which is the same in every process, in place; collective.

        Raises:
            ConfigError: it is no DeiT.
        """
        if not isinstance(model, VisionTransformer):
            raise ConfigError(
                "--strategy fsdp divides a DeiT, block by block, and this model is none.",
                "Use --strategy ddp.",
            )
        self.world, self.device = world, device.torch_device
        self.fingerprint = fingerprint_model(model)
        """Of the weights before the first step."""
        self._template = copy.deepcopy(model).to("meta")
        self.writers = _open_group()
        """For the threads that write a checkpoint, beside the collectives of the training."""
        self._leavers = _open_group()
        self._has_missed = False
        """Whether others did not come to a meeting once; what they send would be of that one."""
        mesh = init_device_mesh(self.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Losses are weighted by the images of all processes: gradients are summed, not averaged.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)

    def gather(self, weights: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
        """Return whole tensors on the CPU, or none of them without `keep`; collective."""
        gathered = {}
        for name, value in weights.items():
            full = gather_tensor(value)
            if keep:
                gathered[name] = full.detach().to("cpu", copy=True)
        return gathered

    @torch.no_grad()
    def build_full(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a model of its own on the device, with all of these weights; collective."""
        model = copy.deepcopy(self._template).to_empty(device=self.device)
        for name, target in model.state_dict().items():
            target.copy_(gather_tensor(weights[name]))
        return model

    def put(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Let a divided model have other weights, whole or divided alike."""
        put_tensors({k: v.detach() for k, v in model.state_dict().items()}, weights)

    def snapshot(self, state: TrainState, record: Mapping[str, Any]) -> ShardedSnapshot:
        """Copy this process's part of a state to memory."""
        # It builds on this module, as the next.
        from deitctl.training.sharded_checkpoint import ShardedSnapshot

        return ShardedSnapshot.of(state, record, self)

    def load(self, state: TrainState, saved: SavedFiles) -> None:
        """Read this process's part of a saved state; collective, raises as `TrainState.load`."""
        from deitctl.training.sharded_checkpoint import load_state

        load_state(state, saved)

    def agree(self, flag: bool) -> bool:
        """Return whether a flag is set in any process; collective."""
        return any(number for (number,) in self.world.all_gather_ints([flag]))

    def meet(self, step: int, limit_s: float) -> bool:
        """Return whether all processes come here within some seconds, at the same step."""
        if self._has_missed:
            return False
        mine = torch.tensor([step])
        theirs = [torch.empty_like(mine) for _ in range(self.world.size)]
        deadline = time.monotonic() + limit_s
        try:
            work = dist.all_gather(theirs, mine, group=self._leavers, async_op=True)
            while work is not None and not work.is_completed() and time.monotonic() < deadline:
                time.sleep(0.02)
            if work is not None and work.is_completed():
                work.wait()
                return all(int(other) == step for other in theirs)
        except RuntimeError:  # by which torch says that a process is gone
            pass
        self._has_missed = True
        return False


def _open_group() -> dist.ProcessGroup:
    """Return a group of all processes whose collectives run on the host; collective."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # as every process is of it
    return group


def gather_tensor(value: Tensor) -> Tensor:
    """Return a whole tensor; collective for one that is divided."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def put_tensors(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values, whole or divided alike, into the tensors of the same names, which may be divided."""
    for name, target in targets.items():
        value = values[name].to(target.device)
        if isinstance(target, DTensor) and not isinstance(value, DTensor):
            # By no communication: every process has the whole.
            value = distribute_tensor(
                value.to(target.dtype), target.device_mesh, target.placements, src_data_rank=None
            )
        target.copy_(value)


def list_state(state: TrainState) -> dict[str, Tensor]:
    """Return the tensors of a state, which share its memory: `model.*`, `ema.*`, `optimizer.*`."""
    tensors = {f"model.{k}": v.detach() for k, v in state.model.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{k}": v for k, v in state.ema.values.items()}
    return tensors | {f"optimizer.{name}": value for name, value in _list_moments(state)}


def _list_moments(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            yield f"{name}.{key}", value.detach()


@torch.no_grad()
def begin_moments(state: TrainState, without: set[str]) -> None:
    """Let the optimizer have moments of all parameters but those named, by a step that changes nothing."""
    rates = [group["lr"] for group in state.optimizer.param_groups]
    state.optimizer.zero_grad(set_to_none=True)
    for name, parameter in state.model.named_parameters():
        if name not in without and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
