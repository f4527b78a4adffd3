"""The numbers of big_vision's recipes are those of its configurations."""

from __future__ import annotations

import pytest

from deitctl.recipes import TABLES, get_recipe


def test_plain_90_is_vit_s16_i1k():
    """big_vision/configs/vit_s16_i1k.py: total_epochs 90, batch_size 1024, inception_crop(224), flip_lr, randaug(2,10),
    mixup p 0.2 (one draw a step), lr 0.001, wd 0.0001, grad_clip_norm 1, warmup_steps 10_000, pool_type gap,
    posemb sincos2d."""
    recipe = get_recipe("plain-90")
    optim, augment = recipe.optim, recipe.augment
    assert (recipe.epochs, recipe.batch_size, recipe.img_size) == (90, 1024, 224)
    assert (recipe.loss, recipe.smoothing, recipe.drop_path_rate, recipe.ema_decay) == (
        "ce",
        0,
        0,
        0,
    )
    assert recipe.pos_embed == "sincos2d"
    assert (augment.crop_scale, augment.crop_ratio) == ((0.05, 1.0), (0.75, 1.33))
    assert (augment.hflip, augment.rand_augment) == (0.5, "rand-m10-n2-p1.0")
    assert (augment.mixup, augment.cutmix, augment.mixup_group_size) == (0.2, 0, 1024)
    assert (optim.opt, optim.lr, optim.lr_base_size, optim.clip_grad) == ("adamw", 1e-3, 0, 1)
    # theirs is not multiplied by the rate, AdamW's is
    assert optim.weight_decay * optim.lr == pytest.approx(1e-4)
    assert (optim.warmup_lr, optim.min_lr) == (0, 0)
    steps_an_epoch = 1252  # of 1,022 to 1,024 images
    assert optim.warmup_epochs * steps_an_epoch == pytest.approx(10_000, rel=0.01)
    shape = {name: value for name, (value, _) in TABLES["plain-90"].model_args.items()}
    assert (shape["global_pool"], shape["class_token"], shape["fc_norm"]) == ("avg", False, False)


def test_patient_is_bit_i1k_with_the_rate_of_a_vit():
    """big_vision/configs/proj/distill/bit_i1k.py: total_epochs 1200, mixup p 1, distance kl at t 1, flip_lr,
    inception_crop(224), grad_clip_norm 1; lr, wd, batch and warm-up of vit_s16_i1k.py, for its own are a ResNet's."""
    recipe, plain, table = get_recipe("patient"), get_recipe("plain-90"), TABLES["patient"]
    augment = recipe.augment
    assert (recipe.epochs, recipe.img_size, recipe.smoothing) == (1200, 224, 0)
    assert (augment.mixup, augment.cutmix, augment.mixup_prob, augment.rand_augment) == (
        1,
        0,
        1,
        "",
    )
    assert augment.mixup_group_size == recipe.batch_size == plain.batch_size
    assert (augment.crop_scale, augment.hflip) == ((0.05, 1.0), 0.5)
    assert recipe.optim == plain.optim
    distill = {name: value for name, (value, _) in table.distill.items()}
    assert (distill["mode"], distill["alpha"], distill["tau"]) == ("soft", 1, 1)
    assert (distill["dist_token"], distill["teacher_input"]) == (False, "mixed")
