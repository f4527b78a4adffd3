"""Settings of one training run, recipe and distillation included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from deitctl.config.distill import DistillConfig
from deitctl.config.option import (
    EVERYDAY,
    MACHINE,
    MAX_COUNT,
    MAX_FOLDS,
    MODEL_HELP,
    OPTIMIZATION,
    RESUMING,
    Option,
)
from deitctl.config.recipe import Recipe

SelectChoice = Literal["auto", "top1", "balanced", "f1", "map", "loss"]
"""The metric that the best weights are selected by; auto: top-1, of several labels an image mAP."""
OrderChoice = Literal["auto", "full", "window"]
"""Order of the training images; auto, before the run starts: by how they are read."""
TaskChoice = Literal["auto", "classification", "multilabel"]
"""One label an image, or several; auto, before the data is opened: as the data has them."""

CompileChoice = Literal["auto", "on", "off"]
"""Whether a run is compiled; auto, where it starts: by a measurement on CUDA, not on other devices."""

StrategyChoice = Literal["ddp", "fsdp"]
"""What each of several processes holds: all weights (ddp), or a part of them (fsdp)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, resolved: what `run.toml` holds."""

    model: Annotated[str, Option(MODEL_HELP, EVERYDAY, "deit_small, or deit_tiny on digits")]
    data: str
    recipe: Recipe
    weights: Annotated[
        str, Option("Weights file or model folder for a model named by architecture.", OPTIMIZATION)
    ] = ""
    classes: Annotated[
        str,
        Option(
            "Names of the classes of weights that come without them: a file with one a line, or JSON.",
            OPTIMIZATION,
        ),
    ] = ""
    model_args: Annotated[
        Mapping[str, Any],
        Option(
            "Shape of the model by timm's names, each by --set: model.depth=6, model.patch_size=8."
        ),
    ] = field(default_factory=dict)
    distill: DistillConfig | None = None
    task: Annotated[
        TaskChoice,
        Option(
            "classification (one label an image), multilabel (several, or none), or auto: as the data has them.",
            EVERYDAY,
        ),
    ] = "auto"
    seed: Annotated[int, Option("Random seed: the same seed gives the same run.", EVERYDAY)] = 0
    select: Annotated[
        SelectChoice,
        Option(
            "Which epoch's weights are the best: top1, balanced (accuracy) or f1 (macro), of several labels map or f1, "
            "or of the lowest loss; auto: top1, of several labels map.",
            EVERYDAY,
        ),
    ] = "auto"
    patience: Annotated[
        int,
        Option(
            "Stop after this many epochs without a better selected metric; 0: never.",
            OPTIMIZATION,
            ge=0,
            le=MAX_COUNT,
        ),
    ] = 0
    split_seed: Annotated[
        int,
        Option(
            "Which fifth is held out of data without validation images; --seed does not change it.",
            EVERYDAY,
        ),
    ] = 0
    fraction: Annotated[
        float,
        Option(
            "Share of the training images that is used, of every class alike; a smaller one is part of a larger.",
            EVERYDAY,
            gt=0,
            le=1,
        ),
    ] = 1.0
    extra_data: Annotated[
        tuple[str, ...],
        Option(
            "Other images to train on, of the classes of DATA; repeat for several sources. None is validated on.",
            EVERYDAY,
        ),
    ] = ()
    extra_weight: Annotated[
        tuple[float, ...],
        Option(
            "How many times an epoch shows an image of each --extra-data, 0.5 or 3 for example; repeat. Default: once.",
            EVERYDAY,
            gt=0,
            le=1000,
        ),
    ] = ()
    data_order: Annotated[
        OrderChoice,
        Option(
            "full: random over all images; window: blocks mixed in windows; auto: full unless it reads blocks anew.",
            OPTIMIZATION,
        ),
    ] = "auto"
    window: Annotated[
        int,
        Option(
            "Blocks that are mixed at a time (row groups; shards of a server that sends whole files alone, no ranges); "
            "0: by the data and the cache.",
            OPTIMIZATION,
            ge=0,
            le=MAX_COUNT,
        ),
    ] = 0
    group_by: Annotated[
        str,
        Option(
            "What keeps images on one side of a split: column of a table, folder:LEVEL, or name:REGEX with one group.",
            EVERYDAY,
        ),
    ] = ""
    folds: Annotated[
        int,
        Option(
            "Train K runs, each of which holds out another part of the training images; 0: one run.",
            EVERYDAY,
            ge=0,
            le=MAX_FOLDS,
        ),
    ] = 0
    fold: Annotated[
        int,
        Option("Of --folds, the one to train alone, from 1; 0: all.", EVERYDAY, ge=0, le=MAX_FOLDS),
    ] = 0
    image_folder: Annotated[
        str,
        Option(
            "Folder that the paths of a table are below.",
            EVERYDAY,
            "the table's, or one beside it that has them",
            flag="--images",
            keyword="image_folder",  # `images` are those that `predict` is given
        ),
    ] = ""
    value_range: Annotated[
        str,
        Option(
            "LOW,HIGH: black and white of images of more than 8 bits; auto: as their files state, or one for all.",
            EVERYDAY,
        ),
    ] = "auto"
    cache_dir: Annotated[
        str,
        Option(
            "Folder of what is read from stores (s3://, https://), or decoded once; hosts may share it.",
            MACHINE,
            "data/ below $DEITCTL_CACHE",
        ),
    ] = ""
    cache_size: Annotated[
        str,
        Option(
            "Of that folder at most, as 200GB; 0: nothing is cached.",
            MACHINE,
            "8 GiB, or half of the free disk",
        ),
    ] = ""
    workers: Annotated[
        int, Option("Loader processes; -1: chosen from the machine.", MACHINE, ge=-1)
    ] = -1
    micro_batch_size: Annotated[
        int,
        Option(
            "Gradient accumulation: images a process takes at a time; 0: as many as fit.",
            MACHINE,
            ge=0,
        ),
    ] = 0
    save_every: Annotated[
        str, Option("Time (10m, 90s, 1h) or steps (500) between checkpoints.", RESUMING)
    ] = "5m"
    grad_checkpointing: Annotated[
        bool,
        Option(
            "Compute activations again in the backward pass: the same gradients with less memory, slower.",
            MACHINE,
            flag="--grad-checkpointing/--no-grad-checkpoint",  # two letters more are cut at 80 columns
        ),
    ] = False
    loss_spike_factor: Annotated[
        float,
        Option(
            "Stop at a loss this many times both its recent mean and a guess's; 0: never.", ge=0
        ),
    ] = 3.0
    log: Annotated[
        str,
        Option(
            "Experiment trackers, by commas: tensorboard, wandb, mlflow, trackio, csv.", EVERYDAY
        ),
    ] = ""
    on_bad_image: Annotated[
        Literal["skip", "stop"],
        Option("An image that cannot be read: skip (and name) it, or stop.", MACHINE),
    ] = "skip"
    device: Annotated[str, Option("auto, cuda, cuda:N, mps or cpu.", MACHINE)] = "auto"
    precision: Annotated[
        str,
        Option(
            "auto, fp32, tf32, bf16 or fp16. auto: the fastest for training, fp32 for inference.",
            MACHINE,
        ),
    ] = "auto"
    compile: Annotated[
        CompileChoice,
        Option(
            "Compile model and losses: auto, on or off. auto: where that pays, which is measured on CUDA at the start.",
            MACHINE,
        ),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        Option("Compile, and replay steps as CUDA graphs; for one process on CUDA.", MACHINE),
    ] = False
    deterministic: Annotated[
        bool,
        Option("Bitwise deterministic kernels, for an exact resume on CUDA; slower.", MACHINE),
    ] = False
    strategy: Annotated[
        StrategyChoice,
        Option(
            "Of several processes: each holds all weights and moments (ddp), or its part of them (fsdp: less memory).",
            MACHINE,
        ),
    ] = "ddp"
    output_dir: Annotated[
        str, Option("Folder of the run.", EVERYDAY, "a new one under runs/", flag="--output")
    ] = ""


MACHINE_SETTINGS = (
    "cache_dir",
    "cache_size",
    "device",
    "precision",
    "compile",
    "cuda_graphs",
    "deterministic",
    "strategy",
    "workers",
    "micro_batch_size",
    "grad_checkpointing",
    "save_every",
    "loss_spike_factor",
    "on_bad_image",
    "log",
    "output_dir",
)
"""Settings that may change when a run is resumed: where and how it runs, not what it learns."""

EXTRA_SETTINGS = ("extra_data", "extra_weight")
"""Settings that are named once for each of several sources."""

PLACES = ("data", "image_folder", "extra_data", "distill.unlabelled")
"""Settings that say where a run's images lie, which may be moved before it is resumed."""
