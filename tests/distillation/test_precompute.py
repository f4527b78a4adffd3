"""Targets are computed once, and training from the cache equals training with the network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.config import TrainConfig
from deitctl.data import loader_pool
from deitctl.data.dataset import ImageDataset
from deitctl.distillation.features import FeatureCodec
from deitctl.distillation.precompute import (
    CacheTeacherResult,
    VerifyCacheResult,
    cache_teacher,
    verify_teacher_cache,
)
from deitctl.distillation.target_cache import TargetCache
from deitctl.distillation.targets import TargetCodec
from deitctl.distillation.teacher import Teacher
from deitctl.errors import ConfigError, TeacherError
from deitctl.events import SilentReporter
from deitctl.training.launch import resume, run_training, train_or_find

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SILENT = SilentReporter()


def precompute(config: TrainConfig, pair: Pair, **options: object) -> CacheTeacherResult:
    return cache_teacher(config, pair, lambda run: train_or_find(run, pair, SILENT), **options)  # type: ignore[arg-type]


def verify_cache(config: TrainConfig, pair: Pair, **options: object) -> VerifyCacheResult:
    def train_run(run: TrainConfig) -> Mapping[str, Any]:
        return train_or_find(run, pair, SILENT)

    return verify_teacher_cache(config, pair, train_run, **options)  # type: ignore[arg-type]


WITH_PADDING = 2 * 64
"""Images in the batches of 60 images in two views, with the padding of a partial batch."""


def last_weights(run: Path) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


def with_recipe(config: TrainConfig, **changes: object) -> TrainConfig:
    return replace(config, recipe=replace(config.recipe, **changes))  # type: ignore[arg-type]


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that any teacher labels."""
    sizes: list[int] = []
    forward_views = Teacher.forward_views

    def counted(self: Teacher, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return forward_views(self, pixels)

    monkeypatch.setattr(Teacher, "forward_views", counted)
    return sizes


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("teacher_img_size", [0, 64])
def test_training_from_the_cache_equals_training_with_the_live_teacher(
    mode: str, teacher_img_size: int, distilled: Make, little: Pair
) -> None:
    settings = {"mode": mode, "teacher_img_size": teacher_img_size}
    live = run_training(distilled("live", teacher_cache="off", **settings), datasets=little).run
    filling = run_training(distilled("filling", **settings), datasets=little).run
    reading = run_training(distilled("reading", **settings), datasets=little).run
    assert last_weights(live) == last_weights(filling) == last_weights(reading)


def test_the_second_student_computes_nothing(
    distilled: Make, little: Pair, batch_sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = precompute(distilled("a"), little)
    assert (result.num_computed, result.num_images, result.num_views, result.bytes) == (
        120,
        60,
        2,
        480,
    )
    assert 120 <= sum(batch_sizes) <= WITH_PADDING
    batch_sizes.clear()
    config = distilled("b", dist_token=False)
    other = with_recipe(
        config, batch_size=10, img_size=48, augment=replace(config.recipe.augment, repeated_aug=1)
    )
    start, started = loader_pool._start_loader, list[int]()
    monkeypatch.setattr(
        loader_pool, "_start_loader", lambda *arguments: (started.append(1), start(*arguments))[1]
    )
    run_training(replace(other, seed=5, workers=2), datasets=little)
    assert batch_sizes == []
    assert len(started) == 2  # for its views, of which some are cached, and for its validations
    assert precompute(distilled("a"), little).num_computed == 0


def test_the_command_names_the_recipe_and_views_that_its_cache_is_for(
    distilled: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--recipe`, `distill` may choose one whose augmentation has other views."""
    result = precompute(distilled("a"), little)
    assert result.recipe == distilled("a").recipe.name
    monkeypatch.setattr("deitctl.api.cache_teacher", lambda **_: result)
    commands: list[list[str]] = []
    monkeypatch.setattr(
        "deitctl.cli.cache_teacher.print_next", lambda command, **_: commands.append(list(command))
    )
    for options, recipe in (([], result.recipe), (["--recipe", "mine.toml"], "mine.toml")):
        done = CliRunner().invoke(app, ["cache-teacher", "--format", "table", *options])
        assert done.exit_code == 0, done.stderr
        assert commands.pop() == ["distill", "--recipe", recipe, "--views", "2"]


def test_a_run_computes_each_target_once_and_unloads_the_teacher(
    distilled: Make, little: Pair, batch_sizes: list[int], reporter: SilentReporter
) -> None:
    """The check labels the first view of all 60 images, an epoch the second, in four padded batches of 16; the
    speed is measured before, on eight images at a time."""
    config = distilled("run")
    config = with_recipe(config, epochs=5, augment=replace(config.recipe.augment, repeated_aug=1))
    run_training(config, datasets=little, reporter=reporter)
    assert [size for size in batch_sizes if size != 8] == [32, 28, 16, 16, 16, 16]
    assert any("All teacher targets are cached" in note for note in reporter.notes)  # type: ignore[attr-defined]


def test_without_a_cache_targets_are_computed_every_time(
    distilled: Make, little: Pair, batch_sizes: list[int]
) -> None:
    run_training(distilled("run", teacher_cache="off"), datasets=little)
    assert batch_sizes == [32, 28] + 12 * [16]  # the check on training views, and three epochs


def test_a_teacher_of_mixed_images_computes_every_step(
    distilled: Make, little: Pair, batch_sizes: list[int]
) -> None:
    config = distilled("run", teacher_input="mixed", views=0)
    result = run_training(config, datasets=little)
    assert batch_sizes == []  # it gets the student's tensor, not views
    assert result.teacher is not None
    assert not (Path(config.output_dir).parent / "cache" / "teacher_targets").exists()


def test_targets_of_fresh_views_are_cached_too(
    distilled: Make, little: Pair, batch_sizes: list[int]
) -> None:
    config = distilled("a", views=0)
    config = with_recipe(config, epochs=2, augment=replace(config.recipe.augment, repeated_aug=1))
    run_training(config, datasets=little)
    assert 120 <= sum(batch_sizes) <= WITH_PADDING
    batch_sizes.clear()
    run_training(
        replace(config, output_dir=str(Path(config.output_dir).with_name("b")), seed=3),
        datasets=little,
    )
    assert batch_sizes == []


def test_an_interrupted_distilled_run_resumes_to_equal_weights(
    distilled: Make, little: Pair
) -> None:
    from tests.training.test_launch import StopsAt  # type: ignore[import-not-found]

    whole = run_training(distilled("whole"), datasets=little).run
    config = distilled("stopped", teacher_cache=str(whole / "cache"))
    with pytest.raises(Exception, match="Interrupted"):
        run_training(config, datasets=little, reporter=StopsAt("epoch 2/3"))
    assert last_weights(resume(Path(config.output_dir), datasets=little).run) == last_weights(whole)


def test_more_views_extend_the_cache_of_fewer(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    assert precompute(distilled("a", views=1, teacher_cache=cache), little).num_computed == 60
    assert precompute(distilled("a", views=3, teacher_cache=cache), little).num_computed == 120
    assert precompute(distilled("a", views=2, teacher_cache=cache), little).num_computed == 0


def test_verify_finds_changed_targets(distilled: Make, little: Pair, tmp_path: Path) -> None:
    config = distilled("a", teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(TeacherError, match="is empty"):
        verify_cache(config, little)
    result = precompute(config, little)
    verified = verify_cache(config, little, num_images=50)
    assert (verified.num_verified, verified.num_different, verified.max_abs_diff) == (50, 0, 0.0)
    file = result.cache / "view-00000.bin"
    codec = TargetCodec("hard", 10)
    targets = codec.decode(np.fromfile(file, dtype=np.uint16).reshape(-1, codec.width))
    codec.encode(targets.roll(1, dims=1)).tofile(file)
    with pytest.raises(TeacherError, match="are not those of the teacher"):
        verify_cache(config, little)


def test_labels_and_features_come_from_one_pass_and_are_verified(
    distilled: Make, little: Pair, batch_sizes: list[int], tmp_path: Path
) -> None:
    config = distilled("a", mode="features+hard", teacher_cache=str(tmp_path / "cache"))
    result = precompute(config, little)
    # Counting features, the check on training views, and then the filling.
    assert batch_sizes == [1, 32, 28, 64, 64]
    # Of a view of an image two numbers of the label, and a checksum and 96 numbers of the features.
    assert (result.num_computed, result.bytes) == (120, 120 * 2 * (2 + 97))
    batch_sizes.clear()
    labels = distilled("b", teacher_cache=str(tmp_path / "cache"))
    assert precompute(labels, little).num_computed == 0
    verified = verify_cache(config, little, num_images=20)
    assert (verified.num_different, verified.max_abs_diff) == (0, 0.0)
    assert verified.max_feature_diff is not None
    assert verified.max_feature_diff < 1e-3
    file, codec = result.cache / "features" / "view-00000.bin", FeatureCodec(96)
    features = codec.decode(np.fromfile(file, dtype=np.uint16).reshape(-1, codec.width))
    codec.encode(features.roll(1, dims=1)).tofile(file)
    with pytest.raises(TeacherError, match="features by up to .* of their spread"):
        verify_cache(config, little)


@pytest.mark.unprivileged
def test_a_complete_cache_may_be_read_only(distilled: Make, little: Pair) -> None:
    result = precompute(distilled("a"), little)
    for file in result.cache.iterdir():
        file.chmod(0o444)
    assert precompute(distilled("a"), little).num_computed == 0
    run_training(distilled("b"), datasets=little)


def test_a_view_that_cannot_be_opened_for_writing_is_mapped_for_reading(
    distilled: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the tests run as root: the system refuses to open for writing."""
    result = precompute(distilled("a"), little)
    really = os.open

    def refusing(path: object, flags: int, *rest: int) -> int:
        if str(path).endswith(".bin") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    assert precompute(distilled("b"), little).num_computed == 0
    assert verify_cache(distilled("b"), little, num_images=8).num_different == 0
    next(result.cache.glob("view-00001.bin")).unlink()
    with pytest.raises(TeacherError, match="Cannot write"):
        precompute(distilled("c"), little)


def test_unreadable_images_are_named(
    distilled: Make, image_folder: Callable[..., Path], imagenet_teacher: Callable[..., Path]
) -> None:
    from deitctl.data.training_data import Source, open_for_training

    root = image_folder({"train/tench": 3, "train/goldfish": 3, "val/tench": 1, "val/goldfish": 1})
    (root / "train" / "tench" / "1.png").write_text("not an image")
    pair = open_for_training(Source(str(root)), reporter=SilentReporter())
    result = precompute(
        replace(distilled("a", teacher=str(imagenet_teacher())), data=str(root)), pair
    )
    assert [Path(name).name for name in result.unreadable] == ["1.png"]
    assert result.num_computed == 10


def test_precomputing_without_a_cache_is_refused(distilled: Make, little: Pair) -> None:
    with pytest.raises(ConfigError, match="no targets to compute"):
        precompute(distilled("a", teacher_cache="off"), little)


def test_precomputing_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL after some targets: they are kept, and the completed cache equals one that was filled at once."""
    command = [
        sys.executable,
        "-m",
        "deitctl",
        "cache-teacher",
        "--teacher",
        "test_resnet",
        "--teacher-weights",
        str(_random_teacher(tmp_path)),
        "--finetune-teacher",
        "none",
        "--allow-weak-teacher",
        "--views",
        "2",
        "--workers",
        "0",
        "--batch-size",
        "8",
        "--precision",
        "fp32",
        "--format",
        "json",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    caches = {name: tmp_path / name for name in ("killed", "whole")}
    child = subprocess.Popen(
        [*command, "--teacher-cache", str(caches["killed"])],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    while child.poll() is None and not _some(caches["killed"]):
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.communicate() is not None
    assert child.returncode == -signal.SIGKILL
    before = _some(caches["killed"])
    assert 0 < before < 2 * 1442
    for name in caches:
        subprocess.run(
            [*command, "--teacher-cache", str(caches[name]), "-q"],
            env=environment,
            check=True,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
    for view in range(2):
        file = f"view-{view:05d}.bin"
        assert (caches["killed"] / file).read_bytes() == (caches["whole"] / file).read_bytes()


def _some(folder: Path) -> int:
    return sum(int((np.fromfile(f, dtype=np.uint16) > 0).sum()) for f in folder.glob("view-*.bin"))


def _random_teacher(folder: Path) -> Path:
    """An untrained convnet of the ten digits."""
    from dataclasses import replace as changed

    from deitctl.models import timm_models
    from deitctl.models.checkpoint_io import save_model
    from deitctl.models.introspect import describe_layers

    model = timm_models.create_model("test_resnet", num_classes=10)
    model_config = changed(
        timm_models.read_model_config(model, "test_resnet", 10).at_size(32),
        class_names=tuple(str(d) for d in range(10)),
    )
    save_model(folder / "random", model.state_dict(), model_config, describe_layers(model))
    return folder / "random"


def test_pickled_caches_open_their_own_maps(distilled: Make, little: Pair) -> None:
    """What loader processes that are spawned do."""
    import pickle

    result = precompute(distilled("a"), little)
    cache = TargetCache(result.cache, TargetCodec("hard", 10), 60)
    assert cache.has_target(0, 0)
    again = pickle.loads(pickle.dumps(cache))
    assert again._views == {}
    assert again.has_target(1, 59)


def test_reporters_are_optional(distilled: Make, little: Pair) -> None:
    assert precompute(distilled("a"), little, reporter=SilentReporter()).seconds > 0


def test_a_complete_cache_serves_without_the_teacher(
    distilled: Make, little: Pair, tmp_path: Path, digits_teacher: Path, reporter: SilentReporter
) -> None:
    """A cache that was copied to another machine, or whose teacher is gone; missing targets need the teacher."""
    settings = {"teacher_cache": str(tmp_path / "cache")}
    precompute(distilled("a", **settings), little)
    digits_teacher.rename(tmp_path / "gone")
    run_training(
        with_recipe(distilled("b", **settings), epochs=1), datasets=little, reporter=reporter
    )
    assert any("used unverified" in text for text in reporter.warnings)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="no model"):
        precompute(distilled("c", views=3, **settings), little)
