"""What processes train together whose weights are divided, for test_sharded_runs.py: sharded_runs.py OUT CASE."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers.digits import load_digits
from deitctl.data.subsets import select
from deitctl.distributed import World, process_group
from deitctl.errors import DeitctlError, Interrupted
from deitctl.recipes import DIGITS
from deitctl.training import failure
from deitctl.training.engine import SingleProcess
from deitctl.training.extensions import Extensions
from deitctl.training.launch import resume, run_training

STEPS_AN_EPOCH = 11


def load_data() -> tuple[ImageDataset, ImageDataset]:
    train, val = load_digits()
    return select(train, range(14 * STEPS_AN_EPOCH)), select(val, range(30))


def make_config(root: Path, **changes: Any) -> TrainConfig:
    """A run of 22 steps of 14 images, mixed, with stochastic depth, EMA and clipped gradients."""
    recipe = replace(
        DIGITS,
        img_size=16,
        epochs=2,
        batch_size=14,
        drop_path_rate=0.2,
        ema_decay=0.9,
        optim=replace(DIGITS.optim, clip_grad=1.0),
        augment=replace(DIGITS.augment, mixup=0.8, cutmix=1.0, random_erase_prob=0.5),
    )
    config = TrainConfig(
        model="deit_tiny",
        data="digits",
        recipe=recipe,
        device="cpu",
        precision="fp32",
        workers=0,
        micro_batch_size=4,
        save_every="5",
        output_dir=str(root),
        model_args={"depth": 2},
    )
    return replace(config, **changes)


class StopAfterAnEpoch:
    """Sends all processes a signal, as torchrun does."""

    def __init__(self, world: World) -> None:
        self.pids = world.all_gather_object(os.getpid())

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        if record["epoch"] == 1:
            for pid in self.pids:
                os.kill(pid, signal.SIGTERM)


def run_out_of_memory(world: World, rank: int, block: int | None) -> Callable[..., Any]:
    """Let memory run out once in one process: before a pass, or in a block in the middle of it."""
    forward = SingleProcess.forward

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    def run(engine: SingleProcess, *args: Any) -> Any:
        if world.rank == rank:
            if block is None:
                SingleProcess.forward = forward
                fail()
            engine.state.model.blocks[block].mlp.register_forward_pre_hook(fail)
        return forward(engine, *args)

    return run


def two(out: Path, world: World) -> None:
    data = load_data()
    run_training(make_config(out / "whole", strategy="fsdp"), datasets=data)
    parted = make_config(out / "parted", strategy="fsdp")
    extensions = Extensions(callbacks=[StopAfterAnEpoch(world)])
    try:
        run_training(parted, datasets=data, extensions=extensions)
    except Interrupted:
        pass
    else:
        raise AssertionError("it was not interrupted")
    if world.is_main:
        shutil.copytree(out / "parted", out / "by three")
        shutil.copytree(out / "alone", out / "moved")
    world.barrier()
    resume(out / "parted", datasets=data)
    resume(out / "moved", settings={"strategy": "fsdp"}, datasets=data)
    failure.WAIT_S = 0.5
    SingleProcess.forward = run_out_of_memory(world, 1, block=1)
    try:
        run_training(make_config(out / "full", strategy="fsdp"), datasets=data)
    except DeitctlError as error:
        (out / f"error {world.rank}").write_text(f"{error.message} {error.hint}")
    sys.stdout.flush()
    os._exit(0)  # as after an error: what others of the group wait for is not waited for


def three(out: Path, world: World) -> None:
    SingleProcess.forward = run_out_of_memory(world, 2, block=None)
    resume(out / "by three", datasets=load_data())


def main(out: Path, case: str) -> None:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")) as world:
        {"two": two, "three": three}[case](out, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
