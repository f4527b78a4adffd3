"""The recipes of DeiT-III (arXiv 2204.07118), as the commands of its released code have them.

github.com/facebookresearch/deit, README_revenge.md. The paper's Table 1 is of an earlier setting (an author of
rope-vit, its issue 21); the accuracies in README_revenge.md are those of the commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deitctl.recipes.paper import MAIN, OWN_AFFINE, PAPER
from deitctl.recipes.table import PublishedResult, RecipeTable, Settings, SizeSettings

README = "deit/README_revenge.md"
TRAIN = f"{README}, training:"
TUNE = f"{README}, at 224:"
TUNE_384 = f"{README}, at 384:"
WIDTHS = {"Ti": 192, "S": 384, "M": 512, "B": 768, "L": 1024, "H": 1280}
"""Largest width of each size (deit/models_v2.py)."""


def _by_size(source: str, **sizes: dict[str, Any]) -> tuple[SizeSettings, ...]:
    """Return settings by size, all of the command of that size but those that are a pair with a source."""
    return tuple(
        SizeSettings(
            size=size,
            max_width=WIDTHS[size],
            settings={
                name: value if isinstance(value, tuple) else (value, f"{source} command of {size}")
                for name, value in settings.items()
            },
        )
        for size, settings in sizes.items()
    )


def _publish(pixels: int, **top1: float) -> tuple[PublishedResult, ...]:
    suffix = "_384" if pixels == 384 else ""
    return tuple(
        PublishedResult(
            model=f"deit3_{name}{suffix}",
            data="ImageNet-1k",
            top1=percent,
            source=f"{README}, {pixels}x{pixels}",
        )
        for name, percent in top1.items()
    )


LIKE_S = "own: as S, for there is no command for Ti"
BETWEEN = "own: between S and B, for there is no command for M"
SETTINGS: Settings = {
    "pretrained": (False, f"{TRAIN} no --finetune"),
    "img_size": (224, f"{TRAIN} --input-size (S)"),
    "epochs": (800, f"{TRAIN} --epochs"),
    "batch_size": (2048, f"{TRAIN} 8 GPUs x 256"),
    "loss": ("bce", f"{TRAIN} --bce-loss; of S the typo --repeated-aug--bce-loss"),
    "bce.target_thresh": (0.0, "deit/engine.py: targets.gt(0.0)"),
    "bce.sum_classes": (False, "torch's BCEWithLogitsLoss, as in deit/main.py: a mean"),
    "smoothing": (0.0, f"{TRAIN} --smoothing"),
    "drop_path_rate": (0.05, f"{TRAIN} --drop-path (S)"),
    "dpr_constant": (True, "deit/models_v2.py: the rate of every block"),
    "ema_decay": (0.99996, f"{MAIN} --model-ema-decay"),
    "augment.crop_mode": ("rrc", f"{TRAIN} without --src, which is for ImageNet-21k"),
    "augment.crop_scale": ((0.08, 1.0), "deit/augment.py"),
    "augment.hflip": (0.5, "deit/augment.py: torchvision's RandomHorizontalFlip"),
    "augment.three_augment": (True, f"{TRAIN} --ThreeAugment"),
    "augment.color_jitter": (0.3, f"{TRAIN} --color-jitter"),
    "augment.random_erase_prob": (0.0, f"{TRAIN} --reprob"),
    "augment.mixup": (0.8, f"{TRAIN} --mixup"),
    "augment.cutmix": (1.0, f"{TRAIN} --cutmix"),
    "augment.mixup_prob": (1.0, f"{MAIN} --mixup-prob"),
    "augment.mixup_switch_prob": (0.5, f"{MAIN} --mixup-switch-prob"),
    "augment.mixup_group_size": (256, f"{TRAIN} --batch, of each of 8 processes (S, B)"),
    "augment.repeated_aug": (3, f"{TRAIN} --repeated-aug; 3 in deit/samplers.py"),
    "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
    "optim.opt": ("lamb", f"{TRAIN} --opt fusedlamb: Apex's, here timm's of the same formula"),
    # Apex's default is 1e-6, but timm's create_optimizer passes --opt-eps on.
    "optim.eps": (1e-8, f"{MAIN} --opt-eps"),
    "optim.lr": (4e-3, f"{TRAIN} --lr (S)"),
    "optim.lr_base_size": (0, f"{TRAIN} --unscale-lr"),
    "optim.min_lr": (1e-5, f"{MAIN} --min-lr"),
    "optim.warmup_lr": (1e-6, f"{TRAIN} --warmup-lr"),
    "optim.warmup_epochs": (5, f"{TRAIN} --warmup-epochs"),
    "optim.weight_decay": (0.05, f"{TRAIN} --weight-decay"),
    "optim.clip_grad": (0.0, "none beside LAMB's own, of norm 1 as Apex's"),
}
LR, DPR, GROUP = "optim.lr", "drop_path_rate", "augment.mixup_group_size"

DEIT3 = RecipeTable(
    name="deit3",
    purpose="ImageNet-1k: DeiT-III",
    paper="DeiT-III, arXiv 2204.07118; README_revenge.md of facebookresearch/deit",
    model="deit3_small",
    settings=SETTINGS,
    sizes=_by_size(
        TRAIN,
        Ti={"img_size": (224, LIKE_S), DPR: (0.0, "own: less than S's 0.05"), LR: (4e-3, LIKE_S)},
        S={"img_size": 224, DPR: 0.05, LR: 4e-3},
        M={
            "img_size": (224, f"{README} lists no finetuning of M, whose weights are of 224"),
            DPR: (0.1, BETWEEN),
            LR: (3e-3, "own: as B; there is no command for M"),
        },
        B={"img_size": 192, DPR: 0.2, LR: 3e-3},
        L={"img_size": 192, DPR: 0.45, LR: 3e-3, GROUP: 64},
        H={
            "img_size": (
                154,
                f"{TRAIN} --input-size 160 (H), of which its 11 patches of 14 see 154",
            ),
            DPR: 0.6,
            LR: 3e-3,
            GROUP: 64,
        },
    ),
    # As the released code has it for DeiT.
    distill=PAPER.distill,
    published=(
        *_publish(224, small=81.4, medium=83.0),
        *(
            PublishedResult(
                model=f"deit3_{name}, {pixels} pixels",
                data="ImageNet-1k",
                top1=top1,
                source=f"{README}, log of epoch 800",
            )
            for name, pixels, top1 in (
                ("base", 192, 82.8),
                ("large", 192, 84.0),
                ("huge", 160, 83.5),
            )
        ),
    ),
)

DEIT3_FINETUNE = RecipeTable(
    name="deit3-finetune",
    purpose="20 more epochs at 224",
    paper="DeiT-III, arXiv 2204.07118; README_revenge.md of facebookresearch/deit",
    model="deit3_base",
    settings={
        **PAPER.settings,
        "pretrained": (True, f"{TUNE} --finetune"),
        "img_size": (224, f"{TUNE} --input-size"),
        "epochs": (20, f"{TUNE} --epochs"),
        "batch_size": (512, f"{TUNE} 8 GPUs x 64"),
        "loss": ("ce", f"{TUNE} without --bce-loss"),
        "smoothing": (0.1, f"{TUNE} --smoothing"),
        "drop_path_rate": (0.2, f"{TUNE} --drop-path (B)"),
        "dpr_constant": (True, "deit/models_v2.py: the rate of every block"),
        "augment.rand_augment": ("rand-m9-mstd0.5-inc1", f"{TUNE} --aa"),
        "augment.random_erase_prob": (0.0, f"{TUNE} --reprob"),
        "augment.mixup": (0.8, f"{TUNE} --mixup"),
        "augment.cutmix": (1.0, f"{TUNE} --cutmix"),
        "augment.mixup_group_size": (64, f"{TUNE} --batch, of each of 8 processes"),
        "augment.repeated_aug": (1, f"{TUNE} --no-repeated-aug"),
        "optim.lr": (1e-5, f"{TUNE} --lr"),
        "optim.lr_base_size": (0, f"{TUNE} --unscale-lr"),
        "optim.min_lr": (1e-5, f"{MAIN} --min-lr: the rate is constant after the warm-up"),
        "optim.warmup_lr": (1e-6, f"{TUNE} --warmup-lr"),
        "optim.warmup_epochs": (5, f"{TUNE} --warmup-epochs"),
        "optim.weight_decay": (0.1, f"{TUNE} --weight-decay"),
    },
    sizes=_by_size(
        TUNE,
        S={DPR: (0.05, f"{TRAIN} command of S, which is not fine-tuned at 224")},
        M={DPR: (0.1, BETWEEN)},
        B={DPR: 0.2},
        L={DPR: 0.45},
        H={DPR: 0.55, GROUP: 32},
    ),
    distill=PAPER.distill,
    published=_publish(224, base=83.8, large=84.9, huge=85.2),
)

DEIT3_384 = replace(
    DEIT3_FINETUNE,
    name="deit3-384",
    purpose="20 more epochs at 384",
    model="deit3_small_384",
    settings={
        **DEIT3_FINETUNE.settings,
        "img_size": (384, f"{TUNE_384} --input-size"),
        "drop_path_rate": (0.0, f"{TUNE_384} --drop-path (S)"),
    },
    sizes=_by_size(
        TUNE_384,
        S={DPR: 0.0, GROUP: 64},
        M={DPR: (0.1, BETWEEN), GROUP: (32, "own: as B")},
        B={DPR: 0.15, GROUP: 32},
        L={DPR: 0.4, GROUP: 16},
        H={DPR: (0.4, "own: as L, for there is no command for H"), GROUP: (16, "own: as L")},
    ),
    published=_publish(384, small=83.4, base=85.0, large=85.8),
)
