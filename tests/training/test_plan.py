"""A plan says what the run will do: its rates, its batches, its resolutions; and refuses what the run would refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import ProgressiveResize, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import select
from deitctl.distillation.resolve import plan_finetuning
from deitctl.errors import ConfigError, TeacherError
from deitctl.models import timm_models, weights
from deitctl.training import plan
from deitctl.training.launch import run_training
from deitctl.training.plan import plan_training

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has all published weights, of which none may be downloaded."""
    for module in (weights, timm_models):
        monkeypatch.setattr(module, "require_hub", lambda: None)
        monkeypatch.setattr(module, "require_published", lambda *_: None)
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("a dry run downloads"))


def test_the_rate_is_that_of_the_batch_which_the_data_fills(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, reporter
) -> None:
    """The run's largest rate, as its log has it, is the plan's; both say that a batch is all images."""
    config = little_config("x")
    optim = replace(config.recipe.optim, warmup_epochs=0)
    config = replace(config, recipe=replace(config.recipe, batch_size=1000, epochs=4, optim=optim))
    monkeypatch.setattr(plan, "open_for_training", lambda *_, **__: little)
    planned = plan_training(config)
    count = len(little[0].labels)
    assert planned.batch_size == count
    assert planned.peak_lr == config.recipe.optim.lr * count / config.recipe.optim.lr_base_size
    run = run_training(config, datasets=little, reporter=reporter).run
    log = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert max(r["lr"] for r in log if r["kind"] == "step") == pytest.approx(planned.peak_lr)
    assert (
        f"A batch is all {count} images of an epoch, which are fewer than 1000." in reporter.notes
    )


def test_the_plans_batch_is_the_largest_that_an_epoch_is_divided_into(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 images in batches of at most 40 are two of 30, and 30 is what the rate is scaled by."""
    config = little_config("x")
    config = replace(config, recipe=replace(config.recipe, batch_size=40))
    monkeypatch.setattr(plan, "open_for_training", lambda *_, **__: little)
    planned = plan_training(config)
    assert (planned.steps_per_epoch, planned.num_steps, planned.batch_size) == (2, 6, 30)
    optim = config.recipe.optim
    assert planned.peak_lr == optim.lr * 30 / optim.lr_base_size


def test_early_epochs_are_planned_at_their_size_and_warned_of(
    little_config: Make, reporter
) -> None:
    config = little_config("x")
    config = replace(
        config,
        recipe=replace(
            config.recipe, epochs=3, progressive_resize=ProgressiveResize(scale=0.5, fraction=0.7)
        ),
    )
    planned = plan_training(config, reporter=reporter)
    assert (planned.early_epochs, planned.early_img_size_px) == (2, 16)
    assert ["so few patches" in warning for warning in reporter.warnings] == [True]
    planned = plan_training(little_config("y"))
    assert (planned.early_epochs, planned.early_img_size_px) == (0, None)


def test_a_model_of_one_size_is_refused_before_it_is_run(little_config: Make) -> None:
    config = replace(little_config("x", model_args={}), model="vit_tiny_patch16_224")
    recipe = replace(
        config.recipe,
        img_size=224,
        epochs=3,
        progressive_resize=ProgressiveResize(scale=0.5, fraction=0.7),
    )
    with pytest.raises(ConfigError, match="one size only"):
        plan_training(replace(config, recipe=recipe))


@pytest.mark.parametrize(
    ("model", "dist_token", "published"),
    [
        ("deit_tiny", True, "deit_tiny_distilled_patch16_224.fb_in1k"),
        ("deit_tiny_distilled", False, "deit_tiny_patch16_224.fb_in1k"),
        ("deit3_small_patch16_224", True, "deit3_small_patch16_224.fb_in1k"),
        ("test_resnet.r160_in1k", True, "test_resnet.r160_in1k"),
    ],
)
def test_the_published_weights_that_a_student_starts_from_are_named(
    model: str, dist_token: bool, published: str, distilled: Make, hub: None
) -> None:
    config = distilled("x", model_args={}, dist_token=dist_token)
    recipe = replace(config.recipe, pretrained=True)
    planned = plan_training(replace(config, model=model, model_args={}, recipe=recipe))
    assert (planned.initial_weights, planned.is_local) == (published, False)
    assert any("the head is new: 10 classes" in change for change in planned.weight_changes)


def test_one_epoch_has_no_early_one_and_reports_it(
    little_config: Make, little: Pair, reporter
) -> None:
    config = little_config("x")
    config = replace(
        config,
        recipe=replace(
            config.recipe, epochs=1, progressive_resize=ProgressiveResize(scale=0.5, fraction=0.7)
        ),
    )
    run_training(config, datasets=(select(little[0], range(16)), little[1]), reporter=reporter)
    assert "No early epochs of smaller images: the run is too short." in reporter.notes


@pytest.mark.parametrize(
    ("changes", "num_views", "num_computed", "cached"),
    [
        ({"views": 2}, 2, 2, True),
        ({"views": 2, "teacher_cache": "off"}, 2, 3, True),
        ({"views": 0}, 3, 3, True),
        ({"views": 0, "teacher_input": "mixed"}, 0, 3, False),
    ],
)
def test_a_teachers_forward_passes_and_cache_are_planned(
    distilled: Make, changes: dict, num_views: int, num_computed: int, cached: bool
) -> None:
    """Without repeated augmentation each of 3 epochs has a view of every image."""
    config = distilled("x", mode="soft", alpha=0.1, tau=3.0, **changes)
    augment = replace(config.recipe.augment, repeated_aug=1)
    config = replace(config, recipe=replace(config.recipe, epochs=3, batch_size=2, augment=augment))
    planned = plan_training(config)
    teacher, num_images = planned.teacher, planned.num_train_images
    assert teacher is not None
    assert teacher.effective_weight == pytest.approx(0.1 * 3.0**2)
    assert (teacher.num_views, teacher.num_computed // num_images) == (num_views, num_computed)
    assert teacher.num_computed_without_cache == 3 * num_images
    assert (teacher.cache_mib is not None) == cached


@pytest.mark.parametrize(
    ("teacher", "changes", "finetuned"),
    [
        ("regnety_160", {}, "head"),  # 10 images a class; nothing is fetched
        ("regnety_160", {"finetune_teacher": "full"}, "full"),
        ("deit_small", {}, "head"),
        ("regnety_160", {"finetune_teacher": "scratch"}, "scratch"),
        ("", {}, "no"),  # a teacher of these digits
    ],
)
def test_the_training_of_a_teacher_is_planned_without_its_weights(
    teacher: str, changes: dict, finetuned: str, distilled: Make, little: Pair, hub: None, reporter
) -> None:
    config = distilled("x", **({"teacher": teacher} if teacher else {}), **changes)
    part, recipe = plan_finetuning(config, little[0], reporter)
    assert part == finetuned
    planned = plan_training(config, datasets=little).teacher
    assert planned is not None
    epochs = recipe.epochs if recipe else 0
    assert (epochs > 0) == (finetuned in ("full", "scratch"))  # a head is fitted in closed form
    assert (planned.finetuned, planned.finetune_epochs) == (finetuned, epochs)
    assert planned.finetune_images == epochs * len(little[0].labels)
    assert planned.tau is None  # hard


def test_a_teacher_that_must_not_be_trained_is_refused_in_the_plan(
    distilled: Make, little: Pair, hub: None
) -> None:
    config = distilled("x", teacher="regnety_160", finetune_teacher="none")
    with pytest.raises(TeacherError, match="lacks some of the data's 10 classes"):
        plan_training(config, datasets=little)
