"""What several processes train, for test_ddp_engine.py: python ddp_processes.py OUT, with RANK and the like.

Every case takes the same steps on the same digits; rank 0 trains alone too. All is saved as sums and weights.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from deitctl.data.loader import Batch, build_train_loader
from deitctl.data.readers.digits import load_digits
from deitctl.data.samplers import TrainBatches
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.distributed import SINGLE_PROCESS, World, announce_failure, process_group
from deitctl.errors import DeitctlError
from deitctl.events import SilentReporter
from deitctl.models.catalog import find
from deitctl.models.convert import resize_architecture
from deitctl.models.model_config import Preprocessing
from deitctl.models.vit import VisionTransformer
from deitctl.recipes import RECIPES
from deitctl.training import ddp_engine
from deitctl.training.context import TrainContext
from deitctl.training.ddp_engine import Overlapped
from deitctl.training.device_batch import place_batch
from deitctl.training.engine import Engine, SummedAfterwards, build_engine
from deitctl.training.freezing import set_train_mode
from deitctl.training.objective import CrossEntropy, Supervised
from deitctl.training.optim import build_optimizer
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import forward_backward, optimizer_step

CPU = choose_device("cpu", "fp32")
STEPS, FEW, BATCH, DEPTH = 22, 7, 12, 3
RECIPE = replace(
    RECIPES["digits"],
    batch_size=BATCH,
    epochs=1,
    drop_path_rate=0.1,
    ema_decay=0.0,
    optim=replace(RECIPES["digits"].optim, lr=2e-3, warmup_epochs=0.0),
    augment=replace(RECIPES["digits"].augment, mixup=0.8, cutmix=1.0, random_erase_prob=0.5),
)
Hook = Callable[[Engine, int], None]


def make_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "convnet":
        return timm.create_model("regnety_002", num_classes=10)
    arch = find("deit_tiny_distilled")
    assert arch is not None
    arch = dataclasses.replace(resize_architecture(arch, 32), depth=DEPTH)
    model = VisionTransformer(arch, num_classes=10, img_size=32, drop_path_rate=0.1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def train(
    world: World,
    kind: Callable[[TrainContext, TrainState], Engine] = build_engine,
    *,
    model: str = "deit",
    micro_batch: int = 0,
    steps: int = STEPS,
    before_step: Hook = lambda engine, step: None,
    change_batch: Callable[[Batch, int], Batch] = lambda batch, step: batch,
) -> tuple[dict[str, Tensor], Engine]:
    """Return the weights after some steps, and the engine that took them."""
    network = make_model(model)
    state = TrainState(
        network, build_optimizer(network, RECIPE.optim), CPU.grad_scaler(), None, Progress()
    )
    state.progress.micro_batch_size = micro_batch
    set_train_mode(network, "none")
    context = TrainContext(
        RECIPE,
        Preprocessing(img_size=32),
        10,
        steps,
        0,
        CPU,
        Supervised(CrossEntropy(0.1)),
        world=world,
    )
    images = select(load_digits()[0], range(BATCH * steps))
    keys = TrainBatches(len(images.labels), BATCH, seed=0, epochs=1)
    batches = build_train_loader(
        images, RECIPE.augment, 32, keys, workers=0, pin_memory=False, shard=world.shard(BATCH)
    )
    engine = kind(context, state)
    for step, batch in enumerate(batches):
        before_step(engine, step)
        placed = place_batch(context, state, change_batch(batch, step), step)
        stats = forward_backward(engine, placed, SilentReporter())
        optimizer_step(context, state, context.lr_at(step), stats.grad_norm)
        state.progress.step += 1
    if isinstance(engine, Overlapped):
        engine.close()
    return {k: v.clone() for k, v in network.state_dict().items()}, engine


def fail_in_block(rank: int, block: int, at_step: int, world: World) -> Hook:
    """Let memory run out once in a block of one process, in the middle of the backward pass."""

    def before_step(engine: Engine, step: int) -> None:
        if step != at_step or world.rank != rank:
            return
        assert isinstance(engine, Overlapped)
        weight = engine.state.model.blocks[block].mlp.fc1.weight

        def run_out(_: Tensor) -> None:
            handle.remove()
            assert engine._is_overlapped
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

        handle = weight.register_hook(run_out)

    return before_step


def use_late(at_step: int) -> Hook:
    """Let the weights of an MLP get gradients from a step on."""
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def before_step(engine: Engine, step: int) -> None:
        if step == 0:
            mlp = engine.state.model.blocks[1].mlp
            handles.append(mlp.register_forward_hook(lambda mlp, x, out: out.detach()))
        elif step == at_step:
            handles.pop().remove()

    return before_step


def fail_in_sum(at_step: int) -> Hook:
    """Let memory run out once in process 1, where it is allocated for the sum."""

    def before_step(engine: Engine, step: int) -> None:
        if step != at_step or engine.context.world.rank != 1:
            return

        def run_out(losses: dict[str, Tensor]) -> None:
            del engine.prepare_sum
            engine.prepare_sum(losses)
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

        engine.prepare_sum = run_out

    return before_step


def leave_in_block(at_step: int) -> Hook:
    """Let process 1 end in the middle of an overlapped backward pass, and say why."""

    def before_step(engine: Engine, step: int) -> None:
        if step != at_step or engine.context.world.rank != 1:
            return

        def leave(_: Tensor) -> None:
            assert engine._is_overlapped
            announce_failure(DeitctlError("Process 1 has no memory.", "Buy some."))
            os._exit(0)

        engine.state.model.blocks[1].mlp.fc1.weight.register_hook(leave)

    return before_step


def lose_images(rank: int, at_step: int, world: World) -> Callable[[Batch, int], Batch]:
    """Let one process read no image of one batch."""

    def change(batch: Batch, step: int) -> Batch:
        if step != at_step or world.rank != rank:
            return batch
        none = slice(0, 0)
        return batch._replace(
            images=batch.images[none],
            labels=batch.labels[none],
            keys=[],
            slots=[],
            unreadable=[(key, "gone") for key in batch.keys],
            table=None
            if batch.table is None
            else type(batch.table)(*(t[none] for t in batch.table)),
        )

    return change


def main(out: Path) -> None:
    """Train all cases; each is named by what happens in it."""
    ddp_engine.BUCKET_MB = 1  # several buckets of a small model
    with process_group(torch.device("cpu")) as world:
        cases: dict[str, dict[str, Tensor]] = {}
        facts: dict[str, object] = {}
        if world.is_main:
            cases["alone"] = train(SINGLE_PROCESS)[0]
        cases["summed"] = train(world, SummedAfterwards)[0]
        overlapped: list[bool] = []
        cases["overlapped"], engine = train(
            world, before_step=lambda engine, _: overlapped.append(engine._is_overlapped)
        )
        facts["overlapped steps"] = sum(overlapped)
        cases["micro-batches"] = train(world, micro_batch=2)[0]
        for rank in range(world.size):
            gone = lose_images(rank, 5, world)
            cases[f"no image in {rank}, summed"] = train(
                world, SummedAfterwards, steps=FEW, change_batch=gone
            )[0]
            cases[f"no image in {rank}"] = train(world, steps=FEW, change_batch=gone)[0]
            for block in range(DEPTH):
                hook = fail_in_block(rank, block, 5, world)
                weights, engine = train(world, steps=FEW, before_step=hook)
                cases[f"out of memory in {rank}, block {block}"] = weights
                facts[f"micro-batch {rank} {block}"] = engine.state.progress.micro_batch_size
        if world.is_main:
            cases["alone, few steps"] = train(SINGLE_PROCESS, steps=FEW)[0]
        cases["convnet, summed"] = train(world, SummedAfterwards, model="convnet", steps=6)[0]
        cases["convnet"] = train(world, model="convnet", steps=6)[0]
        for name, kind in (("", build_engine), (", summed", SummedAfterwards)):
            weights, _ = train(world, kind, steps=FEW, before_step=use_late(5))
            cases[f"late gradients{name}"] = weights
        weights, engine = train(world, SummedAfterwards, steps=4, before_step=fail_in_sum(2))
        cases["out of memory in the sum"] = weights
        facts["micro-batch sum"] = engine.state.progress.micro_batch_size
        if world.is_main:
            cases["alone, 4 steps"] = train(SINGLE_PROCESS, steps=4)[0]
        torch.save({"cases": cases, "facts": facts}, out / f"{world.rank}.pt")
        try:
            train(world, steps=FEW, before_step=leave_in_block(6))
        except DeitctlError as error:
            facts["lost"] = [type(error).__name__, str(error)]
        torch.save({"cases": cases, "facts": facts}, out / f"{world.rank}.pt")
        os._exit(0)  # the group cannot be left any more


if __name__ == "__main__":
    main(Path(sys.argv[1]))
