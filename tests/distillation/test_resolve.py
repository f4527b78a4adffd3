"""A teacher of other classes is fitted to the data, kept by content, and found again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.distillation import resolve as module
from deitctl.distillation.resolve import ResolvedTeacher, resolve_teacher
from deitctl.errors import TeacherError
from deitctl.events import SilentReporter
from deitctl.lock import locked
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.paths import cache_root
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


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch at 32 pixels is enough to see what is trained."""
    whole = module.adaptation
    monkeypatch.setattr(
        module, "adaptation", lambda how, **kw: replace(whole(how, **kw), epochs=1, batch_size=16)
    )


def find(
    config: TrainConfig,
    pair: Pair,
    reporter: SilentReporter = SILENT,
    trained: list[str] | None = None,
) -> ResolvedTeacher:
    def train(run: TrainConfig) -> None:
        if trained is not None:
            trained.append(run.output)
        train_or_find(run, pair, reporter)

    assert config.distill is not None
    return resolve_teacher(
        config.distill, config, pair[0], fingerprint_dataset(pair[0], SILENT), train, reporter
    )


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_head_of_any_family_is_fitted_and_nothing_else_moves(
    architecture: str, distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    folder = imagenet_teacher(architecture)
    found = find(distilled("run", teacher=str(folder), finetune_teacher="head"), little)
    assert (found.adapted, found.match.kind, found.loaded.model_config.num_classes) == (
        "head",
        "same",
        10,
    )
    before, after = (
        load_tensors(folder / "model.safetensors"),
        load_tensors(Path(found.folder) / "model.safetensors"),
    )
    moved = {
        name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])
    }
    assert moved == {"head.fc"} or moved == {"fc"} or moved == {"classifier"} or moved == {"head"}


def test_all_of_a_teacher_is_fitted_with_full(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    folder = imagenet_teacher()
    found = find(distilled("run", teacher=str(folder), finetune_teacher="full"), little)
    before, after = (
        load_tensors(folder / "model.safetensors"),
        load_tensors(Path(found.folder) / "model.safetensors"),
    )
    assert all(not torch.equal(after[n], before[n]) for n in after if n.endswith("conv1.weight"))


@pytest.mark.parametrize(("enough", "how"), [(6, "full"), (7, "head")])
def test_auto_fits_all_where_there_are_images_enough(
    enough: int,
    how: str,
    distilled: Make,
    little: Pair,
    imagenet_teacher: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    reporter: SilentReporter,
) -> None:
    monkeypatch.setattr(module, "ADAPT_FULL_FROM", enough)  # six images of every digit
    found = find(distilled("run", teacher=str(imagenet_teacher())), little, reporter)
    assert found.adapted == how
    assert "knows 1000 classes" in reporter.warnings[0]  # type: ignore[attr-defined]


def test_auto_leaves_a_teacher_alone_that_knows_the_classes(distilled: Make, little: Pair) -> None:
    assert find(distilled("run"), little).adapted == "no"


def test_adaptation_that_is_asked_for_is_done_though_the_classes_match(
    distilled: Make, little: Pair
) -> None:
    assert find(distilled("run", finetune_teacher="head"), little).adapted == "head"


def test_none_refuses_a_teacher_of_other_classes(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path]
) -> None:
    with pytest.raises(
        TeacherError, match=r"does not know all of the data's 10 classes.*--adapt auto"
    ):
        find(distilled("run", teacher=str(imagenet_teacher()), finetune_teacher="none"), little)


def test_a_fitted_teacher_is_found_again_and_another_is_not(
    distilled: Make, little: Pair, imagenet_teacher: Callable[..., Path], reporter: SilentReporter
) -> None:
    config = distilled("run", teacher=str(imagenet_teacher()), finetune_teacher="head")
    first = find(config, little)
    stamp = (Path(first.folder) / "model.safetensors").stat().st_mtime_ns
    again = find(config, little, reporter)
    assert again.folder == first.folder
    assert Path(first.folder).is_relative_to(cache_root())
    assert (Path(again.folder) / "model.safetensors").stat().st_mtime_ns == stamp
    assert any("Found finished" in note for note in reporter.notes)  # type: ignore[attr-defined]
    other = find(
        distilled("run2", teacher=str(imagenet_teacher(seed=1)), finetune_teacher="head"), little
    )
    assert other.folder != first.folder


def test_a_weights_file_that_is_not_there_is_said(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    from deitctl.errors import ModelError

    with pytest.raises(ModelError, match="nowhere"):
        find(
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


def test_of_several_processes_one_trains_at_a_time(tmp_path: Path) -> None:
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
def test_a_teacher_answers_at_the_size_it_is_given(
    size: int, imagenet_teacher: Callable[..., Path]
) -> None:
    loaded = load_model(str(imagenet_teacher()), img_size=size, reporter=SILENT)
    assert loaded.model_config.preprocessing.img_size == size
