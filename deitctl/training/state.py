"""What a run needs to go on as if it had never stopped, and how it is kept: four files, swapped in as one folder.

Kept: weights, their average, the optimizer's moments, the step, the epoch's sums so far, the best score, the loss scale.
Not kept: any random state or loader position, because every draw is a function of the seed and the step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import load_tensors, save_tensors
from deitctl.paths import DiskError, read_json, sync_folder, write_json
from deitctl.training.ema import ExponentialMovingAverage

LARGEST_RECORD = 1 << 30
"""Bytes of state.json, which names every image that could not be read."""
FORMAT = 2
"""1 was of whole epochs; its fields are all here."""


@dataclass
class Progress:
    """The numbers of a run that change: where it is and the best so far."""

    step: int = 0
    """Steps done."""
    epoch: int = 0
    """Epochs done."""
    images_seen: int = 0
    num_images: int = 0
    """Training images of the data: a resume on other data would not be one."""
    seconds: float = 0.0
    """Time spent in earlier sessions of the run."""
    best_top1: float = -1.0
    best_epoch: int = 0
    best_weights: str = "raw"
    """Which weights of that epoch were kept: `raw`, or the moving `average`."""
    log_size: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """The loss and its parts, added up over the steps of the epoch that is not done yet."""
    usual_loss: float = 0.0
    """Recent mean of the loss, over `steps_watched` steps (see health.py)."""
    steps_watched: int = 0
    micro_batch: int = 0
    """Images that a process takes at a time, even, as asked for or as memory forced; 0: as pays on the device."""
    views_version: int = 1
    """Which way of making views the run began with, see `VIEWS_VERSION`; states of before have none."""
    bad_images: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, and why."""
    format: int = FORMAT


@dataclass(frozen=True)
class Snapshot:
    """A state as it was at one moment, copied to memory of its own; to be written while the training goes on."""

    files: Mapping[str, Mapping[str, Tensor]]
    record: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write the state beside the old one, then swap them; a kill at any moment leaves one of them whole.

        Raises:
            DeitctlError: the disk is full or the folder may not be written; the old state is as it was.
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
                shutil.rmtree(new, ignore_errors=True)  # the room is wanted for the next try
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
    """Everything that moves during training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    progress: Progress
    sums: dict[str, Tensor] = field(default_factory=dict)
    """`Progress.sums` where they are added up, on the device."""
    whole: bool = True
    """Whether it is between two steps, and may be saved."""

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Return the `raw` weights or their moving `average`."""
        return (
            self.ema.values
            if kind == "average" and self.ema is not None
            else self.model.state_dict()
        )

    @contextmanager
    def lent(self, kind: str) -> Iterator[nn.Module]:
        """Give the model its `average` for a block, and its own weights back; `raw` lends nothing."""
        if kind == "raw" or self.ema is None:
            yield self.model
            return
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.whole = False
        self.model.load_state_dict(self.ema.values)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)
            self.whole = True

    def snapshot(self) -> Snapshot:
        """Copy the state as it is now, between two steps."""
        files = {
            "model.safetensors": _copies(self.model.state_dict()),
            "optimizer.safetensors": _copies(_optimizer_tensors(self.model, self.optimizer)),
        }
        if self.ema is not None:
            files["ema.safetensors"] = _copies(self.ema.values)
        record = asdict(self.progress) | {"format": FORMAT}
        record["sums"] = self.progress.sums | {k: float(v) for k, v in self.sums.items()}
        return Snapshot(files, {**record, "scaler": self.scaler.state_dict()})

    def save(self, folder: Path) -> None:
        """Write the state now; see `Snapshot.write`."""
        self.snapshot().write(folder)

    def load(self, folder: Path) -> None:
        """Read a state that `save` wrote into this one; raise `ModelError` if it is not whole."""
        if not folder.exists():  # stopped between the two renames of a save
            folder = folder.with_name(f"{folder.name}.old")
        try:
            record = read_json(folder / "state.json", LARGEST_RECORD)
            if scale := record.pop(
                "scaler"
            ):  # empty where it was saved in a precision that needs none
                self.scaler.load_state_dict(scale)
            self.progress = Progress(**record)
            _require_types(self.progress)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{folder} holds no training state that can be read: {error}."
            ) from error
        if self.progress.format not in (1, FORMAT):
            raise ModelError(
                f"{folder} was written by another version of deitctl (format {self.progress.format})."
            )
        try:
            self.model.load_state_dict(load_tensors(folder / "model.safetensors"))
            if self.ema is not None:
                average = load_tensors(folder / "ema.safetensors")
                for name, value in self.ema.values.items():
                    value.copy_(average[name])
            _load_optimizer(
                self.model, self.optimizer, load_tensors(folder / "optimizer.safetensors")
            )
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"{folder} does not fit the run's model: {str(error).splitlines()[0]}"
            ) from error


def _require_types(progress: Progress) -> None:
    """Raise `TypeError` for a record whose values are of other types than what `snapshot` writes."""
    for name, usual in asdict(Progress()).items():
        value = getattr(progress, name)
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
    texts = (*progress.bad_images, *progress.bad_images.values(), *progress.sums)
    if not all(isinstance(t, str) for t in texts) or not all(
        isinstance(v, int | float) for v in progress.sums.values()
    ):
        raise TypeError("sums or bad_images hold other things than they should")


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
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
        value = value.clone()  # it is a map of the file, which the next save replaces
        place = value.to(
            parameter.device, memory_format=torch.preserve_format
        )  # `fused` wants the step there too
        if key != "step" and parameter.ndim == 4:
            place = place.contiguous(memory_format=_format(parameter))
        optimizer.state[parameter][key] = place


def _format(parameter: Tensor) -> torch.memory_format:
    channels_last = (
        parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous()
    )
    return torch.channels_last if channels_last else torch.contiguous_format
