"""Settings of the optimizer and of its learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from deitctl.config.option import OPTIMIZATION, RECIPE, Option


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimizer, and the schedule of its learning rate."""

    opt: Annotated[
        str,
        Option("Optimizer, by timm's name: adamw, lamb, muon, sgd, lion and others.", OPTIMIZATION),
    ] = "adamw"
    betas: Annotated[
        tuple[float, ...],
        Option("Decays of the optimizer's running means; empty: its own.", ge=0, lt=1),
    ] = ()
    momentum: Annotated[
        float, Option("Momentum of an optimizer that has one, as SGD and Muon.", ge=0, lt=1)
    ] = 0.9
    eps: Annotated[
        float, Option("Term that keeps the optimizer's denominators from 0; 0: its own.", ge=0)
    ] = 0.0
    opt_args: Annotated[
        tuple[str, ...],
        Option("Further arguments of the optimizer, nesterov=false,ns_steps=6 for example."),
    ] = ()

    lr: Annotated[
        float,
        Option(
            "Peak learning rate: of `finetune` itself, of other recipes for 512 images a step.",
            OPTIMIZATION,
            RECIPE,
            gt=0,
        ),
    ]
    lr_base_size: Annotated[
        int, Option("Batch size at which lr is the rate itself; 0: at every one.", ge=0)
    ] = 512
    sched: Annotated[
        Literal["cosine", "linear", "wsd", "constant", "onecycle"],
        Option("Schedule of the learning rate; wsd: warm-up, stable, decay.", OPTIMIZATION),
    ] = "cosine"
    decay_epochs: Annotated[
        float,
        Option(
            "Of wsd: epochs of its decay; below 1: their fraction of the epochs after the warm-up.",
            gt=0,
        ),
    ] = 0.2
    decay_fn: Annotated[
        Literal["1-sqrt", "linear", "cosine"], Option("Of wsd: the form of its decay.")
    ] = "1-sqrt"
    pct_start: Annotated[
        float, Option("Of onecycle: fraction of the steps in which the rate rises.", gt=0, lt=1)
    ] = 0.3
    min_lr: Annotated[float, Option("Rate at the end of the schedule, not scaled.", ge=0)]
    warmup_lr: Annotated[float, Option("Rate of the first step, not scaled.", ge=0)]
    warmup_epochs: Annotated[float, Option("Epochs in which the rate rises linearly.", ge=0)]
    weight_decay: Annotated[float, Option("Weight decay of matrices.", ge=0)]
    clip_grad: Annotated[
        float,
        Option(
            "Largest norm or value of the gradients, or of agc their largest part of the weights; 0: none.",
            ge=0,
        ),
    ] = 0.0
    clip_mode: Annotated[
        Literal["norm", "value", "agc"],
        Option("Clip the norm of all gradients, each value, or by the weights' norms (agc)."),
    ] = "norm"
    layer_decay: Annotated[
        float,
        Option("Factor of the rate from a layer to the one below (BEiT); 1: none.", gt=0, le=1),
    ] = 1.0
