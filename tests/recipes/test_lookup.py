"""The paper's numbers are the paper's; a file can change them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from deitctl.config import ProgressiveResize
from deitctl.errors import ConfigError
from deitctl.recipes import (
    DISTILL_DEFAULTS,
    DISTILL_REDUCTION,
    FINETUNE,
    PAPER,
    PAPER_384,
    PROBE,
    RECIPES,
    fit_to_data,
    get_recipe,
    read_file_settings,
)
from deitctl.training.schedule import compute_peak_lr


def test_paper_is_table_9():
    """DeiT Table 9, column DeiT-B; sides that the table leaves open are the released code's."""
    augment, optim = PAPER.augment, PAPER.optim
    assert (PAPER.epochs, PAPER.batch_size, PAPER.smoothing, PAPER.drop_path_rate) == (
        300,
        1024,
        0.1,
        0.1,
    )
    assert (
        optim.lr,
        optim.lr_base_size,
        optim.weight_decay,
        optim.warmup_epochs,
        optim.clip_grad,
    ) == (
        5e-4,
        512,
        0.05,
        5,
        0.0,
    )
    assert (optim.min_lr, optim.warmup_lr, PAPER.ema_decay) == (1e-5, 1e-6, 0.99996)
    assert (augment.rand_augment, augment.mixup, augment.cutmix) == (
        "rand-m9-mstd0.5-inc1",
        0.8,
        1.0,
    )
    assert (
        augment.random_erase_prob,
        augment.repeated_aug,
        augment.mixup_prob,
        augment.mixup_switch_prob,
    ) == (
        0.25,
        3,
        1.0,
        0.5,
    )
    assert not PAPER.pretrained


def test_paper_384_is_the_readmes():
    assert (PAPER_384.epochs, PAPER_384.batch_size, PAPER_384.img_size, PAPER_384.pretrained) == (
        30,
        512,
        384,
        True,
    )
    assert (PAPER_384.optim.lr, PAPER_384.optim.min_lr, PAPER_384.optim.weight_decay) == (
        5e-6,
        5e-6,
        1e-8,
    )
    # "train aug kept"; 2 nodes x 8 GPUs, --batch-size 32
    assert PAPER_384.augment == replace(PAPER.augment, mixup_group_size=32)


def test_paper_384_drops_no_branches():
    """The command's main.py of January 2021 (a8e9096) has `set_training_mode=args.finetune == ''`: eval mode."""
    assert PAPER_384.drop_path_rate == 0


def test_distillation_is_the_papers():
    assert DISTILL_DEFAULTS["hard"].alpha == 0.5  # Eq. 3
    assert DISTILL_DEFAULTS["soft"][:2] == (0.1, 3.0)  # §5.2
    assert DISTILL_REDUCTION == "batchmean"  # Eq. 2


def test_names_are_keys():
    assert all(get_recipe(name).name == name for name in RECIPES)


def test_misspelled_recipe_is_suggested():
    with pytest.raises(ConfigError, match="'paper'"):
        get_recipe("papr")
    with pytest.raises(ConfigError, match="There are: paper"):
        get_recipe("zzzzzz")


def test_a_file_changes_the_recipe_that_it_names(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "paper"\nepochs = 3\n[optim]\nlr = 1e-3\n')
    recipe = get_recipe(str(file))
    assert (recipe.name, recipe.epochs, recipe.optim.lr) == ("mine", 3, 1e-3)
    assert recipe.augment == PAPER.augment


def test_a_file_without_a_base_must_be_whole(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 3\n")
    with pytest.raises(ConfigError, match="lacks the setting"):
        get_recipe(str(file))


def test_a_file_that_names_what_is_not_there_is_reported(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "paper"\nepoch = 3\n')
    with pytest.raises(ConfigError, match="'epochs'"):
        get_recipe(str(file))
    with pytest.raises(ConfigError, match="Cannot read"):
        get_recipe(str(tmp_path / "none.toml"))


def test_a_file_that_is_its_own_base_is_reported(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f'base = "{file}"\n')
    with pytest.raises(ConfigError, match="base"):
        get_recipe(str(file))


def test_a_fast_recipe_changes_the_resolution_of_its_first_epochs_alone():
    quick = RECIPES["finetune-fast"]
    assert (
        replace(
            quick, name="finetune", progressive_resize=ProgressiveResize(scale=1.0, fraction=0.0)
        )
        == RECIPES["finetune"]
    )
    assert (quick.epochs, quick.early_epochs) == (10, 7)


def test_the_last_epoch_is_never_an_early_one():
    assert replace(RECIPES["finetune-fast"], epochs=1).early_epochs == 0
    assert (
        replace(
            RECIPES["finetune-fast"],
            epochs=4,
            progressive_resize=ProgressiveResize(scale=4 / 7, fraction=1.0),
        ).early_epochs
        == 3
    )
    assert RECIPES["finetune"].early_epochs == 0


@pytest.mark.parametrize(
    ("num_images", "batch_size"),
    [(50, 8), (499, 8), (500, 16), (1_999, 16), (2_000, 32), (9_999, 32), (10_000, 64)],
)
@pytest.mark.parametrize(("has_new_head", "lr"), [(True, 4e-4), (False, 1e-4)])
def test_fine_tuning_takes_its_batches_from_the_images_and_its_rate_from_the_head(
    num_images, batch_size, has_new_head, lr
):
    recipe = fit_to_data(FINETUNE, num_images=num_images, has_new_head=has_new_head, is_deit=True)
    assert recipe.batch_size == batch_size
    assert compute_peak_lr(recipe.optim, batch_size) == pytest.approx(lr)
    assert recipe.optim.warmup_epochs == 1  # a tenth of ten
    assert recipe.optim.layer_decay == 0.75
    convnet = fit_to_data(FINETUNE, num_images=num_images, has_new_head=has_new_head, is_deit=False)
    assert convnet == replace(recipe, optim=replace(recipe.optim, layer_decay=0.9))


def test_fine_tuning_keeps_what_the_user_or_a_file_has_chosen():
    fit = partial(fit_to_data, num_images=280, has_new_head=True, is_deit=True)
    recipe = fit(replace(FINETUNE, epochs=3), fixed={"batch_size", "optim.lr"})
    assert (recipe.batch_size, recipe.optim.lr) == (FINETUNE.batch_size, FINETUNE.optim.lr)
    assert recipe.optim.warmup_epochs == pytest.approx(0.3)
    assert fit(FINETUNE, fixed={"optim.warmup_epochs"}).optim.warmup_epochs == 1
    assert fit(PROBE) is PROBE


@pytest.mark.parametrize("batch_size", [8, 64, 500])
def test_the_rate_of_fine_tuning_is_not_scaled_by_the_batch(batch_size):
    assert compute_peak_lr(replace(FINETUNE.optim, lr=1e-4), batch_size) == 1e-4


def test_the_settings_that_a_recipe_file_names_are_listed_and_a_recipes_are_not(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "finetune"\nbatch_size = 64\n[optim]\nlr = 4e-4\n')
    assert set(read_file_settings(str(file))) == {"base", "batch_size", "optim.lr"}
    assert read_file_settings("finetune") == {}
