"""Recipes with values of our own: fine-tuning, probes, little data from scratch, and the built-in digits."""

from __future__ import annotations

from dataclasses import replace

from deitctl.recipes.paper import OWN_AFFINE
from deitctl.recipes.table import PublishedResult, RecipeTable

FINETUNING = "own: docs/results/finetuning.md"
RECIPES = "own: docs/results/recipes.md"
DISTILLATION = "own: docs/results/distillation.md"
TIMM = "timm's default"
OWN_IMAGES = 1_000
"""Training images that the cost of a recipe for one's own images is computed for."""

FINETUNE = RecipeTable(
    name="finetune",
    purpose="your images, from weights",
    paper="own: docs/results/finetuning.md",
    num_images=OWN_IMAGES,
    settings={
        "pretrained": (True, FINETUNING),
        "img_size": (0, "the model's own"),
        "epochs": (10, FINETUNING),
        "batch_size": (64, f"{FINETUNING}; fewer below 10,000 images (fits_data)"),
        "smoothing": (0.1, "DeiT Table 9"),
        "drop_path_rate": (0.0, "DeiT's authors leave it out for transfer (deit issue 45)"),
        # Where batch norms were folded into the weights, a batch's statistics would undo what was learned.
        "freeze_bn_stats": (
            True,
            "own: folded batch norms would be undone by a batch's statistics",
        ),
        "fits_data": (True, f"{FINETUNING}: batch, rate and warm-up by the data"),
        "head_init": ("ridge", f"{FINETUNING}; why: arXiv 2202.10054"),
        "ema_decay": (0.0, "own: the cosine ends near 0; an average would double the validation"),
        "augment.crop_scale": ((0.35, 1.0), f"{FINETUNING}: milder, for the data are few"),
        "augment.hflip": (0.5, TIMM),  # no color jitter: on 280 images it cost four points
        "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
        "optim.lr": (4e-4, f"{FINETUNING}; 1e-4 with the weights' own head (fits_data)"),
        "optim.lr_base_size": (0, f"{FINETUNING}: batches of 8 and 16 learned best at one rate"),
        "optim.min_lr": (1e-6, "deit/main.py --warmup-lr, at both ends"),
        "optim.warmup_lr": (1e-6, "deit/main.py --warmup-lr"),
        "optim.warmup_epochs": (1, f"{FINETUNING}; a tenth of the epochs at most (fits_data)"),
        "optim.weight_decay": (0.05, "DeiT Table 9"),
        "optim.layer_decay": (
            0.75,
            "0.65 to 0.75 in BEiT (2106.08254, appendix) and MAE (2111.06377, Table 9)",
        ),
    },
)

PROBE = replace(
    FINETUNE,
    name="probe",
    purpose="your images, the head alone",
    settings={
        **{
            name: entry
            for name, entry in FINETUNE.settings.items()
            if name not in ("fits_data", "optim.layer_decay")
        },
        "batch_size": (64, FINETUNING),
        "freeze": ("backbone", "a linear probe, by definition"),
        "optim.lr": (3e-3, f"{FINETUNING}: ten times as much moves a fitted head away"),
        "optim.lr_base_size": (512, "DeiT Table 9"),
        "optim.min_lr": (0.0, "own: a probe ends at rest"),
        "optim.warmup_epochs": (1, FINETUNING),
        "optim.weight_decay": (0.0, "own: the head is fitted with its own penalty (head_init)"),
    },
)

SMALL = RecipeTable(
    name="small",
    purpose="your images, from scratch",
    paper="own: docs/results/recipes.md",
    num_images=OWN_IMAGES,
    settings={
        "pretrained": (False, "own: it is for data without published weights"),
        "img_size": (0, "the model's own"),
        "epochs": (100, RECIPES),
        "batch_size": (64, RECIPES),
        "smoothing": (0.1, "DeiT Table 9"),
        "drop_path_rate": (0.1, "DeiT Table 9"),
        "ema_decay": (0.998, RECIPES),
        "augment.crop_scale": ((0.25, 1.0), RECIPES),
        "augment.hflip": (0.5, TIMM),
        "augment.rand_augment": ("rand-m7-mstd0.5-inc1", f"{RECIPES}: milder than DeiT's m9"),
        "augment.random_erase_prob": (0.1, f"{RECIPES}: milder than DeiT's 0.25"),
        "augment.mixup": (0.2, RECIPES),
        "augment.cutmix": (0.5, RECIPES),
        "augment.mixup_prob": (0.5, RECIPES),
        "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
        "optim.lr": (4e-3, RECIPES),
        "optim.lr_base_size": (512, "DeiT Table 9"),
        "optim.min_lr": (1e-5, "deit/main.py --min-lr"),
        "optim.warmup_lr": (1e-6, "deit/main.py --warmup-lr"),
        "optim.warmup_epochs": (5, "DeiT Table 9"),
        "optim.weight_decay": (0.05, "DeiT Table 9"),
        "optim.clip_grad": (1.0, RECIPES),
    },
)

DIGITS_PAGE = f"{DISTILLATION}; benchmarks/first_command.py"
DIGITS = replace(  # strokes have a direction, so no flip and no crop, but small affine maps
    SMALL,
    name="digits",
    purpose="the built-in digits",
    paper="own: docs/results/distillation.md",
    model="deit_tiny",
    num_images=1_442,
    num_classes=10,
    settings={
        **{
            name: entry
            for name, entry in SMALL.settings.items()
            # No student_affine: the views are moved already, and a second affine map costs a point.
            if not name.startswith("augment.")
        },
        # 2x2 patches of 4x4 original pixels: learns in a quarter of the epochs that 64 takes.
        "img_size": (32, DIGITS_PAGE),
        # Steps decide, not images: 540 steps of 32 and 440 of 64 images gave 97.7 %, 920 of 32 gave 98.3 to 99.1 %,
        # and twice the rate was worse from the sixth epoch on.
        "epochs": (18, DIGITS_PAGE),
        "batch_size": (32, DIGITS_PAGE),
        "drop_path_rate": (0.0, DIGITS_PAGE),
        "augment.crop_scale": ((1.0, 1.0), "own: a digit that is cut is another"),
        "augment.hflip": (0.0, "own: strokes have a direction"),
        "augment.affine": ((12.0, 0.12, 0.1), DIGITS_PAGE),
        "optim.lr": (8e-3, DIGITS_PAGE),
        "optim.warmup_epochs": (3, DIGITS_PAGE),
    },
    distill={"views": (4, f"{DISTILLATION}: four views lost nothing")},
    published=(
        PublishedResult(
            model="deit_tiny",
            data="digits",
            top1=98.1,
            source="docs/results/distillation.md: distilled, 4 views, 20 epochs",
        ),
    ),
)

DIGITS_CONVNET = replace(  # its teacher: a convnet divides its input by 32, so it wants more pixels
    DIGITS,
    name="digits-convnet",
    purpose="the digits' teacher, a convnet",
    model="regnety_002",
    step_flops=195_257_472,
    settings={
        **DIGITS.settings,
        "img_size": (64, f"{DIGITS_PAGE}: a convnet divides its input by 32"),
        "epochs": (6, DIGITS_PAGE),
        "augment.affine": ((8.0, 0.08, 0.06), DIGITS_PAGE),
        "optim.lr": (2.4e-2, DIGITS_PAGE),
        "optim.warmup_epochs": (1, DIGITS_PAGE),
    },
    distill={},
    published=(),
)
