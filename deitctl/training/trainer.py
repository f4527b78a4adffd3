"""A training run, from top to bottom in `Trainer.fit`: steps, validation, checkpoints, signals."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice

from deitctl.data.loader import Batch
from deitctl.data.samplers import batch_start
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.device import Device
from deitctl.distributed import ProcessLost
from deitctl.errors import ConfigError, DataError, DeitctlError, Signalled
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter, SilentReporter
from deitctl.models.checkpoint_io import WEIGHTS, read_metadata, save_model
from deitctl.models.introspect import describe_layers
from deitctl.paths import DiskError
from deitctl.training.build import TrainSetup, round_up_to_pairs
from deitctl.training.checkpointer import AsyncCheckpointer, SaveOrStop
from deitctl.training.configure import name_command
from deitctl.training.estimate import describe_training, estimate_seconds
from deitctl.training.finish import finish_run
from deitctl.training.head_init import fit_new_heads
from deitctl.training.incident import suggest_remedies, write_incident
from deitctl.training.monitor import Incident, LossMonitor, Observation, TrainingDiverged
from deitctl.training.result import TrainResult
from deitctl.training.run_dir import Run
from deitctl.training.signals import StopRequest, hold_signals
from deitctl.training.step import StepStats, forward_backward, optimizer_step, set_train_mode

LOG_EVERY = 10  # steps: reading the loss makes the host wait for an accelerator
EVAL_BATCH_SIZE = 64
SCORE_KEY = "deitctl"  # metadata key of the saved weights: the epoch they are of, and its score


class Trainer:
    """Trains what a `TrainSetup` holds, in a run folder."""

    def __init__(self, run: Run, setup: TrainSetup, reporter: Reporter) -> None:
        self.run, self.setup, self.reporter = run, setup, reporter
        self.config, self.context, self.state = setup.config, setup.context, setup.state
        self.device, self.world = setup.context.device, setup.context.world
        self.monitor = LossMonitor(
            self.state.progress,
            self.context.num_classes,
            scaled=self.state.scaler.is_enabled(),
            spike_factor=self.config.loss_spike_factor,
        )
        self.signals = StopRequest()
        self.checkpointer = AsyncCheckpointer(run, self.config.save_every)
        self.save_or_stop = SaveOrStop(self.signals, self.checkpointer, self.state)
        self.start_step = 0
        """Step of the checkpoint that this session began with."""
        self.start_time = time.monotonic()
        """When the run would have begun if all its sessions had followed each other."""

    def fit(self) -> TrainResult:
        """Train the epochs that are left; after each, validate, keep the best weights and log.

        Raises:
            DeitctlError: a step that diverged, a full disk, or an unreadable image that the run is
                to stop at; the last good checkpoint is on the disk.
            Signalled: SIGINT or SIGTERM came, and the state is saved.
        """
        progress, recipe = self.state.progress, self.context.recipe
        with hold_signals(self.signals), self.leave_resumable():
            self.announce()
            self.fit_new_head()
            batches = self.setup.build_loader() if progress.epoch < recipe.epochs else iter(())
            for epoch in range(progress.epoch, recipe.epochs):
                start_time = time.monotonic()
                set_train_mode(self.state.model, recipe.freeze, recipe.freeze_bn_stats)
                label, steps = f"epoch {epoch + 1}/{recipe.epochs}", self.context.steps_per_epoch
                # Equal to `steps` where the run was stopped after the epoch's last step, while it
                # validated.
                steps_done = progress.step - epoch * steps
                num_images = len(self.setup.train.labels)
                num_done = batch_start(num_images, recipe.batch_size, steps_done)
                with self.reporter.task(label, num_images) as task:
                    task.skip(num_done)
                    # The loader spans all epochs, so that its processes work ahead.
                    for batch in islice(batches, steps - steps_done):
                        stats = self.train_step(batch)
                        task.advance(stats.num_images, **self.log_step(stats))
                        self.handle_signals(stats)
                        self.checkpointer.maybe_save(self.state, verified=not self.monitor.unread)
                images_per_second = (num_images - num_done) / (time.monotonic() - start_time)

                metrics = self.validate(label)
                losses = self.finish_epoch()
                self.keep_best(metrics)
                self.log_epoch(losses, metrics, images_per_second)
                self.checkpointer.maybe_save(self.state, verified=True)
                self.save_or_stop.raise_if_set()
                self.fill_target_cache()
            self.checkpointer.save(self.state)
        try:
            return finish_run(self)
        except DiskError as error:
            raise self.run.explain_full_disk(error) from error

    def announce(self) -> None:
        """Say what is about to be done and how long it takes."""
        is_reported = self.world.is_main and type(self.reporter) is not SilentReporter
        if is_reported and self.state.progress.epoch < self.context.recipe.epochs:
            seconds = estimate_seconds(self.setup, pause=self.save_or_stop.raise_if_set)
            self.reporter.note(describe_training(self.setup, seconds))

    def fit_new_head(self) -> None:
        """Before the first step, fit a new head to the pretrained features, and start the EMA from
        it; a no-op in a run that has begun, or whose head is not new."""
        setup, state = self.setup, self.state
        if not setup.fits_head or state.progress.step > 0:
            return
        accuracy = None
        # By one process, so that the head is the same for any number of them: few images suffice.
        if self.world.is_main:
            accuracy = fit_new_heads(
                state.model,
                setup.model_config,
                setup.train,
                smoothing=self.context.recipe.smoothing,
                seed=self.config.seed,
                device=self.device,
                workers=setup.workers,
                reporter=self.reporter,
                pause=self.save_or_stop.raise_if_set,
            )
        self.world.broadcast_module_(state.model)
        if state.ema is not None:
            state.ema.reset(state.model)
        if accuracy is not None:
            self.reporter.note(
                f"The new head is fitted to the features: {accuracy:.1f} % of training images right, each left "
                "out of its own fit."
            )

    def train_step(self, batch: Batch) -> StepStats:
        """Take one optimizer step on the gradient of a global batch."""
        context, state, progress = self.context, self.state, self.state.progress
        lr = context.lr_at(progress.step)
        stats = forward_backward(context, state, batch, self.reporter, self.signals)
        loss = stats.losses["loss"]
        self.monitor.update(Observation(progress.step, lr, loss, stats.grad_norm, batch.keys))
        if self.device.is_synchronous:  # reading the loss costs nothing, and the weights stay good
            self.monitor.raise_if_diverged()
        optimizer_step(context, state, lr, stats.grad_norm)
        for name, value in stats.losses.items():
            state.loss_sums[name] = state.loss_sums.get(name, 0.0) + value * stats.num_images
        for index, reason in stats.unreadable:
            progress.unreadable[self.setup.train.name(index)] = reason
        progress.step += 1
        progress.images_seen += stats.num_images
        progress.images_in_epoch += stats.num_images
        progress.seconds = time.monotonic() - self.start_time
        return stats

    def log_step(self, stats: StepStats) -> dict[str, str]:
        """Log every tenth step, and the last of an epoch; return what the progress bar shows."""
        step, per_epoch = self.state.progress.step - 1, self.context.steps_per_epoch
        in_epoch = step % per_epoch
        if in_epoch % LOG_EVERY and in_epoch + 1 != per_epoch:
            return {}
        self.monitor.raise_if_diverged()
        losses = {name: float(value) for name, value in stats.losses.items()}
        position = {"kind": "step", "step": step, "epoch": step // per_epoch + 1}
        rates = {"lr": self.context.lr_at(step), **losses, "grad_norm": float(stats.grad_norm)}
        self.run.log(position | rates)
        return {"loss": f"{losses['loss']:.3f}"}

    def handle_signals(self, stats: StepStats) -> None:
        """Between two steps, raise `Signalled` if the run is to stop, or ask for a checkpoint."""
        # Several processes must stop after the same step, so they go by what the step gathered (0:
        # no signal). A single one goes by its own signals (None), which may be newer.
        self.signals.raise_if_set(stats.signum if self.world.size > 1 else None)
        if stats.save_requested:
            self.signals.save_requested = False
            self.checkpointer.requested = True
            self.reporter.note("SIGUSR1: the next checkpoint is saved now.")

    def validate(self, label: str) -> dict[str, EvalResult]:
        """Evaluate the `model`, and the `ema` of its weights where there is one."""
        label = f"{label}, validate"
        metrics = {"model": self.evaluate(self.device, label, self.save_or_stop)}
        if self.state.ema is not None:
            with self.state.swap_ema():  # the state must not be saved now, so SIGUSR1 waits
                metrics["ema"] = self.evaluate(self.device, f"{label} EMA", self.signals)
        return metrics

    def evaluate(
        self, device: Device, label: str, stop: StopRequest | SaveOrStop | None = None
    ) -> EvalResult:
        """Evaluate the model's weights as they are; `stop` handles signals between batches."""
        setup, model_config = self.setup, self.setup.model_config
        eval_model = EvalModel(
            model=self.state.model,
            preprocessing=model_config.preprocessing,
            rows=tuple(range(model_config.num_classes)),
            head=model_config.head,
            teacher_preds=setup.teacher.val_predictions if setup.teacher else None,
        )
        (result,) = validate(
            [eval_model],
            setup.val,
            device=device,
            batch_size=EVAL_BATCH_SIZE,
            workers=setup.workers,
            reporter=self.reporter,
            label=label,
            world=self.world,
            pause=(stop or StopRequest()).raise_if_set,
            stop_on_bad_image=self.config.on_bad_image == "stop",
        )
        return result

    def finish_epoch(self) -> dict[str, float]:
        """Count the epoch as done; return the means of its losses over the images."""
        progress, sums = self.state.progress, self.state.loss_sums
        losses = {name: float(value) / progress.images_in_epoch for name, value in sums.items()}
        self.state.loss_sums, progress.images_in_epoch = {}, 0
        progress.epoch += 1
        progress.seconds = time.monotonic() - self.start_time
        return losses

    def keep_best(self, metrics: dict[str, EvalResult]) -> None:
        """Save the weights of this epoch, in the model's format, if none before were better."""
        progress, kind = self.state.progress, best_weights(metrics)
        # Of equals the later epoch, which has seen more.
        if metrics[kind].top1 < progress.best_top1:
            return
        progress.best_top1, progress.best_epoch = metrics[kind].top1, progress.epoch
        progress.best_weights = kind
        if self.world.is_main:
            score = {"epoch": progress.epoch, "top1": progress.best_top1, "weights": kind}
            save_model(
                self.run.root,
                self.state.weights(kind),
                self.setup.model_config,
                describe_layers(self.state.model),
                {SCORE_KEY: json.dumps(score)},
            )

    def log_epoch(
        self, losses: dict[str, float], metrics: dict[str, EvalResult], images_per_second: float
    ) -> None:
        """Log the epoch's losses and metrics."""
        progress, kind = self.state.progress, best_weights(metrics)
        best = metrics[kind]
        self.run.log(
            {
                "kind": "epoch",
                "epoch": progress.epoch,
                "step": progress.step,
                "images_seen": progress.images_seen,
                "train": losses,
                "top1": best.top1,
                "top5": best.top5,
                "val_loss": best.loss,
                "heads": best.heads,
                "head_agreement": best.head_agreement,
                "teacher_agreement": best.teacher_agreement,
                "weights": kind,
                **{f"top1_{name}": evaluation.top1 for name, evaluation in metrics.items()},
                "images_per_second": round(images_per_second, 2),
                "seconds": round(progress.seconds, 3),
            }
        )
        heads = best.heads and f" (cls {best.heads['cls']:.2f}, dist {best.heads['dist']:.2f})"
        self.reporter.note(
            f"epoch {progress.epoch}/{self.context.recipe.epochs}: loss {losses['loss']:.3f}, "
            f"top-1 {best.top1:.2f} %{heads or ''}, {images_per_second:.1f} images/s"
        )

    def fill_target_cache(self) -> None:
        """Once every view has come, compute the few missing targets and unload the teacher."""
        teacher, cached = self.setup.teacher, self.context.cached_teacher
        if teacher is None or cached is None or cached.cache is None:
            return
        views, batch_size = teacher.total_views, self.context.recipe.batch_size
        # Only those of unreadable images are missing then, so few; but with repeated augmentation,
        # which leaves images out of an epoch, many can be, and steps go on computing them.
        almost_full = (
            self.state.progress.epoch * self.config.recipe.augment.repeated_aug >= views
            and cached.cache.count_missing(views) <= views * batch_size
        )
        loaded = any(self.world.all_gather_object(teacher.is_loaded))
        if not loaded or not all(self.world.all_gather_object(almost_full)):
            return
        teacher.fill_cache(
            batch_size=batch_size, workers=self.setup.workers, pause=self.save_or_stop.raise_if_set
        )
        teacher.release()
        self.reporter.note(
            f"All teacher targets are cached in {cached.cache.root}; the teacher is unloaded."
        )

    def evaluate_last(self, device: Device, kind: str) -> EvalResult:
        """Evaluate the weights that the run ended with, the `model` or the `ema`."""
        with self.state.swap_ema() if kind == "ema" else nullcontext():
            return self.evaluate(device, "evaluate the last weights")

    def load_checkpoint(self) -> None:
        """Load the saved state; a run that was stopped before its first checkpoint starts again."""
        progress, folder = self.state.progress, self.run.checkpoint
        if folder.exists() or folder.with_name(f"{folder.name}.old").exists():
            self.state.load(folder)
            if progress.num_train_images != len(self.setup.train.labels):
                raise DataError(
                    f"{self.config.data} has {len(self.setup.train.labels)} training images, "
                    f"it had {progress.num_train_images} when {self.run.root} began.",
                    "Start a new run on the new data.",
                )
        steps = self.context.steps_per_epoch
        if not 0 <= progress.step - progress.epoch * steps <= steps:
            raise ConfigError(
                f"{self.run.root} began with another division of epochs into steps: it is at step "
                f"{progress.step} in epoch {progress.epoch + 1}, and an epoch has {steps} now.",
                f"Start a new run: {name_command(self.config)} --config "
                f"{shlex.quote(str(self.run.config_file))} --output NEW",
            )
        positions = set(self.world.all_gather_object((progress.step, progress.epoch)))
        if len(positions) > 1:
            raise DeitctlError(
                f"The processes see different checkpoints of {self.run.root}, of steps "
                f"{sorted({step for step, _ in positions})}.",
                "All machines of a run need its folder on a file system that they share.",
            )
        if progress.views_version != VIEWS_VERSION:
            self.reporter.warn(
                f"{self.run.root} began with another version's training views: what is left of it sees "
                "other crops and colors, so it ends otherwise than it would have."
            )
            progress.views_version = VIEWS_VERSION
        self.start_step = progress.step
        self.run.cut_log(progress.log_bytes)
        if self.config.micro_batch_size:
            progress.micro_batch_size = round_up_to_pairs(self.config.micro_batch_size)
        self.load_best()
        self.start_time = time.monotonic() - progress.seconds
        self.world.barrier()

    def load_best(self) -> None:
        """Adopt the score of saved weights that are newer than the checkpoint."""
        progress = self.state.progress
        try:
            score = json.loads(read_metadata(self.run.root / WEIGHTS).get(SCORE_KEY, "{}"))
            epoch, top1, weights = int(score["epoch"]), float(score["top1"]), str(score["weights"])
        except (ValueError, TypeError, KeyError):
            return
        if epoch > progress.best_epoch:
            progress.best_epoch, progress.best_top1, progress.best_weights = epoch, top1, weights

    @contextmanager
    def leave_resumable(self) -> Iterator[None]:
        """Save the state if the block is interrupted, and say how to go on if it fails."""
        resume = f"deitctl train --resume {self.run.quoted}"
        try:
            yield
        except (Signalled, KeyboardInterrupt) as signalled:
            if not getattr(signalled, "insists", False):  # a repeated signal may come within a step
                self._save_if_good()
            raise
        except ProcessLost:
            # Of several processes that are stopped, one may exit before the others have seen their
            # signal.
            self._save_if_good()
            self.signals.raise_if_set()
            raise
        except DataError as error:
            self._save_if_good()
            hint = f"{error.hint} Repair or remove it, then: {resume}"
            raise DataError(error.message, hint) from error
        except DiskError as error:
            raise self.run.explain_full_disk(error) from error
        except TrainingDiverged as diverged:
            raise self._record_incident(diverged.incident) from None
        except RuntimeError as error:
            compiler = ("torch._inductor", "torch._dynamo")
            if not self.config.compile or not type(error).__module__.startswith(compiler):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"torch cannot compile {self.config.model}: {reason}", "Leave --compile out."
            ) from error

    def _save_if_good(self) -> None:
        if self.monitor.find_incident() is None:
            self.state.progress.seconds = time.monotonic() - self.start_time
            self.checkpointer.save(self.state)

    def _record_incident(self, incident: Incident) -> DeitctlError:
        """Write what a replay needs, and return the error."""
        record, outcome = self.run.root / "incidents", "No checkpoint was saved before it."
        keys = [key for keys in self.world.all_gather_object(incident.keys) for key in keys]
        if self.world.is_main:
            self.checkpointer.finish()
            checkpoint_step = max(self.checkpointer.saved_step, self.start_step)
            machine = {
                "precision": self.device.precision,
                "device": str(self.device.torch_device),
                "num_processes": self.world.size,
                "micro_batch_size": self.context.micro_batch_size(self.state),
                "checkpoint_step": checkpoint_step,
            }
            names = [self.setup.train.name(key.index) for key in keys]
            record = write_incident(self.run, incident, keys, names, machine)
            if checkpoint_step:
                outcome = f"The checkpoint is of step {checkpoint_step}."
        hint = suggest_remedies(incident, self.run, self.device.precision, self.config)
        replay = f"deitctl train --replay {shlex.quote(str(record))}"
        return DeitctlError(f"{incident.message} {outcome} To repeat the step: `{replay}`.", hint)


def best_weights(metrics: dict[str, EvalResult]) -> str:
    """Return whether `model` or `ema` validated better; of equals the EMA, which varies less."""
    return max(metrics, key=lambda kind: (metrics[kind].top1, kind == "ema"))
