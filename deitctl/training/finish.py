"""The end of a run: its saved weights are evaluated, and its result is written."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from deitctl.device import choose_device
from deitctl.errors import ConfigError
from deitctl.evaluation.result import EvalResult
from deitctl.models.checkpoint_io import WEIGHTS, load_tensors
from deitctl.paths import write_json
from deitctl.records import to_object
from deitctl.training.result import BestEpoch, FinalEpoch, TrainResult
from deitctl.training.trend import judge_trend

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer


def finish_run(trainer: Trainer) -> TrainResult:
    """Evaluate the saved weights in fp32, and write the result."""
    run, setup, progress = trainer.run, trainer.setup, trainer.state.progress
    fp32 = choose_device(trainer.config.device, "fp32")
    # Read by the main process, which has written them, and passed on once the weights are there too.
    own = list(run.records("epoch")) if trainer.world.is_main else []
    epochs = trainer.world.broadcast_object(own)
    if not epochs or epochs[-1]["epoch"] != progress.epoch:
        raise ConfigError(
            f"{run.root} cannot be evaluated again: {run.metrics_file} has no record of its last epoch.",
            f"Restore that file, or score its weights: deitctl eval {shlex.quote(trainer.config.data)} "
            f"--model {run.quoted}",
        )
    last = epochs[-1]
    final = {name: last[name] for name in ("top1", "top5", "val_loss")}
    if trainer.device.precision != "fp32" and progress.best_epoch < progress.epoch:
        final = _summarize(trainer.evaluate_last(fp32, last["weights"]))
    trainer.state.model.load_state_dict(load_tensors(run.root / WEIGHTS))
    evaluation = trainer.evaluate(fp32, "evaluate the saved weights")
    if progress.best_epoch == progress.epoch:
        final = _summarize(evaluation)
    reasons = progress.unreadable | dict(evaluation.read_errors)
    if reasons:
        trainer.reporter.warn(
            f"{len(reasons)} image(s) could not be read and were left out, the first: "
            f"{next(iter(reasons.values()))}"
        )
    result = TrainResult(
        run=run.root,
        epochs=progress.epoch,
        images_seen=progress.images_seen,
        num_val_images=evaluation.num_images,
        best=BestEpoch(
            epoch=progress.best_epoch,
            top1=evaluation.top1,
            top1_interval=evaluation.top1_interval,
            top5=evaluation.top5,
            weights=progress.best_weights,
        ),
        final=FinalEpoch(epoch=progress.epoch, **final),
        trend=judge_trend(epochs, evaluation.num_images),
        heads=evaluation.heads,
        head_agreement=evaluation.head_agreement,
        teacher_agreement=evaluation.teacher_agreement,
        teacher=setup.teacher.preflight if setup.teacher else None,
        unreadable=sorted(reasons),
        seconds=round(time.monotonic() - trainer.start_time, 2),
        evaluation=evaluation,
        unreadable_reasons=reasons,
    )
    if trainer.world.is_main:
        write_json(run.result_file, to_object(result))
    trainer.world.barrier()
    return result


def _summarize(evaluation: EvalResult) -> dict[str, float | None]:
    return {"top1": evaluation.top1, "top5": evaluation.top5, "val_loss": evaluation.loss}
