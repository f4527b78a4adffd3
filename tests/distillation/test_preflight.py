"""A teacher is checked before it teaches, and called only for what it has not said yet."""

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
from deitctl.data.dataset import ImageDataset, Subset, select
from deitctl.device import choose_device
from deitctl.distillation import preflight
from deitctl.distillation.precompute import teach
from deitctl.distillation.preflight import DistillationTeacher, Preflight, mean_recall
from deitctl.errors import TeacherError
from deitctl.evaluation.evaluate import evaluate
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import save_model, save_tensors
from deitctl.models.factory import load_model
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import Preprocessing
from deitctl.training.launch import run_training, train_or_find

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SILENT = SilentReporter()


def tutor(
    config: TrainConfig, pair: Pair, reporter: SilentReporter = SILENT
) -> DistillationTeacher:
    return DistillationTeacher(
        config,
        *pair,
        Preprocessing(img_size=32),
        device=choose_device("cpu", "fp32"),
        reporter=reporter,
        train_run=lambda run: train_or_find(run, pair, reporter),
    )


def renamed(dataset: ImageDataset, names: list[str]) -> Subset:
    return Subset(dataset, np.arange(len(dataset.labels)), dataset.labels, tuple(names))


def test_the_record_says_what_evaluation_says(
    distilled: Make, little: Pair, digits_teacher: Path
) -> None:
    record = tutor(distilled("run"), little).preflight
    loaded = load_model(str(digits_teacher), reporter=SILENT)
    score = evaluate(
        loaded.model,
        little[1],
        loaded.model_config.preprocessing,
        rows=tuple(range(10)),
        head="cls",
        device=choose_device("cpu", "fp32"),
        batch_size=64,
        workers=0,
        reporter=SILENT,
    )
    assert (record.top1, record.top5, record.num_images, record.matched) == (
        score.top1,
        score.top5,
        30,
        "same",
    )
    assert record.answers == tuple(score.predictions.tolist())
    assert record.mean_recall == pytest.approx(score.top1)  # as many images of every digit
    assert record.preprocessing["img_size"] == 32


def test_mean_recall_is_a_mean_over_classes_by_hand(little: Pair, digits_teacher: Path) -> None:
    """A class of three images, one right, counts as much as one of a single image, right: (1/3 + 1) / 2."""
    loaded = load_model(str(digits_teacher), reporter=SILENT)
    dataset = select(little[1], [0, 1, 2, 3])
    score = evaluate(
        loaded.model,
        dataset,
        loaded.model_config.preprocessing,
        rows=tuple(range(10)),
        head="cls",
        device=choose_device("cpu", "fp32"),
        batch_size=64,
        workers=0,
        reporter=SILENT,
    )
    assert dataset.labels.tolist() == [0, 0, 0, 1]
    score = replace(score, among=torch.tensor([0, 5, 5, 1]))
    assert mean_recall(score) == pytest.approx(100 * 2 / 3)


def test_classes_in_another_order_are_permuted(distilled: Make, little: Pair) -> None:
    """The data calls its first class '9' and so on: the teacher's logits must follow the names."""
    order = [str(9 - d) for d in range(10)]
    pair = (renamed(little[0], order), renamed(little[1], order))
    record = tutor(distilled("run"), pair).preflight
    assert (record.matched, record.rows) == ("permuted", tuple(range(9, -1, -1)))
    straight = tutor(distilled("run"), little).preflight
    assert record.answers == tuple(9 - a for a in straight.answers)


def test_a_teacher_of_more_classes_is_sliced(distilled: Make, little: Pair) -> None:
    keep = [np.flatnonzero(np.isin(s.labels, (3, 7))) for s in little]
    pair: Pair = tuple(  # type: ignore[assignment]
        Subset(s, k, (s.labels[k] == 7).astype(np.int64), ("3", "7"))
        for s, k in zip(little, keep, strict=True)
    )
    checked = tutor(distilled("run"), pair)
    assert (checked.preflight.matched, checked.preflight.rows) == ("subset", (3, 7))
    assert set(checked.preflight.answers) <= {0, 1}
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    whole = tutor(distilled("run"), little).network().look(pixels)
    assert torch.equal(checked.network().look(pixels), whole[:, [3, 7]])


@pytest.mark.parametrize(
    ("classes", "images", "recall", "accepted"),
    [
        (10, 1000, 10.0, False),
        (10, 1000, 18.0, False),
        (10, 1000, 25.0, True),
        (2, 1000, 52.0, False),
        (2, 1000, 65.0, True),
        (2, 20, 65.0, False),  # 13 of 20 happens by chance
        (2, 10, 90.0, True),
        (2, 8, 87.5, True),
        (3, 9, 77.8, True),  # and these do not
        (1000, 50_000, 0.15, False),
        (1000, 50_000, 1.0, True),
    ],
)
def test_the_bar_is_clearly_above_chance(
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
        matched="same",
        rows=(),
        adapted="no",
        folder="",
        preprocessing={},
        head="cls",
        weights="",
        validation="",
        answers=(),
    )
    if accepted:
        preflight._require_knowledge(config, record, dataset)
    else:
        with pytest.raises(TeacherError, match=r"near chance.*--force-teacher"):
            preflight._require_knowledge(config, record, dataset)
        preflight._require_knowledge(replace(config, allow_weak_teacher=True), record, dataset)


def test_always_naming_the_largest_class_is_chance(distilled: Make, little: Pair) -> None:
    """90 % right on a set of nine tenths zeros, and it knows nothing."""
    labels = np.array([0] * 90 + [1] * 10)
    dataset = Subset(little[1], np.zeros(100, dtype=np.int64), labels, ("a", "b"))
    record = Preflight(
        name="t",
        top1=90.0,
        top5=100.0,
        mean_recall=50.0,
        images=100,
        matched="same",
        rows=(),
        adapted="no",
        folder="",
        preprocessing={},
        head="cls",
        weights="",
        validation="",
        answers=(),
    )
    with pytest.raises(TeacherError, match=r"mean over classes 50\.0 %"):
        preflight._require_knowledge(
            distilled("run", allow_weak_teacher=False).distill, record, dataset
        )


def test_a_second_run_remembers_the_check_and_never_loads_the_teacher(
    distilled: Make, little: Pair
) -> None:
    teach(distilled("a"), little)
    second = tutor(distilled("b"), little)
    assert not second.is_loaded
    assert second.preflight.name.endswith("teacher")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ["a"] * 10},
        {"rows": [0]},
        {"answers": [1.5] * 30},
        {"answers": [99] * 30},
        {"top1": "x"},
        {"top1": 1e999},
        {"name": 3},
        {"preprocessing": []},
        {"preprocessing": {"img_size": "x"}},
        {"images": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_record_that_nobody_wrote_is_made_anew(
    changes: dict[str, object], distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    known = tutor(config, little).preflight
    path = tmp_path / "words" / "teacher.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert tutor(config, little).preflight == known
    assert tutor(config, little).is_loaded is False


def test_other_validation_images_are_checked_on_again(distilled: Make, little: Pair) -> None:
    teach(distilled("a"), little)
    other = tutor(distilled("b"), (little[0], select(little[1], range(20))))
    assert other.is_loaded
    assert other.preflight.num_images == 20
    assert other.cache is not None
    assert other.cache.count_missing(2) == 0  # the words are about training images, and stay


def test_a_remembered_teacher_near_chance_is_still_refused(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    names = [f"n{d}" for d in range(10)]
    folder = imagenet_teacher()
    model_config = json.loads((folder / "config.json").read_text())
    names = model_config["label_names"][:10]
    pair = (renamed(little[0], names), renamed(little[1], names))
    teach(distilled("a", teacher=str(folder), allow_weak_teacher=True), pair)
    with pytest.raises(TeacherError, match="near chance"):
        tutor(distilled("b", teacher=str(folder), allow_weak_teacher=False), pair)


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
    "teacher's input size": (
        lambda c: _change(c, teacher_img_size=64),
        r'teacher\'s input size was "its own", is 64',
    ),
    "adaptation": (
        lambda c: _change(c, finetune_teacher="head"),
        r'adaptation was "auto", is "head"',
    ),
    "view seed": (lambda c: _change(c, view_seed=1), "view seed was 0, is 1"),
    "mode": (lambda c: _change(c, mode="soft"), 'mode was "hard", is "soft"'),
    "crop": (
        lambda c: _augment(c, crop_scale=(0.5, 1.0)),
        r"view augmentation: crop_scale was \[1.0, 1.0\]",
    ),
    "flip": (lambda c: _augment(c, hflip=0.5), "view augmentation: hflip was 0.0, is 0.5"),
    "affine": (lambda c: _augment(c, affine=(1.0, 0.0, 0.0)), "view augmentation: affine was"),
    "colors": (lambda c: _augment(c, color_jitter=0.4), r"color_jitter was 0.0, is 0.4"),
    "RandAugment": (lambda c: _augment(c, rand_augment=""), "rand_augment was"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_cache_is_refused_with_the_reason(
    what: str, distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    change, reason = STALE[what]
    with pytest.raises(TeacherError, match=rf"stale.*{reason}"):
        tutor(change(config), little)
    assert tutor(config, little).cache is not None  # and it is still good for what it is of


@pytest.mark.parametrize("setting", ["tau", "logits_topk"])
def test_a_stale_soft_cache_is_refused_with_the_reason(
    setting: str, distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run", mode="soft"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    with pytest.raises(TeacherError, match=f"{setting} was"):
        tutor(_change(config, **{setting: 2}), little)


def test_words_of_other_weights_are_refused(
    distilled: Make, little: Pair, tmp_path: Path, digits_teacher: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    _other_weights(str(digits_teacher))
    with pytest.raises(TeacherError, match="stale: teacher was"):
        tutor(config, little)


def test_words_about_other_images_are_refused(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    order = np.arange(len(little[0].labels))
    order[:2] = 1, 0  # the same images in another order
    with pytest.raises(TeacherError, match="stale: training data was"):
        tutor(config, (select(little[0], order), little[1]))


def test_a_named_teacher_is_known_by_the_weights_that_its_name_finds(
    distilled: Make,
    little: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deit: Callable[..., torch.nn.Module],
) -> None:
    """`$DEITCTL_WEIGHTS` points somewhere else, and the same name is another teacher."""
    config = distilled(
        "run", teacher="deit_tiny", finetune_teacher="none", teacher_cache=str(tmp_path / "words")
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
    assert teach(config, pair).asked == 120
    assert not tutor(config, pair).is_loaded
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path / "weights1"))
    with pytest.raises(TeacherError, match="stale: teacher was"):
        tutor(config, pair)


def test_words_said_in_another_precision_are_refused(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    with pytest.raises(TeacherError, match='arithmetic was "fp32, batch norms folded", is "bf16,'):
        teach(replace(config, precision="bf16"), little)


def test_words_of_another_version_of_the_views_are_refused(
    distilled: Make, little: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _change(distilled("run"), teacher_cache=str(tmp_path / "words"))
    teach(config, little)
    now = preflight.VIEWS_VERSION
    monkeypatch.setattr(preflight, "VIEWS_VERSION", now + 1)
    with pytest.raises(TeacherError, match=f"version of the views was {now}, is {now + 1}"):
        tutor(config, little)


def test_what_is_no_part_of_a_view_leaves_the_cache_fresh(distilled: Make, little: Pair) -> None:
    config = distilled("run")
    teach(config, little)
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
    assert not tutor(other, little).is_loaded


def test_published_teachers_are_named_and_files_are_hashed(
    digits_teacher: Path, distilled: Make
) -> None:
    published = replace(distilled("run").distill or DistillConfig, teacher="regnety_160")  # type: ignore[type-var]
    assert preflight.teacher_identity(published, SILENT) == "regnety_160 without weights"
    by_folder = distilled("run").distill
    assert by_folder is not None
    copy = digits_teacher.parent / "elsewhere"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((digits_teacher / name).read_bytes())
    moved = replace(by_folder, teacher=str(copy))
    assert preflight.teacher_identity(by_folder, SILENT) == preflight.teacher_identity(
        moved, SILENT
    )


def test_the_match_is_the_one_that_evaluation_makes(digits_teacher: Path) -> None:
    model_config = load_model(str(digits_teacher), reporter=SILENT).model_config
    match = match_classes(model_config, [str(d) for d in range(10)])
    assert match is not None
    assert match.kind == "same"


def test_the_runs_record_tells_of_its_teacher(distilled: Make, little: Pair) -> None:
    config = distilled("run")
    run = run_training(
        replace(config, recipe=replace(config.recipe, epochs=1)), datasets=little
    ).run
    record = json.loads((run / "teacher.json").read_text())
    assert {
        "name",
        "top1",
        "top5",
        "matched",
        "adapted",
        "weights",
        "preprocessing",
    } <= record.keys()
    epoch = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert set(epoch["teacher_agreement"]) == {"cls", "dist", "avg-logits", "avg-probs"}
    assert 0 <= epoch["agreement"] <= 100


def test_a_teacher_answers_without_batch_norms(distilled: Make, little: Pair) -> None:
    modules = tutor(distilled("run"), little).network().modules()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules)
