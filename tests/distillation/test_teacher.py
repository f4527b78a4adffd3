"""A frozen teacher, with its own normalization and size, over the data's classes; how it is resolved."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deitctl.config import TrainConfig
from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.training_data import Source
from deitctl.distillation import finetune as module
from deitctl.distillation import teacher_weights
from deitctl.distillation.resolve import ResolvedTeacher, resolve_teacher
from deitctl.distillation.teacher import Teacher
from deitctl.errors import TeacherError
from deitctl.events import SilentReporter
from deitctl.home import cache_root
from deitctl.lock import locked
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import DIGITS_CONVNET
from deitctl.training.launch import train_or_find

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SILENT = SilentReporter()
FAMILIES = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "test_byobnet",
    "test_nfnet",
)
OWN = Preprocessing(img_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SEEN = Preprocessing(img_size=4)


class Echo(nn.Module):
    """Returns the mean of each channel, and stores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3, affine=False, momentum=1.0)
        self.seen: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.norm(images).mean(dim=(2, 3)) * self.scale


def echo(rows=(0, 1, 2), own=OWN, head="cls") -> Teacher:
    model_config = ModelConfig(architecture="x", num_classes=3, preprocessing=own, head=head)
    return Teacher(Echo(), model_config, tuple(rows), SEEN)


def test_images_arrive_in_the_teachers_normalization():
    """White is (1 - 0.5) / 0.5 = 1 for the teacher, black -1, whatever they were for the student."""
    for value, expected in ((255, 1.0), (0, -1.0)):
        teacher = echo()
        teacher(normalize(torch.full((1, 3, 4, 4), value, dtype=torch.uint8), SEEN))
        torch.testing.assert_close(
            teacher.model.seen, torch.full((1, 3, 4, 4), expected), rtol=1e-5, atol=1e-5
        )


def test_same_normalization_and_size_pass_through(noise):
    teacher, images = echo(own=SEEN), noise(1, 3, 4, 4)
    teacher(images)
    assert teacher.model.seen is images


def test_images_arrive_in_the_teachers_size(noise):
    teacher = echo(own=Preprocessing(img_size=10))
    images = noise(2, 3, 4, 4)
    teacher(images)
    assert teacher.model.seen.shape == (2, 3, 10, 10)
    flat = torch.full((1, 3, 4, 4), 0.7)
    teacher(flat)
    torch.testing.assert_close(teacher.model.seen, torch.full((1, 3, 10, 10), 0.7))


@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)])
def test_forward_views_equals_forward_of_normalized_pixels(rows, noise):
    pixels = (noise(2, 3, 4, 4) * 60 + 128).clamp(0, 255).to(torch.uint8)
    teacher = echo(rows=rows)
    torch.testing.assert_close(
        teacher.forward_views(pixels).logits, teacher(normalize(pixels, SEEN)).logits
    )
    teacher.forward_views(pixels)
    assert torch.equal(teacher.model.seen, normalize(pixels, OWN))


def test_forward_views_does_not_resize():
    """A view has the teacher's own size, rendered from the image."""
    teacher = echo(own=Preprocessing(img_size=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    pixels = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    teacher.forward_views(pixels)
    torch.testing.assert_close(teacher.model.seen, torch.ones(1, 3, 10, 10))


def test_rows_select_and_order_the_logits(noise):
    images = noise(2, 3, 4, 4)
    whole = echo()(images).logits
    assert torch.equal(echo(rows=(2, 0))(images).logits, whole[:, [2, 0]])
    assert torch.equal(echo(rows=(1, 2, 0))(images).logits, whole[:, [1, 2, 0]])
    assert echo().rows is None


def test_no_gradient_reaches_the_teacher_or_passes_through_it(noise):
    images = noise(1, 3, 4, 4).requires_grad_()
    teacher = echo()
    assert not teacher(images).logits.requires_grad
    assert not teacher.forward_views(
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    ).logits.requires_grad
    assert all(not p.requires_grad for p in teacher.parameters())


def test_teacher_stays_in_eval_mode_inside_a_training_module(noise):
    teacher = echo()
    whole = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(2, 2)}).train()
    assert whole["student"].training
    assert not any(m.training for m in teacher.modules())
    before = teacher.model.norm.running_mean.clone()
    teacher.train()(noise(4, 3, 4, 4) + 5)
    assert torch.equal(teacher.model.norm.running_mean, before)


@pytest.mark.parametrize(
    ("head", "how"), [("auto", "avg"), ("avg-logits", "avg"), ("dist", "dist"), ("cls", "cls")]
)
def test_a_teacher_with_two_heads_uses_its_configs_head_rule(head, how, deit, noise):
    model = deit("deit_tiny_distilled")
    pre = Preprocessing(img_size=32)
    model_config = ModelConfig(
        architecture="deit_tiny_distilled_patch16_224", num_classes=5, preprocessing=pre, head=head
    )
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        cls, dist = model(images)
    expected = {"avg": (cls + dist) / 2, "dist": dist, "cls": cls}[how]
    teacher = Teacher(model, model_config, tuple(range(5)), pre)
    assert torch.equal(teacher(images).logits, expected)
    pixels = (noise(2, 3, 32, 32, seed=1) * 60 + 128).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(
        teacher.forward_views(pixels).logits, teacher(normalize(pixels, pre)).logits
    )


def test_a_teacher_with_one_head_ignores_its_configs_head_rule(deit, noise):
    pre = Preprocessing(img_size=32)
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=5, preprocessing=pre, head="auto"
    )
    assert Teacher(deit(), model_config, tuple(range(5)), pre)(
        noise(1, 3, 32, 32)
    ).logits.shape == (1, 5)


def test_rows_travel_with_the_module_but_not_with_its_weights():
    teacher = echo(rows=(2, 0))
    assert "rows" in dict(teacher.named_buffers())
    assert "rows" not in teacher.state_dict()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tune for one epoch."""
    original = module.get_finetune_recipe
    monkeypatch.setattr(
        module,
        "get_finetune_recipe",
        lambda how, **kw: replace(original(how, **kw), epochs=1, batch_size=16),
    )


def resolve(
    config: TrainConfig,
    pair: Pair,
    reporter: SilentReporter = SILENT,
) -> ResolvedTeacher:
    def train_run(run: TrainConfig) -> Mapping[str, Any]:
        return train_or_find(run, pair, reporter)

    fingerprint = fingerprint_dataset(pair[0], SILENT)
    return resolve_teacher(config, pair[0], fingerprint, train_run, reporter)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_head_finetuning_changes_nothing_else_in_any_family(
    architecture: str, distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    folder = imagenet_teacher(architecture)
    resolved = resolve(distilled("run", teacher=str(folder), finetune_teacher="head"), little)
    assert (resolved.finetuned, resolved.match.kind, resolved.loaded.model_config.num_classes) == (
        "head",
        "same",
        10,
    )
    before, after = (
        load_tensors(folder / "model.safetensors"),
        load_tensors(Path(resolved.folder) / "model.safetensors"),
    )
    moved = {
        name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])
    }
    assert moved == {"head.fc"} or moved == {"fc"} or moved == {"classifier"} or moved == {"head"}


def test_full_finetuning_changes_the_whole_network(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    folder = imagenet_teacher()
    resolved = resolve(distilled("run", teacher=str(folder), finetune_teacher="full"), little)
    before, after = (
        load_tensors(folder / "model.safetensors"),
        load_tensors(Path(resolved.folder) / "model.safetensors"),
    )
    assert all(not torch.equal(after[n], before[n]) for n in after if n.endswith("conv1.weight"))


@pytest.mark.parametrize(("enough", "how"), [(6, "full"), (7, "head")])
def test_auto_finetunes_the_whole_network_given_enough_images(
    enough: int,
    how: str,
    distilled: Make,
    little: Pair,
    imagenet_teacher: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    reporter: SilentReporter,
) -> None:
    monkeypatch.setattr(module, "FULL_FINETUNE_IMAGES", enough)  # six images of every digit
    resolved = resolve(distilled("run", teacher=str(imagenet_teacher())), little, reporter)
    assert resolved.finetuned == how
    assert "has 1000 classes" in reporter.warnings[0]  # type: ignore[attr-defined]


def plan_teacher(config: TrainConfig, train: ImageDataset, reporter: SilentReporter) -> TrainConfig:
    """Return the configuration with which the teacher would be trained."""
    runs: list[TrainConfig] = []

    class Planned(Exception):
        pass

    def train_run(run: TrainConfig) -> Mapping[str, Any]:
        runs.append(run)
        raise Planned

    with pytest.raises(Planned):
        resolve_teacher(config, train, "0", train_run, reporter)
    return runs[0]


def test_a_teacher_that_is_trained_from_scratch_claims_no_published_weights(
    distilled: Make, little: Pair
) -> None:
    config = distilled("run", teacher="regnety_002.pycls_in1k")  # whose weights are not here
    run = plan_teacher(config, little[0], SILENT)
    assert (run.model, run.recipe.pretrained) == ("regnety_002", False)
    assert Path(run.output_dir).name.startswith("regnety_002-scratch-")


def test_a_teachers_run_opens_the_images_of_its_students_when_it_goes_on(
    distilled: Make, little: Pair
) -> None:
    source = {
        "data": "scans.csv",
        "image_folder": "scans",
        "value_range": "0,4095",
        "task": "classification",
        "group_by": "patient",
        "split_seed": 3,
        "folds": 5,
        "fold": 2,
    }
    config = replace(distilled("run", finetune_teacher="scratch"), **source)
    assert all(getattr(config, f.name) != f.default for f in fields(config) if f.name in source)
    assert Source.of(plan_teacher(config, little[0], SILENT)) == replace(
        Source.of(config), has_teacher=False
    )


def test_a_teacher_from_scratch_needs_no_weights_and_warns_of_nothing(
    distilled: Make, little: Pair, reporter: SilentReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = plan_teacher(distilled("run", teacher="regnety_002.pycls_in1k"), little[0], SILENT)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looks for weights")

    monkeypatch.setattr(teacher_weights, "load_model", refuse)
    monkeypatch.setattr(teacher_weights, "fetch_model_files", refuse)
    config = distilled("run", teacher="regnety_002", finetune_teacher="scratch")
    assert plan_teacher(config, little[0], reporter) == fallback  # the same run: trained once
    assert reporter.warnings == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "recipe", "img_size"), [("digits", "digits-convnet", 0), ("photos", "small", 48)]
)
def test_a_teacher_from_scratch_has_the_recipe_of_its_data_and_the_named_size(
    data: str, recipe: str, img_size: int, distilled: Make, little: Pair
) -> None:
    config = distilled(
        "run", teacher="resnet18", finetune_teacher="scratch", teacher_img_size=img_size
    )
    run = plan_teacher(replace(config, data=data), little[0], SILENT)
    assert run.recipe.name == recipe
    assert run.recipe.img_size == (img_size or DIGITS_CONVNET.img_size)


def test_auto_does_not_finetune_a_teacher_that_has_the_classes(
    distilled: Make, little: Pair
) -> None:
    assert resolve(distilled("run"), little).finetuned == "no"


def test_explicit_finetuning_is_done_though_the_classes_match(
    distilled: Make, little: Pair
) -> None:
    assert resolve(distilled("run", finetune_teacher="head"), little).finetuned == "head"


def test_without_finetuning_a_teacher_of_other_classes_is_refused(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    with pytest.raises(
        TeacherError, match=r"lacks some of the data's 10 classes.*--finetune-teacher auto"
    ):
        resolve(distilled("run", teacher=str(imagenet_teacher()), finetune_teacher="none"), little)


def test_a_finetuned_teacher_is_reused_and_another_is_not(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path], reporter: SilentReporter
) -> None:
    config = distilled("run", teacher=str(imagenet_teacher()), finetune_teacher="head")
    first = resolve(config, little)
    stamp = (Path(first.folder) / "model.safetensors").stat().st_mtime_ns
    again = resolve(config, little, reporter)
    assert again.folder == first.folder
    assert Path(first.folder).is_relative_to(cache_root())
    assert (Path(again.folder) / "model.safetensors").stat().st_mtime_ns == stamp
    assert any("was trained on this data before" in note for note in reporter.notes)  # type: ignore[attr-defined]
    other = resolve(
        distilled("run2", teacher=str(imagenet_teacher(seed=1)), finetune_teacher="head"), little
    )
    assert other.folder != first.folder


def test_a_missing_weights_file_is_refused(distilled: Make, little: Pair, tmp_path: Path) -> None:
    from deitctl.errors import ModelError

    with pytest.raises(ModelError, match="nowhere"):
        resolve(
            distilled(
                "run", teacher="resnet18", teacher_weights=str(tmp_path / "nowhere.safetensors")
            ),
            little,
        )


def _train_under_the_lock(folder: str, log: str) -> None:
    with locked(Path(folder) / "x.lock", what="it", when_busy=lambda: None), open(log, "a") as file:
        file.write("in\n")
        file.flush()
        for _ in range(1000):
            pass
        file.write("out\n")


def test_one_of_several_processes_trains_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_train_under_the_lock, args=(str(tmp_path), str(log)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert log.read_text().split() == ["in", "out"] * 3


@pytest.mark.parametrize("size", [32, 64])
def test_a_teacher_has_the_requested_input_size(
    size: int, imagenet_teacher: Callable[..., Path]
) -> None:
    loaded = load_model(str(imagenet_teacher()), img_size=size, reporter=SILENT)
    assert loaded.model_config.preprocessing.img_size == size


def test_a_finetuned_teacher_that_is_gone_or_unfinished_is_reported_where_it_cannot_be_trained(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    config = distilled("run", teacher=str(imagenet_teacher()), finetune_teacher="head")
    fingerprint = fingerprint_dataset(little[0], SILENT)
    with pytest.raises(TeacherError, match=r"fine-tuned teacher .* is gone"):
        resolve_teacher(config, little[0], fingerprint, None, SILENT)
    resolved = resolve(config, little)
    again = resolve_teacher(config, little[0], fingerprint, None, SILENT)
    assert again.folder == resolved.folder
    (Path(resolved.folder) / "result.json").unlink()  # as while its training runs
    with pytest.raises(TeacherError, match=r"fine-tuned teacher .* unfinished"):
        resolve_teacher(config, little[0], fingerprint, None, SILENT)
