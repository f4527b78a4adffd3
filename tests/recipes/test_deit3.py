"""The numbers of DeiT-III's recipes are those of the commands in deit/README_revenge.md, word for word."""

from __future__ import annotations

import re

import pytest

from deitctl.recipes import TABLES, get_recipe
from deitctl.recipes.lookup import fit_to_size

WIDTHS = {"S": 384, "B": 768, "L": 1024, "H": 1280}
# Of each command what differs; the rest is the same in all of a kind.
TRAIN = {
    "S": "--batch 256 --lr 4e-3 --input-size 224 --nodes 1 --drop-path 0.05",
    "B": "--batch 256 --lr 3e-3 --input-size 192 --nodes 1 --drop-path 0.2",
    "L": "--batch 64 --lr 3e-3 --input-size 192 --nodes 4 --drop-path 0.45",
    "H": "--batch 64 --lr 3e-3 --input-size 160 --nodes 4 --drop-path 0.6",
}
TUNE = {
    "B": "--batch 64 --lr 1e-5 --input-size 224 --nodes 1 --drop-path 0.2",
    "L": "--batch 64 --lr 1e-5 --input-size 224 --nodes 1 --drop-path 0.45",
    "H": "--batch 32 --lr 1e-5 --input-size 224 --nodes 2 --drop-path 0.55",
}
TUNE_384 = {
    "S": "--batch 64 --lr 1e-5 --input-size 384 --nodes 1 --drop-path 0.0",
    "B": "--batch 32 --lr 1e-5 --input-size 384 --nodes 2 --drop-path 0.15",
    "L": "--batch 16 --lr 1e-5 --input-size 384 --nodes 4 --drop-path 0.4",
}
COMMANDS = [
    (name, size, command)
    for name, commands in (("deit3", TRAIN), ("deit3-finetune", TUNE), ("deit3-384", TUNE_384))
    for size, command in commands.items()
]


@pytest.mark.parametrize(("name", "size", "command"), COMMANDS)
def test_a_size_has_the_numbers_of_its_command(name: str, size: str, command: str):
    words = {k: float(v) for k, v in re.findall(r"--([\w-]+) (\S+)", command)}
    recipe = fit_to_size(get_recipe(name), TABLES[name], WIDTHS[size], ())
    assert recipe.drop_path_rate == words["drop-path"]
    assert recipe.optim.lr == words["lr"]
    assert recipe.augment.mixup_group_size == words["batch"]
    assert recipe.batch_size == words["batch"] * 8 * words["nodes"]  # --ngpus 8
    # 160 pixels are 11 patches of 14, and 6 pixels that no patch sees
    assert recipe.img_size == (words["input-size"] if words["input-size"] != 160 else 11 * 14)


def test_training_is_the_commands():
    """--epochs 800 --weight-decay 0.05 --sched cosine --reprob 0.0 --smoothing 0.0 --warmup-epochs 5 --opt fusedlamb
    --warmup-lr 1e-6 --mixup .8 --cutmix 1.0 --unscale-lr --repeated-aug --bce-loss --color-jitter 0.3 --ThreeAugment;
    of main.py --min-lr 1e-5, --opt-eps 1e-8, --mixup-prob 1, --mixup-switch-prob 0.5, --model-ema-decay 0.99996."""
    recipe = get_recipe("deit3")
    optim, augment = recipe.optim, recipe.augment
    assert (recipe.epochs, recipe.loss, recipe.smoothing, recipe.ema_decay) == (
        800,
        "bce",
        0,
        0.99996,
    )
    assert (recipe.bce.target_thresh, recipe.bce.sum_classes, recipe.dpr_constant) == (
        0,
        False,
        True,
    )
    assert (optim.opt, optim.sched, optim.weight_decay, optim.lr_base_size) == (
        "lamb",
        "cosine",
        0.05,
        0,
    )
    assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr, optim.eps) == (5, 1e-6, 1e-5, 1e-8)
    assert (augment.three_augment, augment.color_jitter, augment.rand_augment) == (True, 0.3, "")
    assert (augment.crop_mode, augment.crop_scale, augment.hflip) == ("rrc", (0.08, 1.0), 0.5)
    assert (augment.mixup, augment.cutmix, augment.mixup_prob) == (0.8, 1, 1)
    assert (augment.mixup_switch_prob, augment.random_erase_prob, augment.repeated_aug) == (
        0.5,
        0,
        3,
    )


@pytest.mark.parametrize("name", ["deit3-finetune", "deit3-384"])
def test_fine_tuning_is_the_commands(name: str):
    """--epochs 20 --weight-decay 0.1 --reprob 0.0 --smoothing 0.1 --warmup-epochs 5 --opt adamw --warmup-lr 1e-6
    --mixup .8 --cutmix 1.0 --unscale-lr --aa rand-m9-mstd0.5-inc1 --no-repeated-aug --finetune."""
    recipe = get_recipe(name)
    optim, augment = recipe.optim, recipe.augment
    assert (recipe.epochs, recipe.loss, recipe.smoothing, recipe.pretrained) == (
        20,
        "ce",
        0.1,
        True,
    )
    assert (optim.opt, optim.weight_decay, optim.lr_base_size, optim.min_lr) == (
        "adamw",
        0.1,
        0,
        1e-5,
    )
    assert (optim.warmup_epochs, optim.warmup_lr, recipe.dpr_constant) == (5, 1e-6, True)
    assert (augment.rand_augment, augment.three_augment) == ("rand-m9-mstd0.5-inc1", False)
    assert (augment.mixup, augment.cutmix, augment.random_erase_prob, augment.repeated_aug) == (
        0.8,
        1,
        0,
        1,
    )


def test_a_width_between_two_sizes_has_the_larger_ones_settings():
    table = TABLES["deit3"]
    sizes = [table.find_size(width) for width in (64, 192, 193, 500, 512, 1024, 5000)]
    assert [size and size.size for size in sizes] == ["Ti", "Ti", "S", "M", "M", "L", "H"]
    assert TABLES["paper"].find_size(384) is None


def test_what_a_file_has_chosen_is_not_a_size_s():
    recipe = fit_to_size(get_recipe("deit3"), TABLES["deit3"], 768, {"optim.lr"})
    assert (recipe.optim.lr, recipe.img_size) == (4e-3, 192)
