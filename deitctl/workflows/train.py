"""Train or distil a classifier: data, teacher, student, epochs, run folder. `distill` is this with a teacher."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from deitctl import rng
from deitctl.card import ModelCard
from deitctl.checkpoint import load_tensors, save_model
from deitctl.config import TrainConfig, override
from deitctl.data.classes import describe_classes
from deitctl.data.loader import Batch, train_batches
from deitctl.data.open import open_for_training
from deitctl.data.samplers import TrainBatches, steps_per_epoch
from deitctl.data.sources import Source
from deitctl.device import Device, choose_device
from deitctl.ema import ExponentialMovingAverage
from deitctl.errors import ConfigError, DataError, DeitctlError, Interrupted, Signalled
from deitctl.evaluation.evaluate import Evaluation, evaluate
from deitctl.events import Reporter, SilentReporter
from deitctl.models.build import LoadedModel, build_model
from deitctl.models.layers import layer_names, shipping_card
from deitctl.models.vit import VisionTransformer
from deitctl.optim import build_optimizer
from deitctl.report.figures import draw_curves
from deitctl.training.loop import Plan, Stopwatch, train_one_epoch
from deitctl.training.objective import Distillation, Objective, Supervised
from deitctl.training.run import Run, new_run_folder
from deitctl.training.state import Progress, TrainState
from deitctl.workflows.configure import check
from deitctl.workflows.teacher import Preflight, prepare_teacher

EVAL_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training ends with; accuracies in percent, of the saved weights, in fp32."""

    run: Path
    epochs: int
    images_seen: int
    best_epoch: int
    shipped: Evaluation
    last: dict[str, Any]
    """The last epoch's record."""
    teacher_name: str | None
    teacher_top1: float | None
    seconds: float
    bad_images: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        final = {k: self.last[k] for k in ("epoch", "top1", "top5", "val_loss") if k in self.last}
        return {
            "run": str(self.run),
            "epochs": self.epochs,
            "images_seen": self.images_seen,
            "best": {"epoch": self.best_epoch, "top1": self.shipped.top1, "top5": self.shipped.top5},
            "final": final,
            "heads": self.shipped.heads,
            "teacher": None if self.teacher_top1 is None else {"name": self.teacher_name, "top1": self.teacher_top1},
            "unreadable": sorted(self.bad_images),
            "seconds": round(self.seconds, 2),
        }


def run_training(
    config: TrainConfig, *, sources: tuple[Source, Source] | None = None, reporter: Reporter | None = None
) -> TrainResult:
    """Train from the beginning, into a new run folder.

    Args:
        config: everything; `deitctl.workflows.configure` makes one from less.
        sources: the data, if it is open already.
        reporter: told of progress; silent if None.

    Raises:
        DeitctlError: bad data, model, teacher or output folder, or a loss that is no longer a number.
        Interrupted: stopped by a signal; the last finished epoch is saved.
    """
    root = Path(config.output) if config.output else new_run_folder(_stem(config))
    config = replace(config, output=str(root))
    return _train(Run(root), config, sources, reporter or SilentReporter(), fresh=True)


def resume(
    root: Path, *, given: Mapping[str, object] | None = None, sources: tuple[Source, Source] | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:  # fmt: skip
    """Go on with a run after its last finished epoch, ending as if it had never stopped; raises as `run_training`.

    `given` may say another device, precision or number of workers than the run began with; nothing else may change.
    """
    reporter = reporter or SilentReporter()
    run, config = Run.open(root)
    changes = {k: v for k, v in (given or {}).items() if v is not None}
    if fixed := [k for k in changes if k not in ("device", "precision", "workers")]:
        raise ConfigError(f"A resumed run keeps its {fixed[0]}.", "Start a new run: --config run.toml with the change.")
    config = override(config, changes)
    reporter.note(f"Resuming {root}.")
    return _train(run, replace(config, output=str(root)), sources, reporter, fresh=False)


def _train_or_find(config: TrainConfig, sources: tuple[Source, Source], reporter: Reporter) -> None:
    """Train a teacher into its folder, or go on with it there, or leave it if it is finished."""
    root = Path(config.output)
    if not Run(root).config_file.is_file():
        run_training(config, sources=sources, reporter=reporter)
    elif Run(root).epochs_done() < config.recipe.epochs:
        resume(root, sources=sources, reporter=reporter)
    else:
        reporter.note(f"Using the teacher trained earlier in {root}.")


def _stem(config: TrainConfig) -> str:
    parts = [Path(config.model).name]
    if config.distill is not None:
        parts += ["from", Path(config.distill.teacher).name]
    return "-".join([*parts, Path(config.data).name])


def _train(
    run: Run, config: TrainConfig, sources: tuple[Source, Source] | None, reporter: Reporter, *, fresh: bool
) -> TrainResult:
    check(config)
    device = choose_device(config.device, config.precision)
    train, val = sources or open_for_training(config.data, seed=config.seed, reporter=reporter)
    student = _build_student(config, train, reporter)
    for change in student.changes:
        reporter.note(f"{config.model}: {change}.")
    if fresh:  # an output folder that cannot be written is found before the teacher is trained
        run = Run.create(run.root, config)
    try:
        preflight = None
        if config.distill is not None:
            preflight = prepare_teacher(
                config.distill, config, train, val, student.card.preprocessing, device=device, reporter=reporter,
                train_run=lambda teacher: _train_or_find(teacher, (train, val), reporter),
            )  # fmt: skip
        session = _Session(run, config, device, student, train, val, preflight, reporter)
        if not fresh:
            session.load()
        session.train()
        return session.finish()
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        raise Interrupted(signum, f"deitctl train --resume {run.root}") from stop
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeitctlError(
            "A loader process died, most often for want of memory.",
            f"Continue with fewer: deitctl train --resume {run.root} --workers 0",
        ) from error


def _build_student(config: TrainConfig, train: Source, reporter: Reporter) -> LoadedModel:
    recipe = config.recipe
    distilled = None if config.distill is None else config.distill.token
    with rng.scope(config.seed, "init"):
        student = build_model(
            config.model, class_names=train.class_names, descriptions=describe_classes(train.class_names),
            img_size=recipe.img_size, drop_path_rate=recipe.drop_path_rate, pretrained=recipe.pretrained,
            weights=config.weights, distilled=distilled, reporter=reporter,
        )  # fmt: skip
    if recipe.augment.crop_scale == (1.0, 1.0):  # trained on whole pictures, so evaluated on whole pictures
        whole = replace(student.card.preprocessing, crop_pct=1.0, crop_mode="squash")
        student = replace(student, card=replace(student.card, preprocessing=whole))
    if distilled and not isinstance(student.model, VisionTransformer):
        reporter.note(f"{config.model} is no DeiT and has no distillation token: its one head listens to the teacher.")
    return student


class _Session:
    """One process's work on a run: what `train` needs at hand, from the first epoch or from the last finished one."""

    def __init__(
        self, run: Run, config: TrainConfig, device: Device, student: LoadedModel, train: Source, val: Source,
        preflight: Preflight | None, reporter: Reporter,
    ) -> None:  # fmt: skip
        self.run, self.config, self.device, self.reporter = run, config, device, reporter
        self.train_source, self.val_source, self.preflight = train, val, preflight
        self.card: ModelCard = shipping_card(student.model, student.card)
        self.workers = device.loader_workers(config.workers)
        model = device.place(student.model)
        pictures = len(train.labels)
        # a set smaller than a batch is one batch, and its size is what the learning rate is for
        recipe = replace(config.recipe, batch_size=min(config.recipe.batch_size, pictures))
        steps = steps_per_epoch(pictures, recipe.batch_size)
        ema = None
        if recipe.ema_decay:
            ema = ExponentialMovingAverage(model, decay=recipe.ema_decay, total_steps=steps * recipe.epochs)
        optimizer = build_optimizer(model, recipe.optim)
        self.state = TrainState(model, optimizer, device.grad_scaler(), ema, Progress(pictures=pictures))
        objective: Objective = Supervised()
        if preflight is not None and config.distill is not None:
            objective = Distillation(preflight.teacher, config.distill)
        self.plan = Plan(recipe, self.card.preprocessing, len(train.class_names), steps, config.seed, device, objective)
        self.watch = Stopwatch()

    def load(self) -> None:
        """Take up the saved state; a run stopped before its first epoch ended starts again."""
        if self.run.state.exists() or self.run.state.with_name("state.old").exists():
            self.state.load(self.run.state)
            if self.state.progress.pictures != len(self.train_source.labels):
                raise DataError(
                    f"{self.config.data} has {len(self.train_source.labels)} training pictures, it had "
                    f"{self.state.progress.pictures} when {self.run.root} began.", "Start a new run on the new data.",
                )  # fmt: skip
        self.run.cut_log(self.state.progress.log_size)
        self.watch = Stopwatch(self.state.progress.seconds)

    def train(self) -> None:
        """Run the epochs that are left; after each, evaluate, keep the best weights, save the state."""
        progress, recipe = self.state.progress, self.config.recipe
        batches = self._batches() if progress.epoch < recipe.epochs else iter(())
        while progress.epoch < recipe.epochs:
            means = train_one_epoch(
                self.plan, self.state, batches, log=self.run.log, name_of=self.train_source.name, reporter=self.reporter
            )
            score = self._evaluate(self.device, f"epoch {progress.epoch + 1}/{recipe.epochs}, validate")
            progress.epoch += 1
            progress.seconds = self.watch()
            self._record(means, score)
            if score.top1 >= progress.best_top1:  # of equals the later, which has seen more
                progress.best_top1, progress.best_epoch = score.top1, progress.epoch
                self._ship()
            progress.log_size = self.run.log_size()
            self.state.save(self.run.state)

    def _batches(self) -> Iterator[Batch]:
        recipe, seed = self.config.recipe, self.config.seed
        keys = TrainBatches(
            len(self.train_source.labels), recipe.batch_size, seed=seed, epochs=recipe.epochs,
            repeats=recipe.augment.repeats, first_step=self.state.progress.step,
        )  # fmt: skip
        return train_batches(
            self.train_source, recipe.augment, self.card.preprocessing.img_size, keys,
            workers=self.workers, pin_memory=self.device.pins_memory,
        )  # fmt: skip

    def _evaluate(self, device: Device, label: str) -> Evaluation:
        with _shipped_weights(self.state) as model:
            return evaluate(
                model, self.val_source, self.card.preprocessing, rows=tuple(range(self.card.num_classes)),
                head=self.card.head, device=device, batch_size=EVAL_BATCH, workers=self.workers,
                reporter=self.reporter, label=label,
            )  # fmt: skip

    def _record(self, means: dict[str, float], score: Evaluation) -> None:
        progress = self.state.progress
        record = {
            "kind": "epoch", "epoch": progress.epoch, "step": progress.step, "images_seen": progress.images_seen,
            "train": means, "top1": score.top1, "top5": score.top5, "val_loss": score.loss, "heads": score.heads,
            "agreement": score.agreement, "seconds": round(progress.seconds, 3),
        }  # fmt: skip
        self.run.log(record)
        heads = "" if score.heads is None else f" (cls {score.heads['cls']:.2f}, dist {score.heads['dist']:.2f})"
        self.reporter.note(
            f"epoch {progress.epoch}/{self.config.recipe.epochs}: loss {means['loss']:.3f}, "
            f"top-1 {score.top1:.2f} %{heads}"
        )

    def _ship(self) -> None:
        save_model(self.run.root, self.state.weights(), self.card, layer_names(self.state.model))

    def finish(self) -> TrainResult:
        """Score the saved weights once more in fp32, draw the curves, report."""
        self.state.model.load_state_dict(load_tensors(self.run.root / "model.safetensors"))
        self.state.ema = None
        exact = choose_device(self.config.device, "fp32")
        shipped = self._evaluate(exact, "score the saved weights")
        epochs = list(self.run.records("epoch"))
        draw_curves(
            self.run.figures / "curves.png", list(self.run.records("step")), epochs,
            teacher_top1=self.preflight.top1 if self.preflight else None, title=self.run.root.name,
        )  # fmt: skip
        progress = self.state.progress
        if progress.bad_images:
            first = next(iter(progress.bad_images.values()))
            self.reporter.warn(
                f"{len(progress.bad_images)} training pictures could not be read and were left out: {first}"
            )
        return TrainResult(
            run=self.run.root, epochs=progress.epoch, images_seen=progress.images_seen,
            best_epoch=progress.best_epoch, shipped=shipped, last=epochs[-1],
            teacher_name=self.preflight.name if self.preflight else None,
            teacher_top1=self.preflight.top1 if self.preflight else None,
            seconds=self.watch(), bad_images=progress.bad_images,
        )  # fmt: skip


@contextmanager
def _shipped_weights(state: TrainState) -> Iterator[nn.Module]:
    """Lend the model its moving average for a block, where there is one, and give it its own weights back."""
    if state.ema is None:
        yield state.model
        return
    own = {k: v.detach().clone() for k, v in state.model.state_dict().items()}
    state.model.load_state_dict(state.ema.values)
    try:
        yield state.model
    finally:
        state.model.load_state_dict(own)
