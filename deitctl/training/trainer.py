"""A training run, from top to bottom in `Trainer.fit`: steps, validation, checkpoints, signals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from typing import Any

from deitctl.data.draws import count_draws
from deitctl.data.epoch_steps import batch_start
from deitctl.evaluation.multilabel_result import Result
from deitctl.events import Reporter
from deitctl.paths import DiskError
from deitctl.training.begin import announce, fit_new_head
from deitctl.training.best_weights import SavedScore, adopt_ahead, keep_best
from deitctl.training.build import TrainSetup
from deitctl.training.checkpointer import AsyncCheckpointer, SaveOrStop
from deitctl.training.class_balance import ClassCounts
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.extensions import Callback, call_callbacks
from deitctl.training.failure import leave_resumable
from deitctl.training.feed import feed
from deitctl.training.finish import finish_run
from deitctl.training.freezing import begin_epoch
from deitctl.training.monitor import LossMonitor, Observation
from deitctl.training.objective import (
    bound_label_weight,
    estimate_guess_loss,
    find_task_loss,
)
from deitctl.training.result import TrainResult
from deitctl.training.run_dir import Run
from deitctl.training.selection import (
    choose_metric,
    choose_weights,
    describe_metrics,
    get_score,
    is_uneven,
    list_metrics,
)
from deitctl.training.signals import StopRequest, hold_signals
from deitctl.training.step import forward_backward, optimizer_step
from deitctl.training.step_stats import StepStats
from deitctl.training.stopping import CALLBACK, PATIENCE, describe_stop, is_out_of_patience
from deitctl.training.validation import Validation

LOG_EVERY = 10  # steps


class Trainer:
    """Trains what a `TrainSetup` holds, in a run folder."""

    def __init__(
        self, run: Run, setup: TrainSetup, reporter: Reporter, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.run, self.setup, self.reporter, self.callbacks = run, setup, reporter, callbacks
        self.config, self.context, self.state = setup.config, setup.context, setup.state
        self.device, self.world = setup.context.device, setup.context.world
        self.engine = setup.engine
        self.metric = choose_metric(self.config.select, setup.model_config.task)
        """What the best weights are selected by."""
        self.monitor = LossMonitor(
            self.state.progress,
            estimate_guess_loss(
                find_task_loss(self.context.objective, is_multilabel=setup.train.is_multilabel),
                ClassCounts.of(setup.train),
                self.device.torch_device,
            )
            * bound_label_weight(
                self.context.objective,
                self.context.recipe.batch_size,
                self.context.recipe.augment.repeated_aug,
            ),
            scaled=self.state.scaler.is_enabled(),
            spike_factor=self.config.loss_spike_factor,
        )
        self.loaders = setup.build_pool()
        """Processes that start at the first batch, and serve training and every validation."""
        self.signals = StopRequest()
        self.checkpointer = AsyncCheckpointer(run, self.config.save_every)
        self.save_or_stop = SaveOrStop(self.signals, self.checkpointer, self.state, self.is_good)
        self.validation = Validation(setup, self.signals, self.loaders, reporter)
        self.ahead: SavedScore | None = None
        """Of saved weights of an epoch after the checkpoint that this session began with, until it comes."""
        self.start_step = 0
        """Step of the checkpoint that this session began with."""
        self.start_time = time.monotonic()
        """When the run would have begun if all its sessions had followed each other."""
        self.is_between_steps = True
        """Whether the state is that after a whole step, or an epoch that is logged: it may be saved."""
        self.on_step_boundary: Callable[[], None] = lambda: None
        """Called after every step, and after every epoch, when the state is what a checkpoint would have."""
        self.has_batch_stats = any(
            "running_" in name for name, _ in self.state.model.named_buffers()
        )

    def fit(self) -> TrainResult:
        """Train the epochs that are left; after each, validate, keep the best weights and log.

        Raises:
            DeitctlError: a step that diverged, a full disk, loaders that are lost, or an unreadable
                image that the run is to stop at; it says what is saved.
            Signalled: SIGINT, SIGTERM or SIGHUP came, and the state is saved.
        """
        with closing(self.loaders):
            with hold_signals(self.signals), leave_resumable(self):
                announce(self)
                fit_new_head(self)
                self.fit_epochs()
                adopt_ahead(self)
                self.checkpointer.save(self.state)
                self.signals.raise_if_set()
            try:
                return finish_run(self)
            except DiskError as error:
                raise self.run.explain_full_disk(error) from error

    def fit_epochs(self) -> None:
        """Train the epochs that are left, until the run stops."""
        progress, recipe = self.state.progress, self.context.recipe
        if progress.epoch == recipe.epochs or progress.stopped:
            return
        stream = self.setup.build_loader(
            self.loaders, self.save_or_stop.raise_if_set, self.reporter
        )
        with closing(stream), closing(feed(self.context, self.state, stream)) as batches:
            while progress.epoch < recipe.epochs and not progress.stopped:
                label = f"epoch {progress.epoch + 1}/{recipe.epochs}"
                images_per_second = self.train_epoch(batches, label)
                metrics = self.validate(label)
                losses = self.finish_epoch()
                keep_best(self, metrics)
                if is_out_of_patience(recipe, self.config.patience, progress):
                    progress.stopped = PATIENCE
                record = self.log_epoch(losses, metrics, images_per_second)
                if self.call_callbacks(record) and progress.epoch < recipe.epochs:
                    progress.stopped = progress.stopped or CALLBACK
                self.on_step_boundary()
                self.checkpointer.maybe_save(self.state, self.is_good)
                self.save_or_stop.raise_if_set()
                self.fill_target_cache()
        if progress.stopped == PATIENCE:
            command = f"deitctl train --resume {self.run.quoted}"
            self.reporter.note(describe_stop(recipe, self.config.patience, progress, command))

    def train_epoch(self, batches: Iterator[DeviceBatch], label: str) -> float:
        """Take the steps of an epoch that are left; return the images a second."""
        progress, recipe, epoch = (
            self.state.progress,
            self.context.recipe,
            self.state.progress.epoch,
        )
        start_time = time.monotonic()
        if begin_epoch(self.state, recipe, epoch):
            self.reporter.note(f"Epoch {epoch + 1}: what was frozen is trained from now on.")
        # Equal to `steps` where the run was stopped after the epoch's last step, while it validated.
        steps = self.context.steps_per_epoch
        steps_done = progress.step - epoch * steps
        num_images = count_draws(self.setup.train)
        num_done = batch_start(num_images, recipe.batch_size, steps_done)
        with self.reporter.task(label, num_images) as task:
            task.skip(num_done)
            # The loader spans all epochs, so that its processes work ahead.
            for batch in self.read_batches(batches, steps - steps_done):
                stats = self.train_step(batch)
                task.advance(stats.num_images, **self.log_steps())
                self.handle_signals(stats)
                self.on_step_boundary()
                self.checkpointer.maybe_save(self.state, self.is_good)
        return (num_images - num_done) / (time.monotonic() - start_time)

    def read_batches(self, batches: Iterator[DeviceBatch], count: int) -> Iterator[DeviceBatch]:
        """Yield the next `count` batches, or raise `Signalled` while one does not come."""
        for _ in range(count):
            with self.signals.interrupt() if self.world.size == 1 else nullcontext():
                batch = next(batches)
            yield batch

    def train_step(self, batch: DeviceBatch) -> StepStats:
        """Take one optimizer step on the gradient of a global batch.

        An accelerator's losses are read when they are there, mostly a step later, so that nobody waits for
        them. Processes may read them at different steps; a step that diverged ends the next one of all.
        """
        context, state, progress = self.context, self.state, self.state.progress
        lr = context.lr_at(progress.step)
        # A forward pass changes batch statistics, and nothing else that a checkpoint holds.
        self.is_between_steps = not self.has_batch_stats
        self.monitor.read_ready()
        stats = forward_backward(
            self.engine,
            batch,
            self.reporter,
            self.signals,
            has_diverged=self.monitor.incident is not None,
        )
        self.is_between_steps = False
        self.monitor.update(Observation(progress.step, lr, stats.reading, batch.keys))
        if stats.has_diverged or self.device.is_synchronous:  # whose weights stay good
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
        self.is_between_steps = True
        return stats

    def log_steps(self) -> dict[str, str]:
        """Log every tenth step that was read, and the last of an epoch; return what the progress bar shows."""
        per_epoch, status = self.context.steps_per_epoch, dict[str, str]()
        if self.state.progress.step % per_epoch == 0:
            self.monitor.raise_if_diverged()  # the figures of an epoch are logged before its validation
        self.monitor.read_ready()
        for figures in self.monitor.take_figures():
            step = int(figures["step"])
            in_epoch = step % per_epoch
            if in_epoch % LOG_EVERY and in_epoch + 1 != per_epoch:
                continue
            position = {"kind": "step", "step": step, "epoch": step // per_epoch + 1}
            self.run.log(position | {**figures, "step": step})
            status = {"loss": f"{figures['loss']:.3f}"}
        return status

    def is_good(self) -> bool:
        """Return whether all steps so far are good; their last figures are logged before a state is saved."""
        is_good = self.monitor.find_incident() is None
        self.log_steps()
        return is_good

    def handle_signals(self, stats: StepStats) -> None:
        """Between two steps, raise `Signalled` if the run is to stop, or ask for a checkpoint."""
        # Several processes must stop after the same step, so they go by what the step gathered (0:
        # no signal). A single one goes by its own signals (None), which may be newer.
        self.signals.raise_if_set(stats.signum if self.world.size > 1 else None)
        if stats.save_requested:
            self.signals.save_requested = False
            self.checkpointer.requested = True
            self.reporter.note("SIGUSR1: the next checkpoint is saved now.")

    def validate(self, label: str) -> dict[str, Result]:
        """Evaluate the `model`, and the `ema` of its weights where there is one."""
        return self.validation.score_all(f"{label}, validate", self.save_or_stop)

    def finish_epoch(self) -> dict[str, float]:
        """Count the epoch as done; return the means of its losses over the images."""
        progress, sums = self.state.progress, self.state.loss_sums
        self.is_between_steps = False
        losses = {name: float(value) / progress.images_in_epoch for name, value in sums.items()}
        self.state.loss_sums, progress.images_in_epoch = {}, 0
        progress.epoch += 1
        progress.seconds = time.monotonic() - self.start_time
        return losses

    def log_epoch(
        self, losses: dict[str, float], metrics: dict[str, Result], images_per_second: float
    ) -> dict[str, Any]:
        """Log the epoch's losses and metrics; return the record."""
        progress, kind = self.state.progress, choose_weights(metrics, self.metric)
        headline = choose_metric("auto", self.setup.model_config.task)
        best = metrics[kind]
        record = {
            "kind": "epoch",
            "epoch": progress.epoch,
            "step": progress.step,
            "images_seen": progress.images_seen,
            "train": losses,
            **list_metrics(best),
            "heads": best.heads,
            "head_agreement": best.head_agreement,
            "teacher_agreement": best.teacher_agreement,
            "weights": kind,
            **{f"{headline}_{name}": get_score(m, headline) for name, m in metrics.items()},
            "select": self.metric,
            "score": get_score(best, self.metric),
            "images_per_second": round(images_per_second, 2),
            "seconds": round(progress.seconds, 3),
        }
        self.run.log(record)
        self.is_between_steps = True
        described = describe_metrics(best, uneven=is_uneven(self.setup.val))
        self.reporter.note(
            f"epoch {progress.epoch}/{self.context.recipe.epochs}: loss {losses['loss']:.3f}, "
            f"{described}, {images_per_second:.1f} images/s"
        )
        return record

    def call_callbacks(self, record: dict[str, Any]) -> bool:
        """Call the caller's callbacks in the main process; return whether one ends the run."""
        if not self.callbacks:
            return False
        ends = self.world.is_main and call_callbacks(self.callbacks, record)
        return bool(self.world.broadcast_object(ends))

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
