"""Settings of a recipe: what the paper or experience decides of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from deitctl.config.augment import AugmentConfig
from deitctl.config.optim import OptimConfig
from deitctl.config.option import (
    EVERYDAY,
    MAX_CHANS,
    MAX_COUNT,
    MAX_SIZE,
    OPTIMIZATION,
    RECIPE,
    Option,
)
from deitctl.sizes import ImageSize


@dataclass(frozen=True, kw_only=True)
class BceConfig:
    """Binary cross-entropy, as timm's BinaryCrossEntropy has it."""

    target_thresh: Annotated[
        float,
        Option(
            "Targets above it become 1, others 0, as DeiT-III does at 0; -1: they stay.",
            ge=-1,
            lt=1,
        ),
    ] = -1.0
    sum_classes: Annotated[
        bool, Option("Sum the loss over the classes; else it is their mean.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class AslConfig:
    """Asymmetric loss, with the defaults of timm's AsymmetricLossMultiLabel."""

    gamma_neg: Annotated[float, Option("Focus on hard negatives.", ge=0)] = 4.0
    gamma_pos: Annotated[float, Option("Focus on hard positives.", ge=0)] = 1.0
    clip: Annotated[
        float, Option("Probability below which a negative costs nothing.", ge=0, lt=1)
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class ProgressiveResize:
    """Smaller images in the first epochs, full ones in the last (FixRes, arXiv 1906.06423)."""

    scale: Annotated[
        float, Option("Side of early inputs relative to img_size; 1: not smaller.", gt=0, le=1)
    ] = 1.0
    fraction: Annotated[float, Option("Fraction of the epochs that are early.", ge=0, le=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training that the paper or experience decides, and nothing about the machine."""

    name: str
    pretrained: Annotated[bool, Option("Start from published weights.", OPTIMIZATION, RECIPE)]
    img_size: Annotated[
        ImageSize,
        Option(
            "Side of the input in pixels, or HEIGHTxWIDTH; 0: the model's own.",
            EVERYDAY,
            RECIPE,
            ge=0,
            le=MAX_SIZE,
        ),
    ]
    epochs: Annotated[
        int, Option("Passes over the training images.", EVERYDAY, RECIPE, ge=1, le=MAX_COUNT)
    ]
    batch_size: Annotated[
        int,
        Option(
            "Images per step, over all processes and micro-batches.",
            EVERYDAY,
            RECIPE,
            ge=2,
            le=MAX_COUNT,
        ),
    ]
    loss: Annotated[
        Literal["auto", "ce", "bce", "asl"],
        Option(
            "Cross-entropy, binary cross-entropy or asymmetric loss; auto: ce, or bce of several labels.",
            OPTIMIZATION,
        ),
    ] = "auto"
    bce: BceConfig = BceConfig()
    asl: AslConfig = AslConfig()
    class_weights: Annotated[
        Literal["none", "inverse", "effective", "neg_pos"],
        Option(
            "Rare classes count more: by inverse frequency, effective number, or (several labels) neg_pos.",
            OPTIMIZATION,
        ),
    ] = "none"
    class_weight_power: Annotated[
        float, Option("Exponent of inverse and neg_pos; 0.5 is milder.", gt=0, le=2)
    ] = 1.0
    class_weight_beta: Annotated[
        float, Option("Beta of the effective number of images.", gt=0, lt=1)
    ] = 0.999
    logit_adjustment: Annotated[
        float,
        Option(
            "Add this times the log of the classes' frequencies to the logits in training; 0: none.",
            OPTIMIZATION,
            ge=0,
            le=10,
        ),
    ] = 0.0
    smoothing: Annotated[float, Option("Label smoothing, of true labels only.", ge=0, lt=1)]
    smoothing_by: Annotated[
        Literal["all", "class"],
        Option(
            "all: every label alike; class: the largest class's so, falling to 0 at the rarest."
        ),
    ] = "all"
    drop_path_rate: Annotated[
        float, Option("Stochastic depth of the last block; linear from 0 at the first.", ge=0, lt=1)
    ]
    dpr_constant: Annotated[
        bool, Option("Stochastic depth of every block alike, as DeiT-III has it; of DeiTs.")
    ] = False
    ema_decay: Annotated[
        float, Option("Decay of the moving average of the weights; 0: none.", ge=0, lt=1)
    ]
    pos_embed: Annotated[
        Literal["learn", "sincos2d"],
        Option("Position embeddings: learned, or fixed sines and cosines of rows and columns."),
    ] = "learn"
    in_chans: Annotated[
        int,
        Option(
            "Channels of the input: 1 of gray, 3 of RGB, N of images of N bands; 0: the model's own.",
            EVERYDAY,
            RECIPE,
            ge=0,
            le=MAX_CHANS,
        ),
    ] = 0
    freeze: Annotated[
        Literal["none", "backbone"], Option("backbone: train the classifier alone, a linear probe.")
    ] = "none"
    freeze_blocks: Annotated[
        int,
        Option(
            "Embeddings and blocks, from the first on, that are not trained; 0: all are.",
            OPTIMIZATION,
            ge=0,
            le=MAX_COUNT,
        ),
    ] = 0
    thaw_epoch: Annotated[
        int,
        Option(
            "Epoch, from 1, from which on what is frozen is trained too; 0: never.",
            OPTIMIZATION,
            ge=0,
            le=MAX_COUNT,
        ),
    ] = 0
    fits_data: Annotated[
        bool,
        Option("Batch size, rate and warm-up are chosen by the number of images and the head."),
    ] = False
    head_init: Annotated[
        Literal["ridge", "random"],
        Option(
            "A new head on pretrained weights: fitted to their features by ridge regression, or random."
        ),
    ] = "random"
    freeze_bn_stats: Annotated[
        bool, Option("Keep the running statistics of batch norms as the weights have them.")
    ] = False
    sampling: Annotated[
        Literal["uniform", "balanced"],
        Option(
            "balanced: every class is drawn equally often (class-aware, Shen et al. 2016); uniform: every image."
        ),
    ] = "uniform"
    restart_epochs: Annotated[
        tuple[int, ...],
        Option(
            "Epochs done when the schedule of the learning rate begins again; --more-epochs adds one.",
            ge=1,
        ),
    ] = ()
    planned_epochs: Annotated[
        tuple[int, ...],
        Option(
            "Epochs that each schedule before a restart was for, where one stopped early; empty: as many as it had.",
            ge=1,
        ),
    ] = ()
    augment: AugmentConfig
    optim: OptimConfig
    progressive_resize: ProgressiveResize = ProgressiveResize()

    @property
    def early_epochs(self) -> int:
        """Epochs at the lower resolution; the last that was planned for the first schedule is at the full one,
        and so is all that follows it."""
        resize, (_, planned) = self.progressive_resize, self.schedule_of(0)
        if resize.scale >= 1:
            return 0
        done = (*self.restart_epochs, self.epochs)[0]
        return min(round(resize.fraction * planned), planned - 1, done)

    def frozen_part(self, epoch: int) -> tuple[str, int]:
        """Return `freeze` and `freeze_blocks` as they hold in an epoch, counted from 0."""
        if self.thaw_epoch and epoch + 1 >= self.thaw_epoch:
            return "none", 0
        return self.freeze, self.freeze_blocks

    def schedule_of(self, epoch: int) -> tuple[int, int]:
        """Return the first epoch, from 0, and the planned number of epochs of the schedule of an epoch."""
        starts = (0, *self.restart_epochs)
        number = sum(start <= epoch for start in starts) - 1
        return starts[number], self.list_planned()[number]

    def list_planned(self) -> tuple[int, ...]:
        """Return the epochs that each schedule is for; one that stopped early had fewer."""
        ends = (*self.restart_epochs, self.epochs)
        lengths = tuple(end - start for start, end in zip((0, *ends), ends, strict=False))
        return self.planned_epochs + lengths[len(self.planned_epochs) :]
