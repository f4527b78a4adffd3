"""Where the values are from of settings that a recipe leaves at their default."""

from __future__ import annotations

from deitctl.config import Recipe
from deitctl.recipes.table import RecipeTable, Sourced
from deitctl.settings import list_settings

OFF = "off by default"
TORCH = "torch's default"
TIMM_BCE = "timm.loss.BinaryCrossEntropy"
TIMM_ASL = "timm.loss.AsymmetricLossMultiLabel"
DEFAULT_SOURCES = {
    "loss": "cross-entropy (DeiT §5); binary for several labels an image",
    "bce.target_thresh": TIMM_BCE,
    "bce.sum_classes": TIMM_BCE,
    "asl.gamma_neg": TIMM_ASL,
    "asl.gamma_pos": TIMM_ASL,
    "asl.clip": TIMM_ASL,
    "class_weights": OFF,
    "class_weight_power": "inverse frequency itself; unused without class_weights",
    "class_weight_beta": "arXiv 1901.05555 §4; unused without class_weights",
    "logit_adjustment": OFF,
    "smoothing_by": "torch's and timm's: all labels alike",
    "dpr_constant": "DeiT's, timm's: linear in the depth (arXiv 1603.09382 Eq. 4)",
    "pos_embed": "DeiT §3",
    "in_chans": "the model's own",
    "freeze": OFF,
    "freeze_blocks": OFF,
    "thaw_epoch": OFF,
    "fits_data": OFF,
    "head_init": "deit/models.py: a truncated normal of 0.02",
    "freeze_bn_stats": OFF,
    "sampling": "every image once in an epoch",
    "restart_epochs": OFF,
    "planned_epochs": OFF,
    "augment.crop_ratio": "torchvision's RandomResizedCrop",
    "augment.crop_mode": "timm's train_crop_mode",
    "augment.affine": OFF,
    "augment.rand_augment": OFF,
    "augment.three_augment": OFF,
    "augment.color_jitter": OFF,
    "augment.random_erase_prob": OFF,
    "augment.mixup": OFF,
    "augment.cutmix": OFF,
    "augment.mixup_prob": "timm.data.Mixup",
    "augment.mixup_switch_prob": "timm.data.Mixup",
    "augment.mixup_group_size": "deit/main.py --batch-size",
    "augment.repeated_aug": OFF,
    "augment.student_affine": OFF,
    "optim.opt": "DeiT Table 9",
    "optim.betas": "the optimizer's own",
    "optim.momentum": "timm's; of optimizers that have one",
    "optim.eps": "the optimizer's own",
    "optim.opt_args": "the optimizer's own",
    "optim.lr_base_size": "DeiT Table 9: lr x batch size / 512",
    "optim.sched": "DeiT Table 9",
    "optim.decay_epochs": "arXiv 2405.18392: a fifth of the steps; of wsd",
    "optim.decay_fn": "arXiv 2405.18392; of wsd",
    "optim.pct_start": "torch's OneCycleLR; of onecycle",
    "optim.clip_grad": "DeiT Table 9: none",
    "optim.clip_mode": "timm's",
    "optim.layer_decay": OFF,
    "progressive_resize.scale": OFF,
    "progressive_resize.fraction": OFF,
}
"""By dotted name: every setting that has a default."""


def list_sourced(table: RecipeTable) -> dict[str, Sourced]:
    """Return every setting of a recipe with its source, those of its table first."""
    own = {name: Sourced(*entry) for name, entry in table.settings.items()}
    rest = {
        s.name: Sourced(s.default, DEFAULT_SOURCES[s.name])
        for s in list_settings(Recipe)
        if s.name not in own and s.name != "name"
    }
    return own | rest
