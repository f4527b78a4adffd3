"""A run's validation: its weights and their average, scored on the images held out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from deitctl.data.loader_pool import LoaderPool
from deitctl.device import Device
from deitctl.evaluation.batch_size import DEFAULT, choose_batch_size
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel_result import Result
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter
from deitctl.models.compiled import compile_copy
from deitctl.training.build import TrainSetup
from deitctl.training.checkpointer import SaveOrStop
from deitctl.training.signals import StopRequest


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
        self._batch_size: int | None = None

    def score_all(self, label: str, stop: SaveOrStop) -> dict[str, Result]:
        """Evaluate the `model`, and the `ema` of its weights where there is one, in one pass over the images.

        `stop` handles signals between batches.
        """
        state = self.setup.state
        models = {"model": state.whole_model()}
        if state.sharding is not None and state.ema is not None:
            models["ema"] = state.whole_model("ema")
        elif state.ema is not None:
            models["ema"] = copy_with_weights(state.model, state.ema.values)
        results = self._validate([*models.values()], self.setup.context.device, label, stop)
        return dict(zip(models, results, strict=True))

    def score(self, device: Device, label: str) -> Result:
        """Evaluate the model's weights as they are."""
        (result,) = self._validate([self.setup.state.whole_model()], device, label)
        return result

    def _validate(
        self,
        models: Sequence[nn.Module],
        device: Device,
        label: str,
        stop: SaveOrStop | None = None,
    ) -> list[Result]:
        setup, model_config = self.setup, self.setup.model_config
        preds = setup.teacher.val_predictions if setup.teacher else None
        eval_models = [
            EvalModel(
                model=model,
                preprocessing=model_config.preprocessing,
                rows=tuple(range(model_config.num_classes)),
                head=model_config.head,
                teacher_preds=preds,
            )
            for model in models
        ]
        for model in models:
            model.eval()
        if self._batch_size is None:
            self._batch_size = self._choose_batch_size(eval_models, device)
        may_wait = nullcontext() if stop is None else self.signals.interrupt()
        with may_wait:
            return validate(
                eval_models,
                setup.val,
                device=device,
                batch_size=self._batch_size,
                workers=setup.workers,
                reporter=self.reporter,
                label=label,
                world=setup.context.world,
                pause=(stop or StopRequest()).raise_if_set,
                stop_on_bad_image=setup.config.on_bad_image == "stop",
                pool=self.loaders,
            )

    def _choose_batch_size(self, eval_models: Sequence[EvalModel], device: Device) -> int:
        """Return the images of a batch, the same in all validations, because bf16 scores depend on it."""
        if device.deterministic:
            return DEFAULT
        world = self.setup.context.world
        num_images = len(range(len(self.setup.val.labels))[world.rank :: world.size])
        return choose_batch_size(eval_models, device, num_images, self.setup.workers)

    def score_last(self, device: Device, kind: str) -> Result:
        """Evaluate the weights that the run ended with, the `model` or the `ema`."""
        state = self.setup.state
        with state.swap_weights(state.weights(kind)):
            return self.score(device, "evaluate the last weights")


def copy_with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a model like another, whose parameters and buffers are other tensors, which it shares.

    Args:
        model: whose structure is copied; buffers that its state dict does not have are shared with it.
        weights: by the names of its state dict; none is copied.
    """
    tensors: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        tensors[id(parameter)] = nn.Parameter(weights[name], parameter.requires_grad)
    for name, buffer in model.named_buffers():
        tensors[id(buffer)] = weights.get(name, buffer)
    own = copy.deepcopy(model, tensors)
    compile_copy(model, own)
    return own
