"""Recipes of Google's big_vision (github.com/google-research/big_vision): plain ViT baselines, patient distillation.

Its weight decay is not multiplied by the learning rate, and AdamW's here is; so the decay here is theirs over the rate.
"""

from __future__ import annotations

from deitctl.recipes.paper import OWN_AFFINE
from deitctl.recipes.table import PublishedResult, RecipeTable

PLAIN = "big_vision/configs/vit_s16_i1k.py"
DISTILL = "big_vision/configs/proj/distill/bit_i1k.py"
OPS = "big_vision/pp/ops_image.py: inception_crop"
BETTER = "arXiv 2205.01580"
PATIENT_PAPER = "arXiv 2106.05237"
RATE = f"{PLAIN} lr, of a ViT-S/16 from scratch; the paper's BiT ResNets have 0.03 ({DISTILL})"

PLAIN_90 = RecipeTable(
    name="plain-90",
    purpose="ImageNet-1k: a plain ViT",
    paper=f"Better plain ViT baselines for ImageNet-1k, {BETTER}; {PLAIN}",
    model="vit_small_patch16_224",
    step_flops=27_328_555_008,
    model_args={
        "global_pool": ("avg", f"{PLAIN} pool_type='gap'"),
        "class_token": (False, f"{PLAIN} pool_type='gap'"),
        "fc_norm": (False, "big_vision/models/vit.py: the last norm is before the pooling"),
        "weight_init": ("jax", "big_vision/models/vit.py, as timm restates it: the head is 0"),
    },
    settings={
        "pretrained": (False, PLAIN),
        "img_size": (224, f"{PLAIN} inception_crop(224)"),
        "epochs": (90, f"{PLAIN} total_epochs"),
        "batch_size": (1024, f"{PLAIN} input.batch_size"),
        "loss": ("ce", f"{PLAIN} loss='softmax_xent'"),
        "smoothing": (0.0, f"{PLAIN}: none"),
        "drop_path_rate": (0.0, f"{PLAIN}: none"),
        "ema_decay": (0.0, f"{PLAIN}: none"),
        "pos_embed": ("sincos2d", f"{PLAIN} posemb='sincos2d'"),
        "augment.crop_scale": ((0.05, 1.0), f"{OPS} area_min=5"),
        "augment.crop_ratio": ((0.75, 1.33), f"{OPS} ratio_min, ratio_max"),
        "augment.hflip": (0.5, f"{PLAIN} flip_lr"),
        "augment.rand_augment": (
            "rand-m10-n2-p1.0",
            f"{PLAIN} randaug(2,10); big_vision/pp/archive/autoaugment.py applies both operations",
        ),
        "augment.mixup": (0.2, f"{PLAIN} mixup.p"),
        "augment.mixup_prob": (1.0, "big_vision/utils.py: every batch is mixed"),
        "augment.mixup_group_size": (1024, "big_vision/utils.py get_mixup: one draw a step"),
        "augment.repeated_aug": (1, f"{PLAIN}: none"),
        "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
        "optim.lr": (1e-3, f"{PLAIN} lr"),
        "optim.lr_base_size": (0, f"{PLAIN}: not scaled"),
        "optim.min_lr": (0.0, "big_vision/utils.py: the cosine ends at 0"),
        "optim.warmup_lr": (0.0, "big_vision/utils.py: the warm-up begins at 0"),
        "optim.warmup_epochs": (8, f"{PLAIN} warmup_steps=10_000 of 1,252 an epoch"),
        "optim.weight_decay": (0.1, f"{PLAIN} wd=0.0001 over lr=0.001"),
        "optim.clip_grad": (1.0, f"{PLAIN} grad_clip_norm"),
    },
    published=(
        PublishedResult(
            model="vit_small_patch16_224",
            data="ImageNet-1k",
            top1=76.5,
            source=f"{PLAIN}; {BETTER}",
        ),
    ),
)

PATIENT = RecipeTable(
    name="patient",
    purpose="a teacher's function alone",
    paper=f"Knowledge distillation: A good teacher is patient and consistent, {PATIENT_PAPER}; {DISTILL}",
    model="deit_small",
    settings={
        "pretrained": (False, f"{PATIENT_PAPER} §3: students start from random weights"),
        "img_size": (224, f"{DISTILL} inception_crop(224)"),
        "epochs": (1200, f"{DISTILL} total_epochs, 'a good middle-ground'"),
        "batch_size": (1024, f"{PLAIN} input.batch_size, which goes with its rate"),
        "loss": ("ce", "unused: alpha is 1"),
        "smoothing": (0.0, f"{PATIENT_PAPER} §3: no labels"),
        "drop_path_rate": (0.0, f"{DISTILL}: none"),
        "ema_decay": (0.0, f"{DISTILL}: none"),
        "augment.crop_scale": ((0.05, 1.0), f"{OPS} area_min=5"),
        "augment.crop_ratio": ((0.75, 1.33), f"{OPS} ratio_min, ratio_max"),
        "augment.hflip": (0.5, f"{DISTILL} flip_lr"),
        "augment.mixup": (1.0, f"{DISTILL} mixup.p"),
        "augment.mixup_prob": (1.0, "big_vision/utils.py: every batch is mixed"),
        "augment.mixup_group_size": (1024, "big_vision/utils.py get_mixup: one draw a step"),
        "augment.repeated_aug": (1, f"{DISTILL}: none"),
        "augment.student_affine": ((5.0, 0.1, 0.05), OWN_AFFINE),
        "optim.lr": (1e-3, RATE),
        "optim.lr_base_size": (0, f"{DISTILL}: not scaled"),
        "optim.min_lr": (0.0, "big_vision/utils.py: the cosine ends at 0"),
        "optim.warmup_lr": (0.0, "big_vision/utils.py: the warm-up begins at 0"),
        "optim.warmup_epochs": (8, f"{PLAIN} warmup_steps=10_000, which goes with its rate"),
        "optim.weight_decay": (0.1, f"{PLAIN} wd=0.0001 over lr=0.001"),
        "optim.clip_grad": (1.0, f"{DISTILL} grad_clip_norm"),
    },
    distill={
        "mode": ("soft", f"{DISTILL} distance='kl'"),
        "alpha": (1.0, f"{PATIENT_PAPER} §3: the teacher's output alone, no labels"),
        "tau": (1.0, f"{DISTILL} distance_kw t=1.0"),
        "dist_token": (False, f"{PATIENT_PAPER}: one head, which the teacher teaches"),
        "teacher_input": ("mixed", f"{PATIENT_PAPER} §3: one mixed view for both"),
    },
    published=(
        PublishedResult(
            model="resnetv2_50x1_bit",
            data="ImageNet-1k",
            top1=82.8,
            source="big_vision/configs/proj/distill/README.md, teacher BiT R152x2, the paper's longest "
            "schedule; of a DeiT none",
        ),
    ),
)
