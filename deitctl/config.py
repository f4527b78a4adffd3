"""Configurations of a training: frozen dataclasses that a recipe fills, options override and `run.toml` keeps.

A setting is declared once, here: its type, default, range, help, and the panel of `--help` that lists it. The options
of the command line follow from it (`cli/options.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, cast

from deitctl.sizes import ImageSize

MAX_COUNT = 1_000_000
"""Epochs, images a step and views beyond which a number is a slip or an attack."""
MAX_FOLDS = 1000
MAX_CHANS = 256
"""Channels of the input; hyperspectral cameras have some 220."""
MAX_SIZE = 2048  # timm's largest is 1,280
"""Largest side of an input in pixels."""

# Panels of `--help`. A setting without a panel has no option of its own: `--set` reaches it.
EVERYDAY = "Options"
TEACHER = "Teacher"
OPTIMIZATION = "Optimization"
MACHINE = "Machine"
RESUMING = "Resuming"

MODEL_HELP = (
    "Alias, timm name, hf-hub:owner/name, run folder, or weights file; see `deitctl models`."
)
SelectChoice = Literal["auto", "top1", "balanced", "f1", "map", "loss"]
"""The metric that the best weights are selected by; auto: top-1, of several labels an image mAP."""
TaskChoice = Literal["auto", "classification", "multilabel"]
"""One label an image, or several; auto, before the data is opened: as the data has them."""
ModeChoice = Literal["hard", "soft", "features", "features+hard", "features+soft"]
"""What a student learns from its teacher: labels, features, or both."""
FinetuneChoice = Literal["auto", "head", "full", "scratch", "none"]
"""How a teacher is trained on the data first."""
RoleChoice = Literal["auto", "labels", "features", "both"]
"""What of a teacher a student learns, as far as the mode has it; auto: all of it."""
AVERAGE_TAU = 3.0
"""Temperature at which labels that are averaged over teachers are stored for hard labels, which do not depend on it:
that of soft distillation (DeiT section 5.2), whose stored labels serve both."""
TEACHER_DEFAULT = "regnety_002 on digits; regnety_160 where --teacher-weights is given"
RECIPE = "the recipe's"


@dataclass(frozen=True)
class Option:
    """What a setting is beside its type and default."""

    help: str
    panel: str = ""
    default: str = ""
    """What `--help` says of a default that is not a fixed value."""
    flag: str = ""
    """Empty: the setting's name with dashes; for a boolean `--name/--no-name`."""
    keyword: str = ""
    """In the Python API; empty: the flag without its dashes."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def limits(self) -> str:
        """The range in words, empty for none."""
        bounds = (
            ("at least", self.ge),
            ("more than", self.gt),
            ("at most", self.le),
            ("less than", self.lt),
        )
        return " and ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)

    def allows(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        return not (
            (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to a training image; every draw is a function of (seed, sample key)."""

    crop_scale: Annotated[
        tuple[float, float],
        Option(
            "Area of the random resized crop, relative to the image; (1, 1): no crop.", gt=0, le=1
        ),
    ]
    crop_ratio: Annotated[
        tuple[float, float], Option("Aspect ratios of the crop, as torchvision has them.", gt=0)
    ] = (3 / 4, 4 / 3)
    crop_mode: Annotated[
        Literal["rrc", "src"],
        Option(
            "rrc: random resized crop; src: the image resized to the input, then DeiT-III's simple random crop."
        ),
    ] = "rrc"
    hflip: Annotated[float, Option("Probability of a left-right flip.", ge=0, le=1)]
    affine: Annotated[
        tuple[float, float, float],
        Option(
            "Largest rotation (degrees), scaling and shift (of the side) of an affine map.", ge=0
        ),
    ] = (0.0, 0.0, 0.0)
    rand_augment: Annotated[str, Option("timm's RandAugment string; empty: none.")] = ""
    three_augment: Annotated[
        bool,
        Option(
            "DeiT-III's 3-Augment: every image is turned gray, solarized or blurred; color jitter follows."
        ),
    ] = False
    color_jitter: Annotated[
        float,
        Option(
            "Strength of brightness, contrast and saturation jitter; off with RandAugment.", ge=0
        ),
    ] = 0.0
    random_erase_prob: Annotated[
        float, Option("Probability of random erasing with per-pixel noise.", ge=0, le=1)
    ] = 0.0
    mixup: Annotated[float, Option("Beta parameter of mixup; 0: none.", ge=0)] = 0.0
    cutmix: Annotated[float, Option("Beta parameter of cutmix; 0: none.", ge=0)] = 0.0
    mixup_prob: Annotated[float, Option("Probability of mixing a group of images.", ge=0, le=1)] = (
        1.0
    )
    mixup_switch_prob: Annotated[
        float, Option("Probability of cutmix where mixup and cutmix are both on.", ge=0, le=1)
    ] = 0.5
    mixup_group_size: Annotated[
        int,
        Option(
            "Neighboring images of a batch that share a draw of mixup or cutmix.",
            ge=2,
            le=MAX_COUNT,
        ),
    ] = 64
    repeated_aug: Annotated[
        int, Option("Views of an image in an epoch of 1/N of the images.", ge=1, le=MAX_COUNT)
    ] = 1
    student_affine: Annotated[
        tuple[float, float, float],
        Option("Affine map of cached views that the student alone sees; as affine.", ge=0),
    ] = (0.0, 0.0, 0.0)


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
    def views_per_epoch(self) -> int:
        """Views of an image in an epoch; 0: balanced sampling counts them over the epochs."""
        return 0 if self.sampling == "balanced" else self.augment.repeated_aug

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


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How a student learns its teacher's features, in a mode that has them."""

    loss: Annotated[
        Literal["vkd", "cosine", "mse"],
        Option(
            "vkd (orthogonal projection onto standardized features, arXiv 2403.06213), cosine or mse.",
            TEACHER,
            flag="--feature-loss",
        ),
    ] = "vkd"
    weight: Annotated[
        float,
        Option(
            "Weight of the features' loss, beside that of the labels.",
            TEACHER,
            "1.0, 0.5 beside a teacher's labels",
            flag="--feature-weight",
            ge=0,
        ),
    ] = 1.0
    pool: Annotated[
        Literal["auto", "cls", "avg"],
        Option(
            "Teacher's features: its class token, the average of its patches, or auto: what its head reads.",
            TEACHER,
            flag="--feature-pool",
        ),
    ] = "auto"
    student_pool: Annotated[
        Literal["auto", "cls", "avg"],
        Option("The same of the student; auto: the average, without patches what its head reads."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher beside the first; its settings are those of the first in `DistillConfig`, by the same names."""

    teacher: str
    """As `DistillConfig.teacher`."""
    teacher_weights: str = ""
    """File of its weights."""
    teacher_role: RoleChoice = "auto"
    """What of it is learned."""
    teacher_classes: str = ""
    """File of the classes of these weights."""
    teacher_img_size: ImageSize = 0
    """Its input size in pixels; 0: its own."""
    finetune_teacher: FinetuneChoice = "auto"
    """How it is trained on the data first."""
    teacher_cache: str = ""
    """Folder of its targets, or `off`."""


TEACHER_SETTINGS = tuple(f"distill.{field.name}" for field in fields(TeacherConfig))
"""Settings of each teacher, of which several teachers have several values."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher, or several, and how a student learns from them."""

    teacher: Annotated[str, Option(MODEL_HELP, EVERYDAY, TEACHER_DEFAULT)]
    teacher_weights: Annotated[
        str, Option("Weights file of a teacher named by architecture.", TEACHER)
    ] = ""
    teacher_role: Annotated[
        RoleChoice,
        Option(
            "What of a teacher is learned, of several: labels, features, both, or auto: features of those without a "
            "classifier, labels of the others.",
            TEACHER,
        ),
    ] = "auto"
    mode: Annotated[
        ModeChoice,
        Option(
            "hard (DeiT Eq. 3), soft (Eq. 2), features, features+hard, features+soft, or none: without a teacher.",
            TEACHER,
            "hard",
        ),
    ]
    alpha: Annotated[
        float,
        Option(
            "Weight of the teacher's loss; that of the labels is 1 - alpha.",
            TEACHER,
            "hard 0.5, soft 0.1",
            ge=0,
            le=1,
        ),
    ]
    tau: Annotated[float, Option("Temperature of soft distillation.", TEACHER, "3.0", gt=0)]
    reduction: Annotated[
        Literal["batchmean", "mean"],
        Option(
            "KL divergence averaged over images (batchmean, Eq. 2) or images and classes (mean, the released code).",
            TEACHER,
            "batchmean",
        ),
    ]
    dist_token: Annotated[
        bool,
        Option("Distill into the class head, without a token.", TEACHER, flag="--no-dist-token"),
    ]
    finetune_teacher: Annotated[
        FinetuneChoice,
        Option(
            "Train the teacher first: its head, full (all of it) or from scratch; auto: if its classes differ; none.",
            TEACHER,
            "auto, or scratch for the teacher of digits",
        ),
    ] = "auto"
    teacher_classes: Annotated[
        str,
        Option(
            "Names of the classes of --teacher-weights that come without them, as --classes.",
            TEACHER,
        ),
    ] = ""
    teacher_img_size: Annotated[
        ImageSize,
        Option(
            "Side of the teacher's input in pixels, or HEIGHTxWIDTH; 0: its own.",
            TEACHER,
            ge=0,
            le=MAX_SIZE,
        ),
    ] = 0
    teacher_input: Annotated[
        Literal["mixed", "unmixed"],
        Option(
            "mixed: the images after mixup, as in the paper; unmixed: those before it, whose targets are mixed.",
            TEACHER,
            RECIPE,
        ),
    ]
    views: Annotated[
        int,
        Option(
            "Augmented views per image, cycled over the epochs; the teacher labels each once. 0: new ones every epoch.",
            TEACHER,
            RECIPE,
            ge=0,
            le=MAX_COUNT,
        ),
    ]
    view_seed: Annotated[
        int, Option("Seed of the views: runs of every --seed share one teacher cache.", TEACHER)
    ] = 0
    logits_topk: Annotated[
        int,
        Option(
            "Classes stored of a soft target; the others share its rest evenly.",
            TEACHER,
            "100",
            ge=1,
        ),
    ]
    teacher_cache: Annotated[
        str, Option("Folder of teacher targets, or off.", TEACHER, "named by its content")
    ] = ""
    unlabelled: Annotated[
        str,
        Option(
            "Further training images, without labels, that the teacher labels: folder, tar, pack or list; rest: those "
            "that --fraction leaves out.",
            EVERYDAY,
            "",
        ),
    ] = ""
    allow_weak_teacher: Annotated[
        bool,
        Option(
            "Continue with a teacher that scores near chance.", TEACHER, flag="--allow-weak-teacher"
        ),
    ] = False
    features: FeatureConfig = FeatureConfig()
    more_teachers: tuple[TeacherConfig, ...] = ()

    @property
    def label_mode(self) -> Literal["hard", "soft", ""]:
        """Which of the teacher's labels are learned, by the distillation head if there is one; empty:
        none are."""
        if self.mode.endswith("hard"):
            return "hard"
        return "soft" if self.mode.endswith("soft") else ""

    @property
    def uses_features(self) -> bool:
        """Whether the student learns the teacher's features."""
        return self.mode.startswith("features")

    def list_teachers(self) -> tuple[DistillConfig, ...]:
        """Return a configuration of each teacher as if it were alone, in the mode of its role.

        Labels that are averaged are soft ones, of which hard ones follow; so they have the cache that a
        run of this teacher alone has in mode soft.
        """
        if not self.more_teachers:
            return (self,)
        alone = [replace(self, more_teachers=())]
        alone += [replace(alone[0], **vars(teacher)) for teacher in self.more_teachers]
        label_mode: str = self.label_mode
        averages = label_mode and sum(a.teacher_role != "features" for a in alone) > 1
        if averages:
            label_mode = "soft"
        tau = AVERAGE_TAU if averages and self.label_mode == "hard" else self.tau
        modes = {"labels": label_mode, "features": "features" * self.uses_features}
        modes["both"] = modes["auto"] = "+".join(filter(None, reversed(modes.values())))
        return tuple(
            replace(a, mode=cast(ModeChoice, modes[a.teacher_role]), tau=tau) for a in alone
        )


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
            "auto, fp32, bf16 or fp16. auto: the fastest for training, fp32 for inference.", MACHINE
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Option("Compile the model's blocks: a slower start, then faster steps on a GPU.", MACHINE),
    ] = False
    output_dir: Annotated[
        str, Option("Folder of the run.", EVERYDAY, "a new one under runs/", flag="--output")
    ] = ""


MACHINE_SETTINGS = (
    "device",
    "precision",
    "compile",
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

PLACES = ("data", "image_folder", "distill.unlabelled")
"""Settings that say where a run's images lie, which may be moved before it is resumed."""
