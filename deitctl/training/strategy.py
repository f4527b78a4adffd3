"""How several processes divide a training: each holds all weights (ddp), or a part of them (fsdp)."""

from __future__ import annotations

from deitctl.config import TrainConfig
from deitctl.device import Device
from deitctl.distributed import World
from deitctl.errors import ConfigError
from deitctl.training.optimizer_choice import ADAMW


def check_strategy(config: TrainConfig) -> None:
    """Refuse what does not go with weights that are divided among processes; raise `ConfigError`."""
    if config.strategy != "fsdp":
        return
    recipe, distill = config.recipe, config.distill
    refusals = {
        f"the optimizer {recipe.optim.opt}, but with adamw": recipe.optim.opt.lower() != ADAMW,
        "clip_mode=agc, but with norm or value": recipe.optim.clip_mode == "agc",
        "frozen weights": recipe.freeze != "none" or recipe.freeze_blocks > 0,
        "distilled features": distill is not None and distill.uses_features,
        "--compile on": config.compile == "on",
        "--cuda-graphs": config.cuda_graphs,
    }
    for what, applies in refusals.items():
        if applies:
            raise ConfigError(
                f"--strategy fsdp does not go with {what}.",
                "Leave one of them out: --strategy ddp trains the same on as many processes.",
            )


def check_processes(
    config: TrainConfig, world: World, device: Device, *, has_objective: bool
) -> None:
    """Refuse processes, or a precision of theirs, that weights cannot be divided for; raise `ConfigError`."""
    if config.strategy != "fsdp":
        return
    if world.size == 1:
        raise ConfigError(
            "--strategy fsdp divides the weights among processes, and there is one.",
            "Start several (torchrun --nproc-per-node N -m deitctl train ...), or use --strategy ddp, "
            "which may go on with a run of divided weights too.",
        )
    if has_objective:  # it might use other outputs than the passes of the other processes
        raise ConfigError(
            "--strategy fsdp does not go with an objective of the caller's.", "Use --strategy ddp."
        )
    if device.precision == "fp16":
        raise ConfigError(
            "--strategy fsdp does not go with fp16, whose loss scale each process would choose alone.",
            "Use --precision bf16 or fp32.",
        )
