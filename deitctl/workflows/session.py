"""One process's work on a run: epochs, what is kept of them, and what is reported at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.card import ModelCard
from deitctl.checkpoint import load_tensors, save_model, write_json
from deitctl.config import TrainConfig
from deitctl.data.loader import Batch, ViewPlan, train_batches
from deitctl.data.samplers import TrainBatches, steps_per_epoch
from deitctl.data.sources import Source
from deitctl.device import Device, choose_device
from deitctl.ema import ExponentialMovingAverage
from deitctl.errors import DataError
from deitctl.evaluation.evaluate import Evaluation, evaluate
from deitctl.events import Reporter
from deitctl.models.build import LoadedModel
from deitctl.models.layers import freeze_body, layer_ids, layer_names, shipping_card
from deitctl.optim import build_optimizer
from deitctl.report.figures import draw_curves
from deitctl.training.loop import Plan, Stopwatch, train_one_epoch
from deitctl.training.run import Run
from deitctl.training.state import Progress, TrainState
from deitctl.workflows.preflight import Preflight, Tutor

EVAL_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training ends with; accuracies in percent, of the saved weights, in fp32."""

    run: Path
    epochs: int
    images_seen: int
    best_epoch: int
    best_weights: str
    """`raw`, or the moving `average` where that validated at least as well."""
    shipped: Evaluation
    last: dict[str, Any]
    """The last epoch's record."""
    teacher: Preflight | None
    seconds: float
    bad_images: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        best = {"epoch": self.best_epoch, "weights": self.best_weights}
        return {
            "run": str(self.run),
            "epochs": self.epochs,
            "images_seen": self.images_seen,
            "best": {**best, "top1": self.shipped.top1, "top5": self.shipped.top5},
            "final": {k: self.last[k] for k in ("epoch", "top1", "top5", "val_loss") if k in self.last},
            "heads": self.shipped.heads,
            "agreement": self.shipped.agreement,
            "teacher_agreement": self.shipped.teacher_agreement,
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "unreadable": sorted(self.bad_images),
            "seconds": round(self.seconds, 2),
        }


class Session:
    """What `train` needs at hand, from the first epoch or from the last finished one."""

    def __init__(
        self, run: Run, config: TrainConfig, device: Device, student: LoadedModel, train: Source, val: Source,
        tutor: Tutor | None, reporter: Reporter,
    ) -> None:  # fmt: skip
        """Build optimiser, average and plan for `student`, which is moved to `device`."""
        self.run, self.config, self.device, self.reporter = run, config, device, reporter
        self.train_source, self.val_source, self.tutor = train, val, tutor
        self.card: ModelCard = shipping_card(student.model, student.card)
        self.workers = device.loader_workers(config.workers)
        model = device.place(student.model)
        pictures = len(train.labels)
        # a set smaller than a batch is one batch, and its size is what the learning rate is for
        recipe = replace(config.recipe, batch_size=min(config.recipe.batch_size, pictures))
        steps = steps_per_epoch(pictures, recipe.batch_size)
        if recipe.trainable == "head":
            freeze_body(model)
        ema = None
        if recipe.ema_decay:
            ema = ExponentialMovingAverage(model, decay=recipe.ema_decay, total_steps=steps * recipe.epochs)
        optimizer = build_optimizer(model, recipe.optim, layer_ids(model) if recipe.optim.layer_decay != 1 else None)
        self.state = TrainState(model, optimizer, device.grad_scaler(), ema, Progress(pictures=pictures))
        self.plan = Plan(
            recipe, self.card.preprocessing, len(train.class_names), steps, config.seed, device, config.distill,
            listener=tutor.listener() if tutor is not None and tutor.looks_at_views else None,
            teacher=tutor.network() if tutor is not None and not tutor.looks_at_views else None,
        )  # fmt: skip
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
        if self.tutor is not None:
            write_json(self.run.root / "teacher.json", self.tutor.preflight.to_dict())
        batches = self._batches() if progress.epoch < recipe.epochs else iter(())
        while progress.epoch < recipe.epochs:
            watch = Stopwatch()
            means = train_one_epoch(
                self.plan, self.state, batches, log=self.run.log, name_of=self.train_source.name, reporter=self.reporter
            )
            speed = self.plan.steps_per_epoch * self.plan.recipe.batch_size / watch()
            scores = self._score_epoch()
            kind = max(scores, key=lambda k: (scores[k].top1, k == "average"))
            progress.epoch += 1
            progress.seconds = self.watch()
            self._record(means, scores, kind, speed)
            if scores[kind].top1 >= progress.best_top1:  # of equals the later, which has seen more
                progress.best_top1, progress.best_epoch = scores[kind].top1, progress.epoch
                progress.best_weights = kind
                save_model(self.run.root, self.state.weights(kind), self.card, layer_names(self.state.model))
            progress.log_size = self.run.log_size()
            self.state.save(self.run.state)
            self._dismiss_teacher()

    def _batches(self) -> Iterator[Batch]:
        recipe, seed, augment = self.config.recipe, self.config.seed, self.config.recipe.augment
        keys = TrainBatches(
            len(self.train_source.labels), recipe.batch_size, seed=seed, epochs=recipe.epochs,
            repeats=augment.repeats, first_step=self.state.progress.step,
        )  # fmt: skip
        plan = ViewPlan(seed, repeats=augment.repeats)
        distill, listener = self.config.distill, self.plan.listener
        if self.tutor is not None and distill is not None and listener is not None:
            plan = ViewPlan(
                distill.view_seed, distill.views, augment.repeats, self.tutor.preflight.preprocessing["img_size"],
                listener.known,
            )  # fmt: skip
        return train_batches(
            self.train_source, augment, self.card.preprocessing.img_size, keys,
            workers=self.workers, pin_memory=self.device.pins_memory, plan=plan,
        )  # fmt: skip

    def _dismiss_teacher(self) -> None:
        """Once all but a batch a view has been said, ask for the rest and let the teacher go."""
        tutor, listener = self.tutor, self.plan.listener
        if tutor is None or listener is None or listener.cache is None or not tutor.is_loaded:
            return
        views, batch_size = tutor.total_views, self.plan.recipe.batch_size
        shown = self.state.progress.epoch * self.config.recipe.augment.repeats
        if shown < views or listener.cache.count_missing(views) > views * batch_size:
            return
        listener.fill(
            self.train_source, self.config.recipe.augment, tutor.distill.view_seed, views,
            batch_size=batch_size, workers=self.workers, reporter=self.reporter,
        )  # fmt: skip
        tutor.release()
        self.reporter.note(f"The teacher has said all: {listener.cache.root}. It is not needed any more.")

    def _score_epoch(self) -> dict[str, Evaluation]:
        """Validate the weights as they are, and their average where there is one."""
        label = f"epoch {self.state.progress.epoch + 1}/{self.config.recipe.epochs}, validate"
        scores = {"raw": self._evaluate("raw", self.device, label)}
        if self.state.ema is not None:
            scores["average"] = self._evaluate("average", self.device, f"{label} the average")
        return scores

    def _evaluate(self, kind: str, device: Device, label: str) -> Evaluation:
        with self.state.lent(kind) as model:
            return evaluate(
                model, self.val_source, self.card.preprocessing, rows=tuple(range(self.card.num_classes)),
                head=self.card.head, device=device, batch_size=EVAL_BATCH, workers=self.workers,
                reporter=self.reporter, label=label, teacher=self.tutor.answers() if self.tutor else None,
            )  # fmt: skip

    def _record(self, means: dict[str, float], scores: dict[str, Evaluation], kind: str, speed: float) -> None:
        progress, score = self.state.progress, scores[kind]
        record = {
            "kind": "epoch", "epoch": progress.epoch, "step": progress.step, "images_seen": progress.images_seen,
            "train": means, "top1": score.top1, "top5": score.top5, "val_loss": score.loss, "heads": score.heads,
            "agreement": score.agreement, "teacher_agreement": score.teacher_agreement, "weights": kind,
            "top1_by_weights": {k: s.top1 for k, s in scores.items()},
            "images_per_second": round(speed, 2), "seconds": round(progress.seconds, 3),
        }  # fmt: skip
        self.run.log(record)
        heads = "" if score.heads is None else f" (cls {score.heads['cls']:.2f}, dist {score.heads['dist']:.2f})"
        self.reporter.note(
            f"epoch {progress.epoch}/{self.config.recipe.epochs}: loss {means['loss']:.3f}, "
            f"top-1 {score.top1:.2f} %{heads}, {speed:.1f} images/s"
        )

    def finish(self) -> TrainResult:
        """Score the saved weights once more in fp32, draw the curves, report."""
        self.state.model.load_state_dict(load_tensors(self.run.root / "model.safetensors"))
        self.state.ema = None
        shipped = self._evaluate("raw", choose_device(self.config.device, "fp32"), "score the saved weights")
        epochs = list(self.run.records("epoch"))
        preflight = self.tutor.preflight if self.tutor else None
        draw_curves(
            self.run.figures / "curves.png", list(self.run.records("step")), epochs,
            teacher_top1=preflight.top1 if preflight else None, title=self.run.root.name,
        )  # fmt: skip
        progress = self.state.progress
        if progress.bad_images:
            first = next(iter(progress.bad_images.values()))
            self.reporter.warn(
                f"{len(progress.bad_images)} training pictures could not be read and were left out: {first}"
            )
        result = TrainResult(
            run=self.run.root, epochs=progress.epoch, images_seen=progress.images_seen,
            best_epoch=progress.best_epoch, best_weights=progress.best_weights, shipped=shipped, last=epochs[-1],
            teacher=preflight, seconds=self.watch(), bad_images=progress.bad_images,
        )  # fmt: skip
        write_json(self.run.result_file, result.to_dict())
        return result
