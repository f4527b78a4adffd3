"""The recipes of DeiT (arXiv 2012.12877) and of its released code (github.com/facebookresearch/deit)."""

from __future__ import annotations

from dataclasses import replace

from deitctl.recipes.table import PublishedResult, RecipeTable, Settings

TABLE_9 = "DeiT Table 9"
MAIN = "deit/main.py"
README = "deit/README_deit.md, command of deit_base_patch16_384"
OWN_AFFINE = "own: moves repeated views (--views); the paper has none"

PAPER = RecipeTable(
    name="paper",
    purpose="ImageNet-1k: DeiT",
    paper="DeiT, arXiv 2012.12877, Table 9",
    settings={
        "pretrained": (False, "DeiT §6: trained on ImageNet-1k alone"),
        "img_size": (224, "DeiT §6"),
        "epochs": (300, TABLE_9),
        "batch_size": (1024, TABLE_9),
        "smoothing": (0.1, TABLE_9),
        "drop_path_rate": (0.1, f"{TABLE_9} (stoch. depth)"),
        "ema_decay": (0.99996, f"{MAIN} --model-ema-decay"),
        "augment.crop_scale": (
            (0.08, 1.0),
            "torchvision's RandomResizedCrop, as in deit/datasets.py",
        ),
        "augment.hflip": (0.5, "timm's default, as in deit/datasets.py"),
        "augment.rand_augment": (
            "rand-m9-mstd0.5-inc1",
            f"{TABLE_9} (9/0.5), spelled as in {MAIN} --aa",
        ),
        "augment.color_jitter": (0.3, f"{MAIN} --color-jitter; unused with RandAugment"),
        "augment.random_erase_prob": (0.25, TABLE_9),
        "augment.mixup": (0.8, TABLE_9),
        "augment.cutmix": (1.0, TABLE_9),
        "augment.mixup_prob": (1.0, f"{MAIN} --mixup-prob; {TABLE_9}"),
        "augment.mixup_switch_prob": (0.5, f"{MAIN} --mixup-switch-prob"),
        "augment.mixup_group_size": (64, f"{MAIN} --batch-size, of each of 16 processes"),
        "augment.repeated_aug": (3, f"{TABLE_9} (repeated aug), 3 in deit/samplers.py"),
        "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
        "optim.lr": (5e-4, f"{TABLE_9}: 0.0005 x batch size / 512"),
        "optim.lr_base_size": (512, f"{TABLE_9}: 0.0005 x batch size / 512"),
        "optim.min_lr": (1e-5, f"{MAIN} --min-lr"),
        "optim.warmup_lr": (1e-6, f"{MAIN} --warmup-lr"),
        "optim.warmup_epochs": (5, TABLE_9),
        "optim.weight_decay": (0.05, TABLE_9),
    },
    # The released code's teacher sees mixed images (losses.py), unless --views is passed.
    distill={"teacher_input": ("mixed", "deit/losses.py: the teacher is given the mixed images")},
    published=tuple(
        PublishedResult(model=model, data="ImageNet-1k", top1=top1, source="deit/README_deit.md")
        for model, top1 in (
            ("deit_tiny", 72.2),
            ("deit_small", 79.9),
            ("deit_base", 81.8),
            ("deit_tiny_distilled", 74.5),
            ("deit_small_distilled", 81.2),
            ("deit_base_distilled", 83.4),
        )
    ),
)

# From weights trained at 224: deit/README_deit.md, the command for deit_base_patch16_384. When that was published
# (commits 277659c and a8e9096 of January 2021) main.py kept the network in eval mode wherever --finetune was given, so
# no branch was dropped. The code of today drops them in the same command: --train-mode is its default since d64e7e9 of
# July 2022, for DeiT-III; its comment still says "eval mode for deit finetuning", and so does an author (issue 177).
PAPER_384 = replace(
    PAPER,
    name="paper-384",
    purpose="30 more epochs at 384",
    paper=README,
    model="deit_base_384",
    settings={
        **PAPER.settings,
        "pretrained": (True, f"{README} --finetune"),
        "img_size": (384, f"{README} --input-size"),
        "epochs": (30, f"{README} --epochs"),
        "batch_size": (512, f"{README}: 2 nodes x 8 GPUs x 32"),
        "drop_path_rate": (
            0.0,
            "deit/main.py of a8e9096: eval mode under --finetune, which drops no branch",
        ),
        "augment.mixup_group_size": (32, f"{README} --batch-size, of each process"),
        # The rate is constant: its lowest is its peak.
        "optim.lr": (5e-6, f"{README} --lr"),
        "optim.min_lr": (5e-6, f"{README} --min-lr"),
        "optim.weight_decay": (1e-8, f"{README} --weight-decay"),
    },
    published=(
        PublishedResult(
            model="deit_base_384", data="ImageNet-1k", top1=82.9, source="deit/README_deit.md"
        ),
    ),
)

FAST_RESIZE: Settings = {
    "progressive_resize.scale": (
        4 / 7,
        "own: 128 of 224 pixels; smaller first as FixRes (arXiv 1906.06423) and DeiT-III §4",
    ),
    "progressive_resize.fraction": (0.7, "own: docs/results/recipes.md"),
}


def make_fast(table: RecipeTable) -> RecipeTable:
    """Return a recipe whose first epochs see smaller images and whose last ones see the full ones.

    FixRes (arXiv 1906.06423), as DeiT-III trains (arXiv 2204.07118 §4: lower resolution first, then 20 epochs at 224);
    here in one run, whose position embeddings are resized on the way. The fraction is ours, see docs/recipes.md.
    """
    return replace(
        table,
        name=f"{table.name}-fast",
        purpose=f"{table.name}, smaller images first",
        settings={**table.settings, **FAST_RESIZE},
        published=(),
    )
