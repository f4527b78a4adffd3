"""What several processes train, for test_fsdp_engine.py: python fsdp_processes.py OUT CASE, with RANK and the like."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import ddp_processes as common
import torch
from torch import Tensor

from deitctl.data.loader import build_train_loader
from deitctl.data.readers.digits import load_digits
from deitctl.data.samplers import TrainBatches
from deitctl.data.subsets import select
from deitctl.distributed import SINGLE_PROCESS, World, process_group
from deitctl.events import SilentReporter
from deitctl.models.model_config import Preprocessing
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import place_batch
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.engine import SingleProcess
from deitctl.training.freezing import set_train_mode
from deitctl.training.fsdp_engine import Sharded, shard_model
from deitctl.training.objective import CrossEntropy, Supervised
from deitctl.training.optim import build_optimizer
from deitctl.training.sharded_checkpoint import gather_weights, load_shards, save_shards
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import forward_backward, optimizer_step

STEPS, HALF = 6, 3
RECIPE = replace(
    common.RECIPE, ema_decay=0.9, optim=replace(common.RECIPE.optim, opt="adamw", clip_grad=1.0)
)


def train(
    world: World, first: int, last: int, folder: Path, micro: int = 0, lost: int = -1
) -> dict[str, Tensor]:
    """Return weights and EMA after steps `first` to `last`, from the saved state unless `first` is 0."""
    model = common.make_model("deit")
    if world.size > 1:
        shard_model(model, world, "cpu")
    ema = ExponentialMovingAverage(model, decay=0.9)
    optimizer = build_optimizer(model, RECIPE.optim)
    state = TrainState(model, optimizer, common.CPU.grad_scaler(), ema, Progress())
    state.progress.micro_batch_size = micro
    set_train_mode(model, "none")
    context = TrainContext(
        RECIPE, Preprocessing(img_size=32), 10, STEPS, 0, common.CPU,
        Supervised(CrossEntropy(0.1)), world=world,
    )  # fmt: skip
    if first:
        state.progress.step = load_shards(state, folder, world)["step"]
        assert state.progress.step == first
    images = select(load_digits()[0], range(common.BATCH * STEPS))
    keys = TrainBatches(len(images.labels), common.BATCH, seed=0, epochs=1)
    batches = build_train_loader(
        images, RECIPE.augment, 32, keys, workers=0, pin_memory=False,
        shard=world.shard(common.BATCH),
    )  # fmt: skip
    engine = Sharded(context, state) if world.size > 1 else SingleProcess(context, state)
    lose = common.lose_images(1, lost, world)
    for step, batch in enumerate(batches):
        if not first <= step < last:
            continue
        placed = place_batch(context, state, lose(batch, step), step)
        stats = forward_backward(engine, placed, SilentReporter())
        optimizer_step(context, state, context.lr_at(step), stats.grad_norm)
        state.progress.step += 1
    if last == HALF:
        save_shards(state, folder, {"step": last}, world)
    whole = gather_weights(model.state_dict())
    return whole | {f"ema.{k}": v for k, v in gather_weights(ema.values).items()}


def main(out: Path, case: str) -> None:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")) as world:
        if case == "two":
            results = {
                "whole": train(world, 0, STEPS, out / "none"),
                "micro": train(world, 0, STEPS, out / "none", micro=4),
                "lost": train(world, 0, STEPS, out / "none", lost=2),
            }
            train(world, 0, HALF, out / "checkpoint")
            results["resumed"] = train(world, HALF, STEPS, out / "checkpoint")
            if world.is_main:
                results["one"] = train(SINGLE_PROCESS, 0, STEPS, out / "none")
        else:
            results = {"three": train(world, HALF, STEPS, out / "checkpoint")}
        if world.is_main:
            torch.save(results, out / f"{case}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
