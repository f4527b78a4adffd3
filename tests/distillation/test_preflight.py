"""A teacher is checked once; a cache that its settings, weights or data do not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.classes import match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import Subset, select
from deitctl.device import choose_device
from deitctl.distillation import distillation_teacher as module
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distillation.precompute import CacheTeacherResult, cache_teacher
from deitctl.distillation.preflight import Preflight, compute_mean_recall, require_above_chance
from deitctl.distillation.teacher_weights import identify_teacher
from deitctl.errors import TeacherError
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.validate import validate
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import save_model, save_tensors
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import lookup
from deitctl.training.launch import run_training, train_or_find

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SILENT = SilentReporter()


def precompute(config: TrainConfig, pair: Pair, **options: object) -> CacheTeacherResult:
    return cache_teacher(config, pair, lambda run: train_or_find(run, pair, SILENT), **options)  # type: ignore[arg-type]


def open_teacher(
    config: TrainConfig, pair: Pair, reporter: SilentReporter = SILENT, *, on_views: bool = True
) -> DistillationTeacher:
    return DistillationTeacher(
        config,
        *pair,
        Preprocessing(img_size=32),
        device=choose_device("cpu", "fp32"),
        reporter=reporter,
        train_run=lambda run: train_or_find(run, pair, reporter),
    ).prepare(on_views=on_views)


def score_model(loaded: LoadedModel, dataset: ImageDataset) -> EvalResult:
    model = EvalModel(
        model=loaded.model,
        preprocessing=loaded.model_config.preprocessing,
        rows=tuple(range(10)),
        head="cls",
    )
    device = choose_device("cpu", "fp32")
    (result,) = validate([model], dataset, device=device, batch_size=64, workers=0, reporter=SILENT)
    return result


def renamed(dataset: ImageDataset, names: list[str]) -> Subset:
    return Subset(dataset, np.arange(len(dataset.labels)), dataset.labels, tuple(names))


def test_preflight_equals_evaluation(distilled: Make, little: Pair, digits_teacher: Path) -> None:
    record = open_teacher(distilled("run"), little).preflight
    loaded = load_model(str(digits_teacher), reporter=SILENT)
    score = score_model(loaded, little[1])
    assert (record.top1, record.top5, record.num_images, record.class_match) == (
        score.top1,
        score.top5,
        30,
        "same",
    )
    assert record.val_predictions == tuple(score.preds_among_classes.tolist())
    assert record.mean_recall == pytest.approx(score.top1)  # equally many images of each digit
    assert record.preprocessing.img_size == 32


def test_mean_recall_by_hand(little: Pair, digits_teacher: Path) -> None:
    """A class of three images, one right, counts as much as one of a single image, right: (1/3 + 1) / 2."""
    loaded = load_model(str(digits_teacher), reporter=SILENT)
    dataset = select(little[1], [0, 1, 2, 3])
    score = score_model(loaded, dataset)
    assert dataset.labels.tolist() == [0, 0, 0, 1]
    score = replace(score, preds_among_classes=torch.tensor([0, 5, 5, 1]))
    assert compute_mean_recall(score) == pytest.approx(100 * 2 / 3)


def test_classes_in_another_order_are_permuted(distilled: Make, little: Pair) -> None:
    """The data names its first class '9' and so on: the teacher's logits must follow the names."""
    order = [str(9 - d) for d in range(10)]
    pair = (renamed(little[0], order), renamed(little[1], order))
    record = open_teacher(distilled("run"), pair).preflight
    assert (record.class_match, record.class_rows) == ("permuted", tuple(range(9, -1, -1)))
    unpermuted = open_teacher(distilled("run"), little).preflight
    assert record.val_predictions == tuple(9 - a for a in unpermuted.val_predictions)


def test_logits_of_a_teacher_of_more_classes_are_selected(distilled: Make, little: Pair) -> None:
    keep = [np.flatnonzero(np.isin(s.labels, (3, 7))) for s in little]
    pair: Pair = tuple(  # type: ignore[assignment]
        Subset(s, k, (s.labels[k] == 7).astype(np.int64), ("3", "7"))
        for s, k in zip(little, keep, strict=True)
    )
    checked = open_teacher(distilled("run"), pair)
    assert (checked.preflight.class_match, checked.preflight.class_rows) == ("subset", (3, 7))
    assert set(checked.preflight.val_predictions) <= {0, 1}
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    logits = open_teacher(distilled("run"), little).get_network().forward_views(pixels).logits
    assert torch.equal(checked.get_network().forward_views(pixels).logits, logits[:, [3, 7]])


@pytest.mark.parametrize(
    ("classes", "num_images", "recall", "accepted"),
    [
        (10, 1000, 10.0, False),
        (10, 1000, 18.0, False),
        (10, 1000, 25.0, True),
        (2, 1000, 52.0, False),
        (2, 1000, 65.0, True),
        (2, 20, 65.0, False),  # 13 of 20 happens by chance
        (2, 10, 90.0, True),
        (2, 8, 87.5, True),
        (3, 9, 77.8, True),  # these do not
        (1000, 50_000, 0.15, False),
        (1000, 50_000, 1.0, True),
    ],
)
def test_a_teacher_must_be_clearly_above_chance(
    classes: int, num_images: int, recall: float, accepted: bool, little: Pair, distilled: Make
) -> None:
    labels = np.arange(max(classes, 1000)) % classes
    dataset = Subset(
        little[1], np.zeros(len(labels), dtype=np.int64), labels, tuple(map(str, range(classes)))
    )
    config = distilled("run", allow_weak_teacher=False).distill
    record = Preflight(
        name="t",
        top1=recall,
        top5=recall,
        mean_recall=recall,
        num_images=num_images,
        class_match="same",
        class_rows=None,
        finetuned="no",
        folder="",
        preprocessing=Preprocessing(),
        head="cls",
        weights_fingerprint="",
        val_fingerprint="",
        val_predictions=(),
    )
    if accepted:
        require_above_chance(config, record, dataset)
    else:
        with pytest.raises(TeacherError, match=r"near chance.*--allow-weak-teacher"):
            require_above_chance(config, record, dataset)
        require_above_chance(replace(config, allow_weak_teacher=True), record, dataset)


def test_always_predicting_the_largest_class_is_chance(distilled: Make, little: Pair) -> None:
    """A top-1 of 90 % on a set of which nine tenths are one class."""
    labels = np.array([0] * 90 + [1] * 10)
    dataset = Subset(little[1], np.zeros(100, dtype=np.int64), labels, ("a", "b"))
    record = Preflight(
        name="t",
        top1=90.0,
        top5=100.0,
        mean_recall=50.0,
        num_images=100,
        class_match="same",
        class_rows=None,
        finetuned="no",
        folder="",
        preprocessing=Preprocessing(),
        head="cls",
        weights_fingerprint="",
        val_fingerprint="",
        val_predictions=(),
    )
    with pytest.raises(TeacherError, match=r"mean recall 50\.0 %"):
        require_above_chance(distilled("run", allow_weak_teacher=False).distill, record, dataset)


def test_a_second_run_reads_the_preflight_and_does_not_load_the_teacher(
    distilled: Make, little: Pair
) -> None:
    precompute(distilled("a"), little)
    second = open_teacher(distilled("b"), little)
    assert not second.is_loaded
    assert second.preflight.name.endswith("teacher")


@pytest.mark.parametrize(
    "changes",
    [
        {"class_rows": ["a"] * 10},
        {"class_rows": [0]},
        {"val_predictions": [1.5] * 30},
        {"val_predictions": [99] * 30},
        {"top1": "x"},
        {"top1": 1e999},
        {"name": 3},
        {"preprocessing": []},
        {"preprocessing": {"img_size": "x"}},
        {"num_images": None},
        {"label_agreement": 101.0},
        {"num_views_sampled": None},
        {"mean_entropy": -1.0},
        {"unknown": 1},
    ],
    ids=str,
)
def test_an_invalid_record_is_replaced(
    changes: dict[str, object], distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    expected = open_teacher(config, little).preflight
    path = tmp_path / "cache" / "teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert open_teacher(config, little).preflight == expected
    assert open_teacher(config, little).is_loaded is False


def test_other_validation_images_are_checked_again(distilled: Make, little: Pair) -> None:
    precompute(distilled("a"), little)
    other = open_teacher(distilled("b"), (little[0], select(little[1], range(20))))
    assert other.is_loaded
    assert other.preflight.num_images == 20
    assert other.cache is not None
    assert other.cache.count_missing(2) == 0  # the targets are of training images


def test_a_recorded_teacher_near_chance_is_still_refused(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    names = [f"n{d}" for d in range(10)]
    folder = imagenet_teacher()
    model_config = json.loads((folder / "config.json").read_text())
    names = model_config["label_names"][:10]
    pair = (renamed(little[0], names), renamed(little[1], names))
    precompute(distilled("a", teacher=str(folder), allow_weak_teacher=True), pair)
    with pytest.raises(TeacherError, match="near chance"):
        open_teacher(distilled("b", teacher=str(folder), allow_weak_teacher=False), pair)


def _other_weights(teacher: str) -> None:
    loaded = load_model(teacher, reporter=SILENT)
    state = loaded.model.state_dict()
    first = next(iter(state))
    state[first] = state[first] + 1
    save_model(Path(teacher), state, loaded.model_config, describe_layers(loaded.model))


def _change(config: TrainConfig, **changes: object) -> TrainConfig:
    assert config.distill is not None
    return replace(config, distill=replace(config.distill, **changes))  # type: ignore[arg-type]


def _augment(config: TrainConfig, **changes: object) -> TrainConfig:
    augment = replace(config.recipe.augment, **changes)  # type: ignore[arg-type]
    return replace(config, recipe=replace(config.recipe, augment=augment))


STALE: dict[str, tuple[Callable[[TrainConfig], TrainConfig], str]] = {
    "teacher_img_size": (
        lambda c: _change(c, teacher_img_size=64),
        r"teacher_img_size was not set, is 64",
    ),
    "finetune_teacher": (
        lambda c: _change(c, finetune_teacher="head"),
        r'finetune_teacher was "auto", is "head"',
    ),
    "view_seed": (lambda c: _change(c, view_seed=1), "view_seed was 0, is 1"),
    "mode": (lambda c: _change(c, mode="soft"), 'mode was "hard", is "soft"'),
    "crop": (
        lambda c: _augment(c, crop_scale=(0.5, 1.0)),
        r"view_augmentation: crop_scale was \[1.0, 1.0\]",
    ),
    "flip": (lambda c: _augment(c, hflip=0.5), "view_augmentation: hflip was 0.0, is 0.5"),
    "affine": (lambda c: _augment(c, affine=(1.0, 0.0, 0.0)), "view_augmentation: affine was"),
    "colors": (lambda c: _augment(c, color_jitter=0.4), r"color_jitter was 0.0, is 0.4"),
    "RandAugment": (lambda c: _augment(c, rand_augment=""), "rand_augment was"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_cache_is_refused_with_the_reason(
    what: str, distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    change, reason = STALE[what]
    with pytest.raises(TeacherError, match=rf"stale.*{reason}"):
        open_teacher(change(config), little)
    assert open_teacher(config, little).cache is not None  # it still serves its own settings


@pytest.mark.parametrize("setting", ["tau", "logits_topk"])
def test_a_stale_soft_cache_is_refused_with_the_reason(
    setting: str, distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run", mode="soft"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    with pytest.raises(TeacherError, match=f"{setting} was"):
        open_teacher(_change(config, **{setting: 2}), little)


def test_targets_of_digits_are_stale_when_the_recipe_from_scratch_changes(
    distilled: Make, little: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    monkeypatch.setattr(lookup, "DIGITS_CONVNET", replace(lookup.DIGITS_CONVNET, epochs=99))
    with pytest.raises(TeacherError, match="stale: finetune_recipes was"):
        open_teacher(config, little)


def test_targets_of_other_weights_are_refused(
    distilled: Make, little: Pair, tmp_path: Path, digits_teacher: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    _other_weights(str(digits_teacher))
    with pytest.raises(TeacherError, match="stale: teacher was"):
        open_teacher(config, little)


def test_targets_of_other_images_are_refused(distilled: Make, little: Pair, tmp_path: Path) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    order = np.arange(len(little[0].labels))
    order[:2] = 1, 0  # the same images in another order
    with pytest.raises(TeacherError, match="stale: train_images was"):
        open_teacher(config, (select(little[0], order), little[1]))


def test_a_named_teacher_is_identified_by_its_weights(
    distilled: Make,
    little: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deit: Callable[..., torch.nn.Module],
) -> None:
    """`$DEITCTL_WEIGHTS` points somewhere else, and the same name is another teacher."""
    config = distilled(
        "run", teacher="deit_tiny", finetune_teacher="none", teacher_cache=str(tmp_path / "cache")
    )
    names = load_imagenet_classes()[0][:10]
    pair = (renamed(little[0], list(names)), renamed(little[1], list(names)))
    for seed in (0, 1):
        folder = tmp_path / f"weights{seed}"
        save_tensors(
            folder / "deit_tiny.safetensors",
            deit("deit_tiny", classes=1000, img_size=32, seed=seed).state_dict(),
        )
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path / "weights0"))
    assert precompute(config, pair).num_computed == 120
    assert not open_teacher(config, pair).is_loaded
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path / "weights1"))
    with pytest.raises(TeacherError, match="stale: teacher was"):
        open_teacher(config, pair)


def test_targets_in_another_precision_are_refused(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    with pytest.raises(TeacherError, match='precision was "fp32", is "bf16"'):
        precompute(replace(config, precision="bf16"), little)


def test_targets_of_another_version_of_the_views_are_refused(
    distilled: Make, little: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "cache"))
    precompute(config, little)
    now = module.VIEWS_VERSION
    monkeypatch.setattr(module, "VIEWS_VERSION", now + 1)
    with pytest.raises(TeacherError, match=f"views_version was {now}, is {now + 1}"):
        open_teacher(config, little)


def test_settings_outside_of_views_leave_the_cache_valid(distilled: Make, little: Pair) -> None:
    config = distilled("run")
    precompute(config, little)
    recipe = config.recipe
    augment = replace(
        recipe.augment,
        mixup=0.0,
        cutmix=0.0,
        random_erase_prob=0.0,
        student_affine=(1.0, 0.0, 0.0),
        repeated_aug=1,
    )
    other = replace(
        config, seed=7, recipe=replace(recipe, epochs=9, batch_size=8, img_size=48, augment=augment)
    )
    assert not open_teacher(other, little).is_loaded


def test_published_teachers_are_identified_by_name_and_files_by_content(
    digits_teacher: Path, distilled: Make
) -> None:
    published = replace(distilled("run").distill or DistillConfig, teacher="regnety_160")  # type: ignore[type-var]
    assert identify_teacher(published, SILENT) == "regnety_160.deit_in1k without weights"
    by_folder = distilled("run").distill
    assert by_folder is not None
    copy = digits_teacher.parent / "elsewhere"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((digits_teacher / name).read_bytes())
    moved = replace(by_folder, teacher=str(copy))
    assert identify_teacher(by_folder, SILENT) == identify_teacher(moved, SILENT)


def test_the_digits_teacher_has_the_same_classes(digits_teacher: Path) -> None:
    model_config = load_model(str(digits_teacher), reporter=SILENT).model_config
    match = match_classes(model_config, [str(d) for d in range(10)])
    assert match is not None
    assert match.kind == "same"


def test_a_run_records_its_teacher(distilled: Make, little: Pair) -> None:
    config = distilled("run")
    run = run_training(
        replace(config, recipe=replace(config.recipe, epochs=1)), datasets=little
    ).run
    record = json.loads((run / "teacher.json").read_text())
    assert {
        "name",
        "top1",
        "top5",
        "class_match",
        "finetuned",
        "weights_fingerprint",
        "preprocessing",
    } <= record.keys()
    epoch = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert set(epoch["teacher_agreement"]) == {"cls", "dist", "avg-logits", "avg-probs"}
    assert 0 <= epoch["head_agreement"] <= 100


def test_a_teachers_batch_norms_are_fused(distilled: Make, little: Pair) -> None:
    modules = open_teacher(distilled("run"), little).get_network().modules()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules)
