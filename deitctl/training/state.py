"""What a resumed run needs to end as if it had never stopped, and its files, which are swapped in
as one folder.

Saved: weights, their EMA, the projector of features, the optimizer's moments, the loss scale, step and
epoch, the epoch's losses, the best score. Not saved: random state or loader position, because every draw is a function
of the seed and the step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deitctl.models.checkpoint_io import save_tensors
from deitctl.paths import DiskError, refuse_links, sync_folder, write_json
from deitctl.records import SCHEMA_VERSION
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.optimizer_state import Named, SavedOptimizer, get_tensor, list_states
from deitctl.training.saved_state import (
    EMA,
    MODEL,
    OPTIMIZER,
    PROJECTOR,
    RECORD,
    SHARDED,
    add_checksums,
    list_tensors,
    read_file,
    read_record,
    refuse,
    require_numbers,
    require_tensors,
)

if TYPE_CHECKING:
    from deitctl.training.sharded_checkpoint import ShardedSnapshot
    from deitctl.training.sharding import Sharding


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
    """Of the data that the run began with."""
    data_fingerprint: str = ""
    """Of that data, see `fingerprint_split`; a resume on other data is refused."""
    blocks_fingerprint: str = ""
    """Of its blocks, where the order of images is by them; empty for a random order over all."""
    value_range: str = ""
    """Of that data, as `write_range` writes it; empty: not known."""
    channels: str = ""
    """Normalization of images of bands, as `write_channels` writes it; empty for other images."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the run learns by, see `list_learning`; a resume with others is refused."""
    seconds: float = 0.0
    """Duration of the run, over all its sessions."""
    best_score: float = -1e15
    """Score of the best epoch by `best_select`, higher is better; the lowest there is before any."""
    best_select: str = ""
    """Metric that the best epoch was selected by, see `choose_metric`; empty before any."""
    best_epoch: int = 0
    """One that is not done yet only where a run ended before its epochs came again, see `adopt_ahead`."""
    improved_epoch: int = 0
    """Last epoch that was better than all before it; `best_epoch` may be a later one as good."""
    stopped: str = ""
    """Why the run ends before its last epoch, `patience` for example; empty: it does not."""
    best_weights: str = "model"
    """Which weights of the best epoch were saved: `model` or `ema`."""
    best_num_images: int = 0
    """Validation images that could be read in the best epoch; 0: not known."""
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


def rename_best(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of progress whose best epoch is scored by a metric that has a name: older ones
    have `best_top1`, -1 before any."""
    values = dict(record)
    if "best_top1" in values:
        values["best_score"] = values.pop("best_top1")
        values["best_select"] = "top1" if values.get("best_epoch") else ""
    return values


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
        refuse_links(folder.parent, (folder.name, new.name, old.name))
        try:
            remove(new)
            new.mkdir(parents=True)
            try:
                sums = {name: save_tensors(new / name, value) for name, value in self.files.items()}
                write_json(new / RECORD, add_checksums(self.record, sums))
            except BaseException:
                remove(new)  # the next try needs the space
                raise
            swap_in(new, folder)
        except OSError as error:
            raise DiskError.from_os_error(folder, error) from error


def swap_in(new: Path, folder: Path) -> None:
    """Put a written state in the place of the previous one, which is there until then: in `folder`, or its `.old`."""
    old = folder.with_name(f"{folder.name}.old")
    sync_folder(new)
    if folder.exists():
        remove(old)
        os.rename(folder, old)
    os.rename(new, folder)
    sync_folder(folder.parent)
    remove(old)


def remove(path: Path) -> None:
    """Delete what is at a path of ours: a folder, or a file that somebody put there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class SavedFiles:
    """The tensors of a saved state, as its state.json describes them."""

    folder: Path
    checksums: Mapping[str, Any] | None
    """Of its files; None if an older deitctl wrote it."""
    without: Collection[str] | None
    """Names of the parameters that have no moments; None: as above."""
    numbers: Mapping[str, Any]
    """What the optimizer counts."""
    step: int
    """Steps done."""
    is_sharded: bool
    """Whether each of several processes wrote its part."""

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that one process writes into a file; raise `ModelError` if they are damaged."""
        if not self.is_sharded:
            return read_file(self.folder, name, self.checksums)
        return self._whole.get(name, {})

    @cached_property
    def _whole(self) -> dict[str, dict[str, Tensor]]:
        from deitctl.training.sharded_checkpoint import read_shards  # which imports much of torch

        return read_shards(self.folder, self.checksums or {})

    def read_into(self, name: str, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file, which are to replace ours; raise `ModelError` if they do not fit."""
        tensors = self.read(name)
        require_tensors(self.folder / name, tensors, list_tensors(ours))
        return tensors


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
    projector: nn.Module | None = None
    """Maps the student's features to its teachers'; trained and saved here, and no part of the model."""
    frozen: tuple[str, ...] = ()
    """Parameters that are frozen now and may be thawed; from the settings, so nothing to save."""
    sharding: Sharding | None = None
    """How the model is divided among processes; None: each has all of it."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the model, as it names them, and of the projector."""
        yield from self.model.named_parameters()
        if self.projector is not None:
            yield from self.projector.named_parameters(prefix="projector")

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Return the weights of the `model`, or their `ema` if there is one, in parts where they are divided."""
        return (
            self.ema.values if kind == "ema" and self.ema is not None else self.model.state_dict()
        )

    def gather_weights(self, kind: str, *, keep: bool = True) -> dict[str, Tensor]:
        """Return whole weights; where they are divided, on the CPU, and none without `keep`; collective."""
        weights = self.weights(kind)
        return weights if self.sharding is None else self.sharding.gather(weights, keep=keep)

    def whole_model(self, kind: str = "model") -> nn.Module:
        """Return a model with whole weights: the model itself; of a divided one a copy, collective."""
        if self.sharding is None and kind == "model":
            return self.model
        assert self.sharding is not None
        return self.sharding.build_full(self.weights(kind))

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Let the model have other weights, whole or divided as its own are."""
        if self.sharding is None:
            self.model.load_state_dict(values)
        else:
            self.sharding.put(self.model, values)

    @contextmanager
    def swap_weights(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model have other weights for a block. No snapshot may be taken meanwhile."""
        weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.load_weights(values)
        try:
            yield
        finally:
            self.load_weights(weights)

    def snapshot(self) -> Snapshot | ShardedSnapshot:
        """Copy the state, or this process's part of it, between two steps."""
        states = list_states(self, self.optimizer)
        record = asdict(self.progress) | {
            "loss_sums": {name: float(value) for name, value in self.loss_sums.items()},
            "scaler": self.scaler.state_dict(),
            "without_moments": _list_without_moments(self, self.optimizer),
            "optimizer": {
                "numbers": {name: count.value for name, count in states.numbers.items()},
                "groups": {name: count.value for name, count in states.groups.items()},
            },
        }
        if self.sharding is not None:
            return self.sharding.snapshot(self, record)
        tensors = {name: get_tensor(self.optimizer, p) for name, p in states.tensors.items()}
        files = {
            MODEL: _copy_to_cpu(self.model.state_dict()),
            OPTIMIZER: _copy_to_cpu(tensors),
        }
        if self.ema is not None:
            files[EMA] = _copy_to_cpu(self.ema.values)
        if self.projector is not None:
            files[PROJECTOR] = _copy_to_cpu(self.projector.state_dict())
        return Snapshot(files, record)

    def save(self, folder: Path) -> None:
        """Write the state now; see `Snapshot.write`."""
        self.snapshot().write(folder)

    def load(
        self, folder: Path, require: Callable[[Progress], None] = lambda progress: None
    ) -> None:
        """Read a saved state into this one, once all of it is known to fit.

        Args:
            folder: of the state.
            require: called with its progress before any tensor is read; may refuse it.

        Raises:
            ModelError: it is incomplete, damaged, of two saves, or of another model.
        """
        if not folder.exists():  # the run was killed between the two renames of a save
            folder = folder.with_name(f"{folder.name}.old")
        record = read_record(folder)
        is_sharded = bool(record.pop(SHARDED, False))
        checksums = record.pop("checksums", None)  # an older deitctl wrote none, and no list
        without = record.pop("without_moments", None)
        numbers = record.pop("optimizer", {})
        try:
            sums, scale = record.pop("loss_sums", {}), record.pop("scaler")
            loaded = Progress(**rename_best(record))
            require_numbers(loaded, sums, scale)
            if not isinstance(checksums, dict | None) or not isinstance(without, list | None):
                raise ValueError("checksums or without_moments have another type")
            if not isinstance(numbers, dict) or not all(
                isinstance(numbers.get(key, {}), dict) for key in ("numbers", "groups")
            ):
                raise ValueError("optimizer has another type")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise refuse(folder, f"holds no readable training state: {RECORD}: {reason}") from error
        require(loaded)
        files = SavedFiles(folder, checksums, without, numbers, loaded.step, is_sharded=is_sharded)
        if self.sharding is None:
            self._load_tensors(files)
        else:
            self.sharding.load(self, files)
        for entry in fields(Progress):  # in place: the monitor and the trainer hold this object
            setattr(self.progress, entry.name, getattr(loaded, entry.name))
        if scale:  # empty if the run was in a precision without a loss scale
            self.scaler.load_state_dict(scale)
        device = next(self.model.parameters()).device
        self.loss_sums = {
            name: torch.tensor(float(value), device=device) for name, value in sums.items()
        }

    def _load_tensors(self, saved: SavedFiles) -> None:
        """Read the tensors of a saved state, once all of them are known to fit."""
        model = saved.read_into(MODEL, self.model.state_dict())
        ema = {} if self.ema is None else saved.read_into(EMA, self.ema.values)
        projector: Mapping[str, Tensor] = {}
        if self.projector is not None:
            projector = saved.read_into(PROJECTOR, self.projector.state_dict())
        moments = saved.read(OPTIMIZER)
        without = saved.without
        if without is None:
            without = _find_without_moments(self, moments)
        optimizer = SavedOptimizer(
            saved.folder / OPTIMIZER,
            moments,
            saved.numbers.get("numbers", {}),
            saved.numbers.get("groups", {}),
            set(map(str, without)),
        )
        form = optimizer.require_fit(self, self.optimizer, saved.step)
        self.model.load_state_dict(model)
        if self.projector is not None:
            self.projector.load_state_dict(projector)
        for name, value in ema.items():
            self.ema.values[name].copy_(value)  # type: ignore[union-attr]
        optimizer.load(self.optimizer, form)


def _copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _list_without_moments(trained: Named, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of parameters that have no moments: frozen, or without a gradient so far."""
    return [name for name, p in trained.named_parameters() if p not in optimizer.state]


def _find_without_moments(trained: Named, moments: Mapping[str, Tensor]) -> list[str]:
    """Return the same of a file that an older deitctl wrote, which listed none."""
    owners = {name.rpartition(".")[0] for name in moments}
    return [name for name, _ in trained.named_parameters() if name not in owners]
