"""A run's validation: its weights and their average, scored on the images held out."""

from __future__ import annotations

from contextlib import nullcontext

from deitctl.data.loader_pool import LoaderPool
from deitctl.device import Device
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel_result import Result
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter
from deitctl.training.build import TrainSetup
from deitctl.training.checkpointer import SaveOrStop
from deitctl.training.signals import StopRequest

BATCH_SIZE = 64


class Validation:
    """Scores the weights of a run on its validation images."""

    def __init__(
        self, setup: TrainSetup, signals: StopRequest, loaders: LoaderPool, reporter: Reporter
    ) -> None:
        """Do nothing yet.

        Args:
            setup: of the run.
            signals: that end a validation as soon as they come.
            loaders: processes that serve the training too.
            reporter: shows progress.
        """
        self.setup, self.signals, self.loaders, self.reporter = setup, signals, loaders, reporter

    def score_all(self, label: str, stop: SaveOrStop) -> dict[str, Result]:
        """Evaluate the `model`, and the `ema` of its weights where there is one."""
        state, device = self.setup.state, self.setup.context.device
        metrics = {"model": self.score(device, label, stop)}
        if state.ema is not None:
            # The state must not be saved now, so SIGUSR1 waits.
            with state.swap_weights(state.ema.values):
                metrics["ema"] = self.score(device, f"{label} EMA", self.signals)
        return metrics

    def score(
        self, device: Device, label: str, stop: StopRequest | SaveOrStop | None = None
    ) -> Result:
        """Evaluate the model's weights as they are; `stop` handles signals between batches."""
        setup, model_config = self.setup, self.setup.model_config
        eval_model = EvalModel(
            model=setup.state.model,
            preprocessing=model_config.preprocessing,
            rows=tuple(range(model_config.num_classes)),
            head=model_config.head,
            teacher_preds=setup.teacher.val_predictions if setup.teacher else None,
        )
        may_wait = nullcontext() if stop is None else self.signals.interrupt()
        with may_wait:
            (result,) = validate(
                [eval_model],
                setup.val,
                device=device,
                batch_size=BATCH_SIZE,
                workers=setup.workers,
                reporter=self.reporter,
                label=label,
                world=setup.context.world,
                pause=(stop or StopRequest()).raise_if_set,
                stop_on_bad_image=setup.config.on_bad_image == "stop",
                pool=self.loaders,
            )
        return result

    def score_last(self, device: Device, kind: str) -> Result:
        """Evaluate the weights that the run ended with, the `model` or the `ema`."""
        state = self.setup.state
        with state.swap_weights(state.weights(kind)):
            return self.score(device, "evaluate the last weights")
