"""Control over training, in whole runs: what is stopped and goes on ends as what is not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import Interrupted
from deitctl.models.checkpoint_io import WEIGHTS
from deitctl.settings import override
from deitctl.training import step
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
FILES = ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", WEIGHTS)
SHAPE = {"depth": 3, "embed_dim": 48, "num_heads": 3}
THAWING = {"freeze_blocks": 2, "thaw_epoch": 2}
CASES = {
    # four steps an epoch: in the first epoch, and in the second after the thaw
    "lamb, wsd, thawed": (2, {"optim.opt": "lamb", "optim.sched": "wsd", **THAWING}),
    "muon, one cycle, thawed": (6, {"optim.opt": "nadamuon", "optim.sched": "onecycle", **THAWING}),
    "as DeiT-III": (
        6,
        {
            "loss": "bce",
            "bce.target_thresh": 0.0,
            "smoothing": 0.0,
            "dpr_constant": True,
            "pos_embed": "sincos2d",
            "augment.rand_augment": "",
            "augment.three_augment": True,
            "augment.color_jitter": 0.3,
            "augment.crop_mode": "src",
            "optim.opt": "lamb",
            "optim.eps": 1e-8,
        },
    ),
    "sgd, out of patience": (5, {"optim.opt": "sgd", "optim.lr": 1e-12, "patience": 1}),
}


def configure(config: TrainConfig, changes: dict[str, object]) -> TrainConfig:
    recipe = {k if k == "patience" else f"recipe.{k}": v for k, v in changes.items()}
    common = {"recipe.img_size": 16, "recipe.optim.warmup_epochs": 0.5, "model_args": SHAPE}
    return override(config, {**common, **recipe})


def stop_before(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SIGTERM come in the step of a number."""
    calls, compute_losses = [], step.compute_losses

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_losses(*arguments)

    monkeypatch.setattr(step, "compute_losses", interrupted)


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_ends_as_one_that_was_not(
    case: str, little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, changes = CASES[case]
    whole = run_training(configure(little_config("whole"), changes), datasets=little)
    with monkeypatch.context() as patch:
        stop_before(number, patch)
        with pytest.raises(Interrupted):
            run_training(configure(little_config("run"), changes), datasets=little)
    run = whole.run.with_name("run")
    assert json.loads((run / "checkpoint/state.json").read_text())["step"] == number
    resumed = resume(run, datasets=little)
    for file in FILES:
        assert (run / file).read_bytes() == (whole.run / file).read_bytes(), file
    assert (resumed.epochs, resumed.stopped) == (whole.epochs, whole.stopped)
    if "patience" not in changes:
        assert (whole.epochs, whole.stopped) == (3, None)
        return
    assert (whole.epochs, whole.stopped) == (2, "patience")
    assert json.loads((run / "result.json").read_text())["stopped"] == "patience"
    # It goes on from where it stopped, and a kill of that is survived too.
    longer = resume(run, more_epochs=2, datasets=little)
    assert (longer.epochs, longer.stopped) == (3, "patience")
    recipe = Run.open(run)[1].recipe
    assert (recipe.epochs, recipe.restart_epochs, recipe.planned_epochs) == (4, (2,), (3,))
    assert resume(run, datasets=little).epochs == 3
