"""Recipes: every hyperparameter with its source. No other file holds one."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deitctl.config import AugmentConfig, OptimConfig, ProgressiveResize, Recipe
from deitctl.errors import ConfigError, did_you_mean
from deitctl.settings import flatten, from_dict, override, read_toml

PAPER = Recipe(
    name="paper",
    pretrained=False,
    img_size=224,  # DeiT §6
    epochs=300,  # DeiT Table 9
    batch_size=1024,  # DeiT Table 9
    smoothing=0.1,  # DeiT Table 9
    drop_path_rate=0.1,  # DeiT Table 9 ("stoch. depth")
    ema_decay=0.99996,  # deit/main.py --model-ema-decay
    augment=AugmentConfig(
        crop_scale=(0.08, 1.0),  # torchvision's RandomResizedCrop, as in deit/datasets.py
        hflip=0.5,
        rand_augment="rand-m9-mstd0.5-inc1",  # DeiT Table 9 (9/0.5), spelled as in deit/main.py --aa
        color_jitter=0.3,  # deit/main.py --color-jitter; unused with RandAugment
        random_erase_prob=0.25,  # DeiT Table 9
        mixup=0.8,  # DeiT Table 9
        cutmix=1.0,  # DeiT Table 9
        mixup_prob=1.0,  # deit/main.py --mixup-prob
        mixup_switch_prob=0.5,  # deit/main.py --mixup-switch-prob
        mixup_group_size=64,  # deit/main.py --batch-size, of each of 16 processes
        repeated_aug=3,  # DeiT Table 9 ("repeated aug"), 3 in deit/samplers.py
        student_affine=(5.0, 0.1, 0.05),  # ours, for --views; the paper has none
    ),
    optim=OptimConfig(
        lr=5e-4,  # DeiT Table 9: 0.0005 x batch size / 512
        lr_base_size=512,
        min_lr=1e-5,  # deit/main.py --min-lr
        warmup_lr=1e-6,  # deit/main.py --warmup-lr
        warmup_epochs=5,  # DeiT Table 9
        weight_decay=0.05,  # DeiT Table 9
    ),
)

# From weights trained at 224: deit/README_deit.md, the command for deit_base_patch16_384. When that was published
# (commits 277659c and a8e9096 of January 2021) main.py kept the network in eval mode wherever --finetune was given, so
# no branch was dropped. The code of today drops them in the same command: --train-mode is its default since d64e7e9 of
# July 2022, for DeiT-III; its comment still says "eval mode for deit finetuning", and so does an author (issue 177).
PAPER_384 = replace(
    PAPER,
    name="paper-384",
    pretrained=True,
    img_size=384,
    epochs=30,
    batch_size=512,  # 2 nodes x 8 GPUs x 32
    drop_path_rate=0.0,  # eval mode, see above: the network has no dropout and no batch norm
    augment=replace(PAPER.augment, mixup_group_size=32),
    optim=OptimConfig(
        lr=5e-6,  # with min_lr the same, so that the rate is constant
        min_lr=5e-6,
        warmup_lr=1e-6,
        warmup_epochs=5,
        weight_decay=1e-8,
    ),
)

FINETUNE = Recipe(  # one's own images, from published weights; own values, see docs/results/finetuning.md
    name="finetune",
    pretrained=True,
    img_size=0,
    epochs=10,
    batch_size=64,
    smoothing=0.1,
    drop_path_rate=0.0,  # DeiT's authors leave it out for transfer (issue 45 of their repository)
    # Where batch norms were folded into the weights, normalizing by a batch's statistics would undo what was learned.
    freeze_bn_stats=True,
    fits_data=True,  # see fit_to_data
    head_init="ridge",
    ema_decay=0.0,  # the cosine ends near 0, and an average would double the validation of few images
    augment=AugmentConfig(
        crop_scale=(0.35, 1.0),  # milder than ImageNet's: the weights are pretrained, the data few
        hflip=0.5,  # no color jitter: in three epochs on 280 images it cost four points
        student_affine=(5.0, 0.1, 0.05),
    ),
    optim=OptimConfig(
        lr=4e-4,
        lr_base_size=0,  # not scaled: batches of 8 and of 16 learned best at one rate
        min_lr=1e-6,
        warmup_lr=1e-6,
        warmup_epochs=1,
        weight_decay=0.05,
        layer_decay=0.75,  # BEiT (arXiv 2106.08254, appendix) and MAE (arXiv 2111.06377, Table 9) have 0.65 to 0.75
    ),
)

NEW_HEAD_LR, OLD_HEAD_LR = 4e-4, 1e-4
"""Peak learning rates where the head is fitted to other classes than the weights', and where it is theirs."""
CUT_HEAD_INIT: Literal["ridge", "random"] = "random"
"""Of a new head where the weights' first blocks alone are kept: features in the middle of a network are separated by
large weights alone. Ten epochs of flowers-mini at 64 pixels, seed 0: first-epoch loss 1.66 instead of 2.97 with 3 of
deit_tiny's blocks, 1.66 instead of 3.11 with 6; of the last one 0.98 instead of 1.06, and 0.74 instead of 0.73."""
OTHERS_LAYER_DECAY = 0.9  # of models that are no DeiT
WARMUP_FRACTION = 0.1  # of the epochs
BATCH_SIZES = ((500, 8), (2_000, 16), (10_000, 32))
"""Batch size below a number of training images; FINETUNE's from there."""


def fit_to_data(
    recipe: Recipe,
    *,
    num_images: int,
    has_new_head: bool,
    is_deit: bool,
    fixed: Container[str] = (),
) -> Recipe:
    """Return a fine-tuning recipe with batch size, learning rate and warm-up for its data.

    A run on few images has few steps, so its batches are small. The rate is lower where the head is the weights' own.

    Args:
        recipe: with `fits_data`, else it is returned as it is.
        num_images: of the training set.
        has_new_head: whether the data's classes are others than those of the weights.
        is_deit: whether the model is a DeiT; convnets have more layers, and lower ones that need to change.
        fixed: names of settings that the user or a recipe file has chosen, which stay.
    """
    if not recipe.fits_data:
        return recipe
    sizes = (size for limit, size in BATCH_SIZES if num_images < limit)
    chosen: dict[str, float] = {
        "batch_size": next(sizes, recipe.batch_size),
        "optim.lr": NEW_HEAD_LR if has_new_head else OLD_HEAD_LR,
        "optim.layer_decay": recipe.optim.layer_decay if is_deit else OTHERS_LAYER_DECAY,
        "optim.warmup_epochs": min(recipe.optim.warmup_epochs, WARMUP_FRACTION * recipe.epochs),
    }
    return override(recipe, {name: value for name, value in chosen.items() if name not in fixed})


PROBE = replace(  # a linear probe: the classifier alone learns, on features as they are
    FINETUNE,
    name="probe",
    fits_data=False,
    freeze="backbone",
    optim=OptimConfig(
        lr=3e-3,  # ten times as much moves a fitted head away from its optimum (docs/results/finetuning.md)
        lr_base_size=512,
        min_lr=0.0,
        warmup_lr=1e-6,
        warmup_epochs=1,
        weight_decay=0.0,
    ),
)

SMALL = Recipe(  # from scratch on little data; own values
    name="small",
    pretrained=False,
    img_size=0,
    epochs=100,
    batch_size=64,
    smoothing=0.1,
    drop_path_rate=0.1,
    ema_decay=0.998,
    augment=AugmentConfig(
        crop_scale=(0.25, 1.0),
        hflip=0.5,
        rand_augment="rand-m7-mstd0.5-inc1",
        random_erase_prob=0.1,
        mixup=0.2,
        cutmix=0.5,
        mixup_prob=0.5,
        student_affine=(5.0, 0.1, 0.05),
    ),
    optim=OptimConfig(
        lr=4e-3,
        lr_base_size=512,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
        clip_grad=1.0,
    ),
)

DIGITS = replace(  # the built-in set: strokes have a direction, so no flip and no crop, but small affine maps
    SMALL,
    name="digits",
    img_size=32,  # 2x2 patches of 4x4 original pixels: learns in a quarter of the epochs that 64 takes
    # benchmarks/first_command.py. Steps decide, not images: 540 steps of 32 and 440 of 64 images gave 97.7 %, 920 of 32
    # gave 98.3 to 99.1 % (docs/results/distillation.md), and twice the rate was worse from the sixth epoch on.
    epochs=18,
    batch_size=32,
    drop_path_rate=0.0,
    # No student_affine: the views are moved already, and a second affine map costs a point.
    augment=AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, affine=(12.0, 0.12, 0.1)),
    optim=replace(SMALL.optim, lr=8e-3, warmup_epochs=3),
)

DIGITS_CONVNET = replace(  # its teacher: a convnet divides its input by 32, so it wants more pixels
    DIGITS,
    name="digits-convnet",
    img_size=64,
    epochs=6,
    augment=replace(DIGITS.augment, affine=(8.0, 0.08, 0.06)),
    optim=replace(DIGITS.optim, lr=2.4e-2, warmup_epochs=1),
)


def make_fast(recipe: Recipe) -> Recipe:
    """Return a recipe whose first epochs see smaller images and whose last ones see the full ones.

    FixRes (arXiv 1906.06423), as DeiT-III trains (arXiv 2204.07118 §4: lower resolution first, then 20 epochs at 224);
    here in one run, whose position embeddings are resized on the way. The fraction is ours, see docs/recipes.md.
    """
    resize = ProgressiveResize(scale=4 / 7, fraction=0.7)  # 128 of 224 pixels
    return replace(recipe, name=f"{recipe.name}-fast", progressive_resize=resize)


RECIPES = {
    r.name: r
    for r in (
        PAPER,
        make_fast(PAPER),
        PAPER_384,
        FINETUNE,
        make_fast(FINETUNE),
        PROBE,
        SMALL,
        make_fast(SMALL),
        DIGITS,
        DIGITS_CONVNET,
    )
}

DIGITS_TEACHER = "regnety_002"  # the smallest of the paper's teacher family
DIGITS_STUDENT = "deit_tiny"


class DistillDefaults(NamedTuple):
    """Weight of the teacher's labels, temperature, and weight of its features."""

    alpha: float
    tau: float
    feature_weight: float = 1.0


DISTILL_DEFAULTS = {
    "hard": DistillDefaults(alpha=0.5, tau=1.0),  # DeiT Eq. 3: one half each; no temperature
    "soft": DistillDefaults(alpha=0.1, tau=3.0),  # DeiT §5.2: lambda = 0.1, tau = 3.0
    # VkD's released code weighs labels, teacher's labels and features alike, at temperature 1
    # (main_distributed.py, --alpha 1 --gamma 1). With 1 - alpha and alpha of one half, so is 0.5.
    "features": DistillDefaults(alpha=0.0, tau=1.0),
    "features+hard": DistillDefaults(alpha=0.5, tau=1.0, feature_weight=0.5),
    "features+soft": DistillDefaults(alpha=0.5, tau=1.0, feature_weight=0.5),
}
DISTILL_REDUCTION: Literal["batchmean", "mean"] = "batchmean"  # DeiT Eq. 2
DISTILL_TOPK = 100
MIXED_RECIPES = ("paper", "paper-fast", "paper-384")
"""Recipes whose teacher sees mixed images, as in the released code (losses.py), unless --views is passed."""
DISTILL_VIEWS = 8
"""Views per image under every other recipe; docs/results/distillation.md has accuracies with fewer and more."""
DIGITS_VIEWS = 4
"""The same for the built-in digits: four views lost nothing there, and the teacher labels half as many."""


class OptimizerDefaults(NamedTuple):
    """What an optimizer is given in place of a recipe's values, which are AdamW's."""

    lr_factor: float
    """Of the recipe's learning rate."""
    decay_factor: float
    """Of the recipe's weight decay."""
    source: str


SAME_AS_ADAMW = OptimizerDefaults(1, 1, "")
LAMB_DEFAULTS = OptimizerDefaults(
    1.5, 1, "DeiT III has 3e-3 for 2,048 images where DeiT's AdamW has 2e-3"
)
LION_DEFAULTS = OptimizerDefaults(
    0.2, 5, "its paper, arXiv 2302.06675: a rate 3 to 10 times smaller, a decay as much larger"
)
SGD_DEFAULTS = OptimizerDefaults(
    50, 0.002, "decay 1e-4 as in arXiv 1706.02677; it is multiplied by the rate"
)
OPTIMIZER_DEFAULTS = {
    # Updates of the size of Adam's, and a decay apart from the gradient as AdamW's.
    **dict.fromkeys(("adamw", "adamwlegacy", "adamc", "cadamw", "cadamc"), SAME_AS_ADAMW),
    **dict.fromkeys(("nadamw", "nadamc", "cnadamw", "cnadamc", "radamw"), SAME_AS_ADAMW),
    **dict.fromkeys(("adoptw", "adoptc", "cadoptw", "cadoptc", "adamp", "cadamp"), SAME_AS_ADAMW),
    # timm's scales their updates to AdamW's ("match_rms_adamw"; Moonlight, arXiv 2502.16982 §2.2).
    **dict.fromkeys(("muon", "nmuon", "adamuon", "nadamuon"), SAME_AS_ADAMW),
    **dict.fromkeys(
        ("lamb", "lambw", "lambc", "lambcw", "lambcd", "clamb", "clambw"), LAMB_DEFAULTS
    ),
    **dict.fromkeys(("lion", "lionc", "clion", "clionc"), LION_DEFAULTS),
    **dict.fromkeys(("sgd", "momentum", "nesterov"), SGD_DEFAULTS),
}
"""By timm's name of the optimizer. Others are given a rate by the user."""

ONECYCLE_START, ONECYCLE_END = 25.0, 1e4
"""torch's `div_factor` and `final_div_factor`: the peak over the first rate, and the first over the last."""
RESTART_LR = 1.0
"""Peak of the learning rate after `--more-epochs`, relative to the recipe's (SGDR, arXiv 1608.03983, section 3)."""
FULL_FINETUNE_IMAGES = 50
"""Training images a class from which `--finetune-teacher auto` fine-tunes all of a teacher instead of its head."""


def get_finetune_recipe(part: str, *, built_in: bool) -> Recipe:
    """Return the recipe of a teacher's training: its `head`, the `full` network, or from `scratch`.

    Digits keep their own views.
    """
    if part == "scratch":
        return DIGITS_CONVNET if built_in else SMALL
    recipe = PROBE if part == "head" else FINETUNE
    return replace(recipe, augment=DIGITS_CONVNET.augment) if built_in else recipe


def read_file_settings(name: str) -> dict[str, Any]:
    """Return the settings in a recipe file, by dotted name from the recipe on; none for a recipe's name."""
    return {} if name in RECIPES else flatten(read_toml(Path(name)))


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a TOML file of settings on top of the recipe above that its `base` names.

    Raises:
        ConfigError: no such recipe or file, or a setting in the file that does not exist or fit.
    """
    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".toml"):
        hint = did_you_mean(name, RECIPES) or f"There are: {', '.join(RECIPES)}."
        raise ConfigError(f"There is no recipe {name!r}.", hint)
    values = read_toml(Path(name))
    base = values.pop("base", None)
    if base is None:
        return from_dict(Recipe, {"name": Path(name).stem, **values}, name)
    if base not in RECIPES:
        raise ConfigError(
            f"{name}: there is no base {base!r}.", f"There are: {', '.join(RECIPES)}."
        )
    return override(RECIPES[base], {"name": Path(name).stem, **flatten(values)})
