"""What a teacher says is paid for once, and training from it is training with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.distillation.precompute import teach, verify
from deitctl.distillation.target_cache import TargetCache
from deitctl.distillation.teacher import Teacher
from deitctl.errors import ConfigError, TeacherError
from deitctl.events import SilentReporter
from deitctl.training.launch import resume, run_training

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


WITH_BLACK = 2 * 64
"""Places of whole batches that 60 images in two views take at the most: eight of a half batch are left black."""


def last_weights(run: Path) -> bytes:
    return (run / "state" / "model.safetensors").read_bytes()


def with_recipe(config: TrainConfig, **changes: object) -> TrainConfig:
    return replace(config, recipe=replace(config.recipe, **changes))  # type: ignore[arg-type]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that any teacher looks at."""
    sizes: list[int] = []
    look = Teacher.look

    def counted(self: Teacher, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return look(self, pixels)

    monkeypatch.setattr(Teacher, "look", counted)
    return sizes


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("teacher_img_size", [0, 64])
def test_training_from_the_cache_equals_training_with_the_live_teacher(
    mode: str, teacher_img_size: int, distilled: Make, little: Pair
) -> None:
    said = {"mode": mode, "teacher_img_size": teacher_img_size}
    live = run_training(distilled("live", teacher_cache="off", **said), datasets=little).run
    filling = run_training(distilled("filling", **said), datasets=little).run
    reading = run_training(distilled("reading", **said), datasets=little).run
    assert last_weights(live) == last_weights(filling) == last_weights(reading)


def test_the_second_student_never_asks(distilled: Make, little: Pair, looks: list[int]) -> None:
    taught = teach(distilled("a"), little)
    assert (taught.asked, taught.num_images, taught.views, taught.bytes) == (120, 60, 2, 240)
    assert 120 <= sum(looks) <= WITH_BLACK
    looks.clear()
    config = distilled("b", dist_token=False)
    other = with_recipe(
        config, batch_size=10, img_size=48, augment=replace(config.recipe.augment, repeated_aug=1)
    )
    run_training(replace(other, seed=5, workers=2), datasets=little)
    assert looks == []
    assert teach(distilled("a"), little).asked == 0


def test_a_run_asks_about_each_view_once_and_lets_the_teacher_go(
    distilled: Make, little: Pair, looks: list[int], reporter: SilentReporter
) -> None:
    """Epochs of 48 of 60 images leave words over, which are asked for before the teacher goes."""
    config = distilled("run")
    config = with_recipe(config, epochs=5, augment=replace(config.recipe.augment, repeated_aug=1))
    run_training(config, datasets=little, reporter=reporter)
    assert 120 <= sum(looks) <= WITH_BLACK
    assert any("has said all" in note for note in reporter.notes)  # type: ignore[attr-defined]


def test_without_a_cache_the_teacher_is_asked_every_time(
    distilled: Make, little: Pair, looks: list[int]
) -> None:
    run_training(distilled("run", teacher_cache="off"), datasets=little)
    assert sum(looks) == 3 * 48


def test_a_mixed_teacher_looks_at_mixed_images_every_step(
    distilled: Make, little: Pair, looks: list[int]
) -> None:
    config = distilled("run", teacher_input="mixed", views=0)
    result = run_training(config, datasets=little)
    assert looks == []  # it looks at the student's tensor, not at views
    assert result.teacher is not None
    assert not (Path(config.output_dir).parent / "cache" / "words").exists()


def test_new_views_every_epoch_are_kept_too(
    distilled: Make, little: Pair, looks: list[int]
) -> None:
    config = distilled("a", views=0)
    config = with_recipe(config, epochs=2, augment=replace(config.recipe.augment, repeated_aug=1))
    run_training(config, datasets=little)
    assert 120 <= sum(looks) <= WITH_BLACK
    looks.clear()
    run_training(
        replace(config, output_dir=str(Path(config.output_dir).with_name("b")), seed=3),
        datasets=little,
    )
    assert looks == []


def test_a_distilled_run_that_was_stopped_ends_as_if_it_had_not(
    distilled: Make, little: Pair
) -> None:
    from tests.training.test_launch import StopsAt  # type: ignore[import-not-found]

    whole = run_training(distilled("whole"), datasets=little).run
    config = distilled("stopped", teacher_cache=str(whole / "words"))
    with pytest.raises(Exception, match="Interrupted"):
        run_training(config, datasets=little, reporter=StopsAt("epoch 2/3"))
    assert last_weights(resume(Path(config.output_dir), datasets=little).run) == last_weights(whole)


def test_more_views_keep_what_was_said_about_fewer(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    words = str(tmp_path / "words")
    assert teach(distilled("a", views=1, teacher_cache=words), little).asked == 60
    assert teach(distilled("a", views=3, teacher_cache=words), little).asked == 120
    assert teach(distilled("a", views=2, teacher_cache=words), little).asked == 0


def test_verify_finds_what_was_changed(distilled: Make, little: Pair, tmp_path: Path) -> None:
    config = distilled("a", teacher_cache=str(tmp_path / "words"))
    with pytest.raises(TeacherError, match="no words yet"):
        verify(config, little)
    result = teach(config, little)
    fine = verify(config, little, count=50)
    assert (fine.checked, fine.different, fine.largest_difference) == (50, 0, 0.0)
    file = result.cache / "view-00000.words"
    words = np.fromfile(file, dtype=np.uint16)
    ((words % 10) + 1).tofile(file)
    with pytest.raises(TeacherError, match="contradicts its words"):
        verify(config, little)


@pytest.mark.unprivileged
def test_a_whole_cache_may_be_somebody_elses(distilled: Make, little: Pair) -> None:
    taught = teach(distilled("a"), little)
    for file in taught.cache.iterdir():
        file.chmod(0o444)
    assert teach(distilled("a"), little).asked == 0
    run_training(distilled("b"), datasets=little)


def test_a_map_that_may_only_be_read_is_read(
    distilled: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the tests run as root: the system refuses to open for writing."""
    taught = teach(distilled("a"), little)
    really = os.open

    def refusing(path: object, flags: int, *rest: int) -> int:
        if str(path).endswith(".words") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    assert teach(distilled("b"), little).asked == 0
    assert verify(distilled("b"), little, count=8).different == 0
    next(taught.cache.glob("view-00001.words")).unlink()
    with pytest.raises(TeacherError, match="Cannot write"):
        teach(distilled("c"), little)


def test_unreadable_images_are_named(
    distilled: Make, image_folder: Callable[..., Path], imagenet_teacher: Callable[..., Path]
) -> None:
    from deitctl.data.open import open_for_training

    root = image_folder({"train/tench": 3, "train/goldfish": 3, "val/tench": 1, "val/goldfish": 1})
    (root / "train" / "tench" / "1.png").write_text("not an image")
    pair = open_for_training(str(root), seed=0, reporter=SilentReporter())
    result = teach(replace(distilled("a", teacher=str(imagenet_teacher())), data=str(root)), pair)
    assert [Path(name).name for name in result.unreadable] == ["1.png"]
    assert result.asked == 10


def test_teaching_without_a_cache_is_refused(distilled: Make, little: Pair) -> None:
    with pytest.raises(ConfigError, match="nothing to teach"):
        teach(distilled("a", teacher_cache="off"), little)


def test_teaching_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL after some words: what was said stays, the rest is added, and the whole is what one go would have said."""
    command = [
        sys.executable,
        "-m",
        "deitctl",
        "teach",
        "--teacher",
        "test_resnet",
        "--teacher-weights",
        str(_random_teacher(tmp_path)),
        "--adapt",
        "none",
        "--force-teacher",
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
    words = {name: tmp_path / name for name in ("killed", "whole")}
    child = subprocess.Popen(
        [*command, "--teacher-cache", str(words["killed"])],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    while child.poll() is None and not _some(words["killed"]):
        os.sched_yield()
    child.send_signal(signal.SIGKILL)
    assert child.communicate() is not None
    assert child.returncode == -signal.SIGKILL
    before = _some(words["killed"])
    assert 0 < before < 2 * 1442
    for name in words:
        subprocess.run(
            [*command, "--teacher-cache", str(words[name]), "-q"],
            env=environment,
            check=True,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
    for view in range(2):
        file = f"view-{view:05d}.words"
        assert (words["killed"] / file).read_bytes() == (words["whole"] / file).read_bytes()


def _some(folder: Path) -> int:
    return sum(
        int((np.fromfile(f, dtype=np.uint16) > 0).sum()) for f in folder.glob("view-*.words")
    )


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


def test_words_are_read_through_pickled_caches(distilled: Make, little: Pair) -> None:
    """What loader processes that are spawned do."""
    import pickle

    result = teach(distilled("a"), little)
    from deitctl.distillation.target_cache import TargetCodec

    cache = TargetCache(result.cache, TargetCodec("hard", 10), 60)
    assert cache.holds(0, 0)
    again = pickle.loads(pickle.dumps(cache))
    assert again._views == {}
    assert again.holds(1, 59)


def test_reporters_are_optional(distilled: Make, little: Pair) -> None:
    assert teach(distilled("a"), little, reporter=SilentReporter()).seconds > 0


def test_whole_words_serve_where_the_teacher_is_not(
    distilled: Make, little: Pair, tmp_path: Path, digits_teacher: Path, reporter: SilentReporter
) -> None:
    """Words that were copied to another machine, or whose teacher is gone; what they lack needs it all the same."""
    said = {"teacher_cache": str(tmp_path / "words")}
    teach(distilled("a", **said), little)
    digits_teacher.rename(tmp_path / "gone")
    run_training(with_recipe(distilled("b", **said), epochs=1), datasets=little, reporter=reporter)
    assert any("taken on trust" in text for text in reporter.warnings)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="no model"):
        teach(distilled("c", views=3, **said), little)
