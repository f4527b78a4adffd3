"""What a resumed run needs to end as if it had never stopped, and its files, which are swapped in
as one folder.

Saved: weights, their EMA, the optimizer's moments, the loss scale, step and epoch, the epoch's
losses, the best score. Not saved: random state or loader position, because every draw is a function
of the seed and the step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import load_tensors, save_tensors
from deitctl.paths import DiskError, read_json, sync_folder, write_json
from deitctl.records import SCHEMA_VERSION
from deitctl.training.optim import ExponentialMovingAverage

MAX_RECORD_BYTES = 1 << 30  # of state.json, which names every image that could not be read


@dataclass
class Progress:
    """How far a run is, and its best epoch. One object a run: loading a checkpoint fills it."""

    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done."""
    images_seen: int = 0
    images_in_epoch: int = 0
    """Of these, in the current epoch."""
    num_train_images: int = 0
    """Of the data that the run began with; a resume on other data is refused."""
    seconds: float = 0.0
    """Duration of the run, over all its sessions."""
    best_top1: float = -1.0
    best_epoch: int = 0
    best_weights: str = "model"
    """Which weights of the best epoch were saved: `model` or `ema`."""
    log_bytes: int = 0
    """Size of metrics.jsonl when the checkpoint was made; a resume drops what was logged later."""
    recent_loss: float = 0.0
    """Running mean of the loss over `steps_monitored` steps, for `LossMonitor`."""
    steps_monitored: int = 0
    micro_batch_size: int = 0
    """Images of a micro-batch, as requested or as memory forced; 0: as is fastest."""
    views_version: int = 1
    """`VIEWS_VERSION` that the run began with."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Training images that could not be read, and why."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state in CPU memory, which can be written while training continues."""

    files: Mapping[str, Mapping[str, Tensor]]
    record: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write the state beside the previous one, then swap them; a kill at any moment leaves one
        of them complete.

        Raises:
            DiskError: the disk is full or the folder is not writable; the previous state is
            unchanged.
        """
        new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
        try:
            shutil.rmtree(new, ignore_errors=True)
            try:
                for name, tensors in self.files.items():
                    save_tensors(new / name, tensors)
                write_json(new / "state.json", self.record)
                sync_folder(new)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)  # the next try needs the space
                raise
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(folder, old)
            os.rename(new, folder)
            sync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise DiskError.from_os_error(folder, error) from error


@dataclass
class TrainState:
    """Everything that changes during training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    progress: Progress
    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    """Losses summed over the images of the current epoch, on the device."""

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Return the weights of the `model`, or their `ema` if there is one."""
        return (
            self.ema.values if kind == "ema" and self.ema is not None else self.model.state_dict()
        )

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Let the model have its EMA weights for a block. No snapshot may be taken meanwhile."""
        assert self.ema is not None
        weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.values)
        try:
            yield
        finally:
            self.model.load_state_dict(weights)

    def snapshot(self) -> Snapshot:
        """Copy the state, between two steps."""
        files = {
            "model.safetensors": _copy_to_cpu(self.model.state_dict()),
            "optimizer.safetensors": _copy_to_cpu(_optimizer_tensors(self.model, self.optimizer)),
        }
        if self.ema is not None:
            files["ema.safetensors"] = _copy_to_cpu(self.ema.values)
        record = asdict(self.progress) | {
            "loss_sums": {name: float(value) for name, value in self.loss_sums.items()},
            "scaler": self.scaler.state_dict(),
        }
        return Snapshot(files, record)

    def save(self, folder: Path) -> None:
        """Write the state now; see `Snapshot.write`."""
        self.snapshot().write(folder)

    def load(self, folder: Path) -> None:
        """Read a saved state into this one; raise `ModelError` if it is incomplete or does not fit."""
        if not folder.exists():  # the run was killed between the two renames of a save
            folder = folder.with_name(f"{folder.name}.old")
        try:
            record = read_json(folder / "state.json", MAX_RECORD_BYTES)
            sums = record.pop("loss_sums", {})
            # empty if the run was in a precision without a loss scale
            if scale := record.pop("scaler"):
                self.scaler.load_state_dict(scale)
            loaded = Progress(**record)
            _require_types(loaded, sums)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder} holds no readable training state: {error}.") from error
        if loaded.schema_version != SCHEMA_VERSION:
            raise ModelError(f"{folder} was written by another version of deitctl.")
        for entry in fields(Progress):  # in place: the monitor and the trainer hold this object
            setattr(self.progress, entry.name, getattr(loaded, entry.name))
        try:
            self.model.load_state_dict(load_tensors(folder / "model.safetensors"))
            if self.ema is not None:
                values = load_tensors(folder / "ema.safetensors")
                for name, value in self.ema.values.items():
                    value.copy_(values[name])
            _load_optimizer(
                self.model, self.optimizer, load_tensors(folder / "optimizer.safetensors")
            )
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"{folder} does not fit the run's model: {str(error).splitlines()[0]}"
            ) from error
        device = next(self.model.parameters()).device
        self.loss_sums = {name: torch.tensor(value, device=device) for name, value in sums.items()}


def _require_types(progress: Progress, sums: Any) -> None:
    """Raise `TypeError` if a value of state.json has another type than what `snapshot` writes."""
    for name, default in asdict(Progress()).items():
        value = getattr(progress, name)
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
    if not all(isinstance(reason, str) for reason in progress.unreadable.values()):
        raise TypeError("unreadable holds a reason that is no text")
    if not all(isinstance(value, int | float) for value in sums.values()):
        raise TypeError("loss_sums holds a value that is no number")


def _copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by `parameter.key`, whatever the parameter groups."""
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, moments in optimizer.state.items()
        for key, value in moments.items()
    }


def _load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        parameter = parameters[owner]
        # A copy, because the value is a memory map of the file that the next save replaces. The
        # fused optimizer needs its step counter on the parameter's device too.
        moment = value.clone().to(parameter.device, memory_format=torch.preserve_format)
        if key != "step" and parameter.ndim == 4:
            # Moments in another layout than their parameter would make the fused optimizer copy
            # them in every step.
            channels_last = (
                parameter.is_contiguous(memory_format=torch.channels_last)
                and not parameter.is_contiguous()
            )
            layout = torch.channels_last if channels_last else torch.contiguous_format
            moment = moment.contiguous(memory_format=layout)
        optimizer.state[parameter][key] = moment
