"""The beginning of a run: what it announces, and the fit of a new head before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deitctl.data.unlabeled import select_labeled
from deitctl.events import SilentReporter
from deitctl.training.estimate import describe_training, estimate_seconds
from deitctl.training.head_init import fit_new_heads
from deitctl.training.objective import find_task_loss

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer


def announce(trainer: Trainer) -> None:
    """Say what is about to be done and how long it takes."""
    is_reported = trainer.world.is_main and type(trainer.reporter) is not SilentReporter
    progress = trainer.state.progress
    if is_reported and progress.epoch < trainer.context.recipe.epochs and not progress.stopped:
        seconds = estimate_seconds(trainer.setup, pause=trainer.save_or_stop.raise_if_set)
        trainer.reporter.note(describe_training(trainer.setup, seconds))


def fit_new_head(trainer: Trainer) -> None:
    """Before the first step, fit a new head to the pretrained features, and start the EMA from it.

    A no-op in a run that has begun, or whose head is not new.
    """
    setup, state = trainer.setup, trainer.state
    if not setup.fits_head or state.progress.step > 0:
        return
    score, is_multilabel = None, setup.train.is_multilabel
    model = state.whole_model()
    # By one process, so that the head is the same for any number of them: few images suffice.
    if trainer.world.is_main:
        score = fit_new_heads(
            model,
            setup.model_config,
            select_labeled(setup.train),
            task_loss=find_task_loss(trainer.context.objective, is_multilabel=is_multilabel),
            seed=trainer.config.seed,
            device=trainer.device,
            workers=setup.workers,
            reporter=trainer.reporter,
            pause=trainer.save_or_stop.raise_if_set,
        )
    trainer.world.broadcast_module_(model)
    if model is not state.model:
        state.load_weights(model.state_dict())
    if state.ema is not None:
        state.ema.reset(state.model)
    if score is not None:
        result = f"mAP {score:.1f} % on the" if is_multilabel else f"{score:.1f} % of"
        right = "" if is_multilabel else " right"
        trainer.reporter.note(
            f"The new head is fitted to the features: {result} training images{right}, each left out of its "
            "own fit."
        )
