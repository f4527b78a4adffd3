"""One session of work on a run: epochs, what is kept of them, and what is reported at the end."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, ViewPlan, build_train_loader
from deitctl.data.samplers import TrainBatches, steps_per_epoch
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.device import Device, choose_device
from deitctl.distillation.preflight import DistillationTeacher
from deitctl.distributed import SINGLE_PROCESS, ProcessLost, World
from deitctl.errors import ConfigError, DataError, DeitctlError, Signalled
from deitctl.evaluation.evaluate import evaluate
from deitctl.evaluation.result import Evaluation
from deitctl.events import Reporter
from deitctl.models.checkpoint_io import WEIGHTS, load_tensors, read_metadata, save_model
from deitctl.models.factory import LoadedModel
from deitctl.models.introspect import (
    compute_early_size,
    compute_max_activation_bytes,
    describe_layers,
    freeze_backbone,
    get_layer_ids,
    pin_img_size,
)
from deitctl.models.model_config import ModelConfig
from deitctl.paths import DiskError, write_json
from deitctl.report.figures import draw_curves
from deitctl.training.checkpointer import AsyncCheckpointer
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.incident import ways_on, write_incident
from deitctl.training.monitor import LossMonitor
from deitctl.training.optim import build_optimizer
from deitctl.training.result import TrainResult
from deitctl.training.run_dir import Run
from deitctl.training.signals import Stop, held_signals
from deitctl.training.sizes import warn_about_sizes
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import (
    Plan,
    StepStats,
    Stopwatch,
    TrainingDiverged,
    at_a_time,
    train_one_epoch,
)

EVAL_BATCH = 64
NOTE = "deitctl"
"""Under which the saved weights carry the score they were kept for."""


class Trainer:
    """What `train` needs at hand, from the first step or from the last saved one."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        device: Device,
        student: LoadedModel,
        train: ImageDataset,
        val: ImageDataset,
        tutor: DistillationTeacher | None,
        reporter: Reporter,
        world: World = SINGLE_PROCESS,
    ) -> None:
        """Build optimizer, average and plan for `student`, which is moved to `device`.

        Raises:
            ConfigError: more processes than pairs of images in a batch.
        """
        self.run, self.config, self.device, self.reporter = run, config, device, reporter
        self.world = world
        self.train_dataset, self.val_dataset, self.tutor = train, val, tutor
        self.model_config: ModelConfig = pin_img_size(student.model, student.model_config)
        self.workers = device.loader_workers(config.workers)
        device.tune_malloc()
        model = device.to_device(student.model)
        world.broadcast_module_(model)
        num_images = len(train.labels)
        # a set smaller than a batch is one batch, and its size is what the learning rate is for
        recipe = replace(config.recipe, batch_size=min(config.recipe.batch_size, num_images))
        if world.size > 1 and recipe.batch_size < 2 * world.size:
            raise ConfigError(
                f"A batch of {recipe.batch_size} is too small for {world.size} processes, which take two images or more.",
                "Raise --batch-size, or start fewer.",
            )
        steps = steps_per_epoch(num_images, recipe.batch_size)
        if recipe.freeze == "backbone":
            freeze_backbone(model)
        ema = None
        if recipe.ema_decay:
            ema = ExponentialMovingAverage(
                model, decay=recipe.ema_decay, total_steps=steps * recipe.epochs
            )
        optimizer = build_optimizer(
            model, recipe.optim, get_layer_ids(model) if recipe.optim.layer_decay != 1 else None
        )
        progress = Progress(
            num_images=num_images,
            micro_batch=_even(config.micro_batch_size),
            views_version=VIEWS_VERSION,
        )
        self.state = TrainState(model, optimizer, device.grad_scaler(), ema, progress)
        self.plan = Plan(
            recipe,
            self.model_config.preprocessing,
            len(train.class_names),
            steps,
            config.seed,
            device,
            config.distill,
            listener=tutor.listener() if tutor is not None and tutor.looks_at_views else None,
            teacher=tutor.network() if tutor is not None and not tutor.looks_at_views else None,
            world=world,
            stop_on_bad_image=config.on_bad_image == "stop",
            preferred_micro_batch_size=device.preferred_micro_batch_size(
                compute_max_activation_bytes(model, device.dtype)
            ),
        )
        if config.compile:
            device.compile(model)
        if tutor is not None:
            tutor.load_together()
        self.early_size = (
            compute_early_size(model, self.model_config, recipe) if recipe.early_epochs else 0
        )
        warn_about_sizes(
            config.recipe,
            num_images,
            model,
            self.model_config.preprocessing.img_size,
            self.early_size,
            reporter,
        )
        self.clock = Stopwatch()
        self.watch = LossMonitor(
            len(train.class_names), self.state.scaler.is_enabled(), config.loss_spike_factor
        )
        self.saver = AsyncCheckpointer(run.state, run.metrics_file, config.save_every)
        self.loaded_step = 0
        """Steps of the state that this session began with."""

    def load(self) -> None:
        """Take up the saved state; a run stopped before its first one was saved starts again."""
        if self.run.state.exists() or self.run.state.with_name("state.old").exists():
            self.state.load(self.run.state)
            if self.state.progress.num_images != len(self.train_dataset.labels):
                raise DataError(
                    f"{self.config.data} has {len(self.train_dataset.labels)} training images, it had "
                    f"{self.state.progress.num_images} when {self.run.root} began.",
                    "Start a new run on the new data.",
                )
        progress = self.state.progress
        seen = self.world.all_gather_object((progress.step, progress.epoch))
        if len(set(seen)) > 1:
            raise DeitctlError(
                f"The processes see different states of {self.run.root}, of steps {sorted({s for s, _ in seen})}.",
                "All machines of a run need its folder on a file system that they share.",
            )
        if progress.views_version != VIEWS_VERSION:
            self.reporter.warn(
                f"{self.run.root} began with another version's training views: what is left of it sees crops and colors "
                "drawn anew, so it ends otherwise than it would have."
            )
            progress.views_version = VIEWS_VERSION
        self.loaded_step = progress.step
        self.run.cut_log(progress.log_size)
        if self.config.micro_batch_size:
            progress.micro_batch = _even(self.config.micro_batch_size)
        self._take_up_best()
        self.watch.usual, self.watch.seen = progress.usual_loss, progress.steps_watched
        self.clock = Stopwatch(progress.seconds)
        self.world.barrier()

    def _take_up_best(self) -> None:
        """Go by the weights that are there, which may have been kept after the state was saved."""
        progress = self.state.progress
        try:
            kept = json.loads(read_metadata(self.run.root / WEIGHTS).get(NOTE, "{}"))
            epoch, top1, weights = int(kept["epoch"]), float(kept["top1"]), str(kept["weights"])
        except (ValueError, TypeError, KeyError):
            return
        if epoch > progress.best_epoch:
            progress.best_epoch, progress.best_top1, progress.best_weights = epoch, top1, weights

    def train(self) -> None:
        """Run what is left of the epochs; after each, evaluate and keep the best weights; save the state when it is due.

        Raises:
            DeitctlError: a loss that went wrong, a disk that is full; the last good state is on the disk.
            Signalled: a signal came, and what was done is saved.
        """
        if self.tutor is not None and self.world.is_main:
            write_json(self.run.root / "teacher.json", self.tutor.preflight.to_dict())
        with held_signals() as stop:
            try:
                self._epochs(stop)
            except RuntimeError as error:
                if self.config.compile and type(error).__module__.startswith(
                    ("torch._inductor", "torch._dynamo")
                ):
                    why = str(error).strip().splitlines()[0]
                    raise ConfigError(
                        f"torch cannot compile {self.config.model}: {why}", "Leave --compile out."
                    ) from error
                raise
            except TrainingDiverged as wrong:
                raise self._went_wrong(wrong) from None
            except (Signalled, KeyboardInterrupt) as signalled:
                if not getattr(signalled, "insists", False):
                    self._save(now=True)
                raise
            except (
                ProcessLost
            ):  # of several that are stopped, one may leave before another has heard of it
                self._save(now=True)
                stop.here()
                raise
            except DataError as error:
                self._save(now=True)
                raise DataError(
                    error.message,
                    f"{error.hint} Mend or remove it, then: deitctl train --resume {self.run.quoted}",
                ) from error
            except DiskError as error:
                raise DeitctlError(
                    error.message,
                    f"{error.hint} The last good state is whole: deitctl train --resume {self.run.quoted}",
                ) from error
            self._save(now=True)

    def _epochs(self, stop: Stop) -> None:
        progress, recipe = self.state.progress, self.config.recipe
        batches = self.batches() if progress.epoch < recipe.epochs else iter(())

        wanted = asked = False

        def after_step(found: StepStats) -> None:
            nonlocal wanted, asked
            if signum := found.signum or (
                stop.signum if self.world.size == 1 else 0
            ):  # several must stop together
                raise Signalled(signum)
            asked = asked or found.save
            wanted = wanted or asked or self.saver.due(progress.step)
            if (
                wanted and not self.watch.waiting
            ):  # losses that nobody has read yet may not be saved as good
                if asked:
                    self.reporter.note(f"Saving after {progress.step} steps, as asked.")
                wanted = asked = stop.save = False
                self._save()
            elif not self.watch.waiting:
                self.saver.write_copy()

        while progress.epoch < recipe.epochs:
            watch, before = Stopwatch(), progress.step
            means = train_one_epoch(
                self.plan,
                self.state,
                batches,
                log=self.run.log,
                name_of=self.train_dataset.name,
                reporter=self.reporter,
                watch=self.watch,
                stop=stop,
                after_step=after_step,
            )
            speed = (progress.step - before) * self.plan.recipe.batch_size / watch()
            self._finish_epoch(means, speed, stop)
            self.saver.write_copy()  # it was evaluated
            self._pause(stop)
            if self.saver.seconds and self.saver.due(progress.step):
                self._save()
            self._dismiss_teacher(stop)

    def _pause(self, stop: Stop) -> None:
        """Do what a signal asked for, between two batches of an evaluation or of questions to the teacher."""
        if stop.save and self.state.whole:
            stop.save = False
            self._save(now=True)
        stop.here()

    def _finish_epoch(self, means: dict[str, float], speed: float, stop: Stop) -> None:
        """Evaluate, write the epoch's record, keep its weights if there are none better."""
        progress = self.state.progress
        scores = self._score_epoch(stop)
        kind = max(scores, key=lambda k: (scores[k].top1, k == "average"))
        progress.epoch += 1
        progress.seconds = self.clock()
        self.state.sums, progress.sums = {}, {}
        self._record(means, scores, kind, speed)
        if scores[kind].top1 >= progress.best_top1:  # of equals the later, which has seen more
            progress.best_top1, progress.best_epoch = scores[kind].top1, progress.epoch
            progress.best_weights = kind
            note = {"epoch": progress.epoch, "top1": progress.best_top1, "weights": kind}
            if self.world.is_main:
                save_model(
                    self.run.root,
                    self.state.weights(kind),
                    self.model_config,
                    describe_layers(self.state.model),
                    {NOTE: json.dumps(note)},
                )

    def _save(self, *, now: bool = False) -> None:
        """Save the state as it is, between two steps, unless it went wrong; of several processes the main one does.

        What is not wanted `now` is written after the next step that went well.
        """
        if not self.world.is_main or not self.state.whole or self.watch.look() is not None:
            return
        progress = self.state.progress
        progress.usual_loss, progress.steps_watched = self.watch.usual, self.watch.seen
        progress.seconds, progress.log_size = self.clock(), self.run.log_size()
        if now:
            self.saver.save(self.state)
        else:
            self.saver.write_copy()
            self.saver.copy(self.state)

    def _went_wrong(self, wrong: TrainingDiverged) -> DeitctlError:
        """Write the record of a step that went wrong; the state on the disk is the last good one."""
        incident, run = wrong.incident, self.run.root
        keys = [key for keys in self.world.all_gather_object(incident.keys) for key in keys]
        back = "No state was saved before it."
        record = run / "incidents"
        if self.world.is_main:
            self.saver.finish()
            how = {
                "precision": self.device.precision,
                "device": str(self.device.torch_device),
                "processes": self.world.size,
                "micro_batch": at_a_time(self.plan, self.state),
                "state_step": max(self.saver.saved_step, self.loaded_step),
            }
            record = write_incident(
                self.run, incident, keys, [self.train_dataset.name(k.index) for k in keys], how
            )
            if how["state_step"]:
                back = f"The run is as it was after {how['state_step']} steps."
        hint = ways_on(incident, self.run, self.device.precision, self.config.recipe.optim.lr)
        replay = f"deitctl train --replay {shlex.quote(str(record))}"
        return DeitctlError(f"{incident.sentence} {back} To take the step again: `{replay}`.", hint)

    def batches(self) -> Iterator[Batch]:
        recipe, seed, augment = self.config.recipe, self.config.seed, self.config.recipe.augment
        keys = TrainBatches(
            len(self.train_dataset.labels),
            self.plan.recipe.batch_size,
            seed=seed,
            epochs=recipe.epochs,
            repeats=augment.repeated_aug,
            first_step=self.state.progress.step,
        )
        plan = ViewPlan(
            seed,
            repeats=augment.repeated_aug,
            early_epochs=recipe.early_epochs,
            early_size=self.early_size,
        )
        distill, listener = self.config.distill, self.plan.listener
        if self.tutor is not None and distill is not None and listener is not None:
            plan = replace(
                plan,
                seed=distill.view_seed,
                views=distill.views,
                known=listener.known,
                teacher_size=self.tutor.preflight.preprocessing["img_size"],
            )
        return build_train_loader(
            self.train_dataset,
            augment,
            self.model_config.preprocessing.img_size,
            keys,
            workers=self.workers,
            pin_memory=self.device.pins_memory,
            plan=plan,
            share=self.world.shard(self.plan.recipe.batch_size),
        )

    def _dismiss_teacher(self, stop: Stop) -> None:
        """Once all but a batch a view has been said, ask for the rest and let the teacher go."""
        tutor, listener = self.tutor, self.plan.listener
        if tutor is None or listener is None or listener.cache is None:
            return
        views, batch_size = tutor.total_views, self.plan.recipe.batch_size
        shown = self.state.progress.epoch * self.config.recipe.augment.repeated_aug
        over = shown >= views and listener.cache.count_missing(views) <= views * batch_size
        if not any(self.world.all_gather_object(tutor.is_loaded)) or not all(
            self.world.all_gather_object(over)
        ):
            return
        listener.fill(
            self.train_dataset,
            self.config.recipe.augment,
            tutor.distill.view_seed,
            views,
            batch_size=batch_size,
            workers=self.workers,
            reporter=self.reporter,
            world=self.world,
            pause=lambda: self._pause(stop),
        )
        tutor.release()
        self.reporter.note(
            f"The teacher has said all: {listener.cache.root}. It is not needed any more."
        )

    def _score_epoch(self, stop: Stop) -> dict[str, Evaluation]:
        """Validate the weights as they are, and their average where there is one."""
        label = f"epoch {self.state.progress.epoch + 1}/{self.config.recipe.epochs}, validate"
        scores = {"raw": self._evaluate("raw", self.device, label, stop)}
        if self.state.ema is not None:
            scores["average"] = self._evaluate("average", self.device, f"{label} the average", stop)
        return scores

    def _evaluate(
        self, kind: str, device: Device, label: str, stop: Stop | None = None
    ) -> Evaluation:
        with self.state.lent(kind) as model:
            return evaluate(
                model,
                self.val_dataset,
                self.model_config.preprocessing,
                rows=tuple(range(self.model_config.num_classes)),
                head=self.model_config.head,
                device=device,
                batch_size=EVAL_BATCH,
                workers=self.workers,
                reporter=self.reporter,
                label=label,
                teacher=self.tutor.answers() if self.tutor else None,
                world=self.world,
                pause=(lambda: self._pause(stop)) if stop else lambda: None,
                stop_on_bad_image=self.config.on_bad_image == "stop",
            )

    def _record(
        self, means: dict[str, float], scores: dict[str, Evaluation], kind: str, speed: float
    ) -> None:
        progress, score = self.state.progress, scores[kind]
        record = {
            "kind": "epoch",
            "epoch": progress.epoch,
            "step": progress.step,
            "images_seen": progress.images_seen,
            "train": means,
            "top1": score.top1,
            "top5": score.top5,
            "val_loss": score.loss,
            "heads": score.heads,
            "agreement": score.agreement,
            "teacher_agreement": score.teacher_agreement,
            "weights": kind,
            "top1_by_weights": {k: s.top1 for k, s in scores.items()},
            "images_per_second": round(speed, 2),
            "seconds": round(progress.seconds, 3),
        }
        self.run.log(record)
        heads = (
            ""
            if score.heads is None
            else f" (cls {score.heads['cls']:.2f}, dist {score.heads['dist']:.2f})"
        )
        self.reporter.note(
            f"epoch {progress.epoch}/{self.config.recipe.epochs}: loss {means['loss']:.3f}, "
            f"top-1 {score.top1:.2f} %{heads}, {speed:.1f} images/s"
        )

    def finish(self) -> TrainResult:
        """Score the saved weights once more in fp32, draw the curves, report."""
        self.world.barrier()  # until the main process has written them
        self.state.model.load_state_dict(load_tensors(self.run.root / "model.safetensors"))
        self.state.ema = None
        shipped = self._evaluate(
            "raw", choose_device(self.config.device, "fp32"), "score the saved weights"
        )
        epochs = list(self.run.records("epoch"))
        preflight = self.tutor.preflight if self.tutor else None
        if self.world.is_main:
            draw_curves(
                self.run.figures / "curves.png",
                list(self.run.records("step")),
                epochs,
                teacher_top1=preflight.top1 if preflight else None,
                title=self.run.root.name,
            )
        progress = self.state.progress
        bad = progress.bad_images | {
            self.val_dataset.name(index): why for index, why in shipped.unreadable
        }
        if bad:
            first = next(iter(bad.values()))
            self.reporter.warn(
                f"{len(bad)} image(s) could not be read and were left out, the first: {first}"
            )
        result = TrainResult(
            run=self.run.root,
            epochs=progress.epoch,
            images_seen=progress.images_seen,
            best_epoch=progress.best_epoch,
            best_weights=progress.best_weights,
            shipped=shipped,
            last=epochs[-1],
            teacher=preflight,
            seconds=self.clock(),
            bad_images=bad,
        )
        if self.world.is_main:
            write_json(self.run.result_file, result.to_dict())
        self.world.barrier()
        return result


def _even(size: int) -> int:
    """Round a micro-batch up to pairs, which mixing needs."""
    return size + size % 2
