"""Whole steps of every kind of training, and an evaluation, on the pretended accelerator, as JSON.

python runs.py [--steps N] [--depth N] [KIND...]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from accelerator import KINDS, Accelerator, PretendedDevice  # noqa: E402

from deitctl.config import DistillConfig, ProgressiveResize, TrainConfig  # noqa: E402
from deitctl.data.dataset import ImageDataset  # noqa: E402
from deitctl.data.loader import ViewPlan  # noqa: E402
from deitctl.data.readers.digits import load_digits  # noqa: E402
from deitctl.evaluation.eval_model import EvalModel  # noqa: E402
from deitctl.evaluation.validate import validate  # noqa: E402
from deitctl.events import SilentReporter  # noqa: E402
from deitctl.profiling.trial_run import TrialRun, build_trial  # noqa: E402
from deitctl.recipes import RECIPES  # noqa: E402
from deitctl.training.device_batch import DeviceBatch  # noqa: E402
from deitctl.training.ema import ExponentialMovingAverage  # noqa: E402
from deitctl.training.feed import feed  # noqa: E402
from deitctl.training.freezing import set_train_mode  # noqa: E402
from deitctl.training.monitor import LossMonitor, Observation  # noqa: E402
from deitctl.training.step import forward_backward, optimizer_step  # noqa: E402

WARM_UP, BATCH = 2, 16
EVALUATION = "evaluation"
Pair = tuple[ImageDataset, ImageDataset]


def configure(
    teacher_input: str = "", mode: str = "hard", views: int = 0, **changes: Any
) -> TrainConfig:
    """Return a training of the paper's recipe at 32 pixels, every random part on; `changes` are of the config."""
    recipe = RECIPES["paper"]
    recipe = replace(
        recipe,
        img_size=32,
        batch_size=BATCH,
        epochs=4,
        drop_path_rate=0.1,
        augment=replace(recipe.augment, random_erase_prob=0.5, student_affine=(6.0, 0.06, 0.05)),
    )
    distill = None
    if teacher_input:
        distill = DistillConfig(
            teacher="regnety_002",
            mode=mode,
            alpha=0.5,
            tau=3.0,
            reduction="batchmean",
            dist_token=True,
            teacher_input=teacher_input,
            views=views,
            logits_topk=4,
            teacher_img_size=32,
        )
    config = TrainConfig(
        model="deit_tiny",
        data="digits",
        recipe=recipe,
        distill=distill,
        precision="fp32",
        workers=0,
    )
    return replace(config, **changes)


class ResizedTrial(TrialRun):
    """A trial on images of half the size, as a run's first epochs."""

    @property
    def view_plan(self) -> ViewPlan:
        """As a run's, which a trial is not timed by."""
        return replace(super().view_plan, early_epochs=10**6, early_size=16)


def resize_first(config: TrainConfig) -> TrainConfig:
    """Return a training that begins with images of half the size, whose positions are resized in each step."""
    early = ProgressiveResize(scale=0.5, fraction=1.0)
    return replace(config, recipe=replace(config.recipe, progressive_resize=early))


TRAININGS: dict[str, Callable[[], TrainConfig]] = {
    "labels": configure,
    "mixed": lambda: configure("mixed"),
    "unmixed": lambda: configure("unmixed", views=2),
    "soft": lambda: resize_first(configure("mixed", "soft")),
    "soft unmixed": lambda: configure("unmixed", "soft", views=2),
    "features": lambda: configure("mixed", "hard+features"),
    "micro-batches": lambda: configure("mixed", micro_batch_size=BATCH // 2),
    "convnet": lambda: configure(model="regnety_002"),
}


def measure_training(gpu: Accelerator, config: TrainConfig, data: Pair, num_steps: int) -> None:
    """Take steps as a trainer does, and watch all but the first, which make what is made once."""
    device = PretendedDevice()
    trial = build_trial(config, data, device)
    if config.recipe.early_epochs:
        trial = ResizedTrial(**vars(trial))
    set_train_mode(trial.state.model, config.recipe.freeze)
    batches = feed(trial.context, trial.state, trial.build_loader())
    take_step = prepare_step(trial)
    for _ in range(WARM_UP):
        take_step(next(batches))
    with gpu.watch():
        for _ in range(num_steps):
            take_step(next(batches))


def prepare_step(trial: TrialRun) -> Callable[[DeviceBatch], None]:
    """Return a trainer's step: passes, monitor, optimizer, average, sums of losses."""
    context, state = trial.context, trial.state
    if state.ema is None:
        state.ema = ExponentialMovingAverage(state.model, decay=0.99)
    monitor = LossMonitor(state.progress, 2.3, scaled=False)

    def step(batch: DeviceBatch) -> None:
        lr = context.lr_at(state.progress.step)
        monitor.read_ready()
        stats = forward_backward(trial.engine, batch, SilentReporter())
        monitor.update(Observation(state.progress.step, lr, stats.reading, batch.keys))
        optimizer_step(context, state, lr, stats.grad_norm)
        for name, value in stats.losses.items():
            state.loss_sums[name] = state.loss_sums.get(name, 0.0) + value * stats.num_images
        state.progress.step += 1

    return step


def measure_evaluation(gpu: Accelerator, config: TrainConfig, data: Pair) -> int:
    """Validate a distilled model, and return the number of batches."""
    device = PretendedDevice()
    trial = build_trial(config, data, device)
    pre, val = trial.model_config.preprocessing, data[1]
    models = [
        EvalModel(
            model=trial.state.model, preprocessing=pre, rows=tuple(range(10)), head="avg-logits"
        )
    ]

    def run() -> None:
        validate(models, val, device=device, batch_size=64, workers=0, reporter=SilentReporter())

    run()
    with gpu.watch():
        run()
    return -(-len(val.labels) // 64)


def measure(kind: str, num_steps: int, depth: int) -> dict[str, Any]:
    """Return what was recorded in a kind of run, a step or batch; `depth` blocks of a DeiT, 0 for all."""
    torch.manual_seed(0)
    data = load_digits()
    config = TRAININGS.get(kind, TRAININGS["mixed"])()
    if depth and config.model.startswith("deit"):
        config = replace(config, model_args={"depth": depth})
    with Accelerator() as gpu:
        if kind == EVALUATION:
            count = measure_evaluation(gpu, config, data)
        else:
            measure_training(gpu, config, data, num_steps)
            count = num_steps
    found = sorted(gpu.findings.items(), key=lambda item: (item[0].kind, -item[1]))
    return {
        **{name: gpu.count(name) / count for name in KINDS},
        "operators": sum(gpu.operators.values()) / count,
        "names": gpu.list_operators(),
        "lines": [[*finding, number / count] for finding, number in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*TRAININGS, EVALUATION])
    parser.add_argument("--steps", type=int, default=20, help="watched steps of a training")
    parser.add_argument("--depth", type=int, default=0, help="blocks of a DeiT; 0: as it comes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {kind: measure(kind, arguments.steps, arguments.depth) for kind in arguments.kinds}
    sys.stdout.write(json.dumps(measured))


if __name__ == "__main__":
    main()
