"""A run goes on with the data and settings that it began with, or is refused in words that show the difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_split
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import ConfigError, DataError, Interrupted, ModelError, Signalled
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import RECORD_CHECKSUM
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run be stopped, as by a signal, after so many epochs."""

    def stop(self: Trainer) -> None:
        if self.state.progress.epoch == epochs:
            raise Signalled(15)

    monkeypatch.setattr(Trainer, "fill_target_cache", stop)  # the last thing that an epoch does


@pytest.fixture
def stopped(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """A run of digits that was stopped after the first of three epochs."""
    config = little_config("run")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Interrupted) as stop:
            run_training(config, datasets=little)
    assert stop.value.saved == "The last checkpoint, of step 4 (epochs done: 1), is whole."
    return Path(config.output_dir)


def edit(run: Path, old: str, new: str) -> None:
    file = run / "run.toml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size = 16", "batch_size = 7", "batch_size is 7, was 16"),
        ("\nepochs = 3\n", "\nepochs = 1\n", "epochs is 1, was 3"),
        ("\nepochs = 3\n", "\nepochs = 9\n", "epochs is 9, was 3"),
        ("\nlr = ", "\nlr = 1", "optim.lr is 1"),
        ("\nseed = 0", "\nseed = 1", "seed is 1, was 0"),
        ("mixup = 0.8", "mixup = 0.7", "augment.mixup is 0.7, was 0.8"),
    ],
)
def test_settings_that_were_edited_are_refused_and_shown(
    stopped: Path, little: Pair, old: str, new: str, said: str
) -> None:
    before = (stopped / WEIGHTS).read_bytes()
    edit(stopped, old, new)
    with pytest.raises(ConfigError) as refusal:
        resume(stopped, datasets=little)
    assert said in refusal.value.message
    assert "--more-epochs" in refusal.value.hint
    assert (stopped / WEIGHTS).read_bytes() == before
    edit(stopped, new, old)
    assert resume(stopped, datasets=little).epochs == 3


def test_settings_of_the_machine_and_the_place_of_the_data_may_change(
    stopped: Path, little: Pair
) -> None:
    edit(stopped, 'save_every = "5m"', 'save_every = "3"')
    edit(stopped, 'data = "digits"', 'data = "elsewhere"')
    assert resume(stopped, datasets=little, settings={"workers": 0}).epochs == 3


def test_epochs_that_were_added_need_no_checkpoint_of_their_own(
    stopped: Path, little: Pair
) -> None:
    """Killed between writing the new run.toml and the first checkpoint, once or twice."""
    resume(stopped, datasets=little)
    run, config = Run.open(stopped)
    for epochs, restarts in ((4, (3,)), (6, (3, 4))):
        recipe = replace(config.recipe, epochs=epochs, restart_epochs=restarts)
        run.extend(replace(config, recipe=recipe), "")
    assert resume(stopped, datasets=little).epochs == 6


def test_a_checkpoint_without_settings_is_one_of_an_earlier_version(
    stopped: Path, little: Pair
) -> None:
    file = stopped / "checkpoint" / "state.json"
    state = json.loads(file.read_text())
    for name in ("settings", "data_fingerprint", "best_num_images", RECORD_CHECKSUM):
        state.pop(name)
    file.write_text(json.dumps(state))
    assert resume(stopped, datasets=little).epochs == 3


# -- data ---------------------------------------------------------------------------------------


@pytest.fixture
def folder_run(
    little_config: Make, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A folder with train/ and val/, and a run on it that was stopped after its first epoch."""
    data = image_folder({"train/ant": 6, "train/bee": 6, "val/ant": 3, "val/bee": 3})
    config = replace(little_config("run"), data=str(data))
    config = replace(config, recipe=replace(config.recipe, batch_size=6))
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Interrupted):
            run_training(config)
    return data, Path(config.output_dir)


def test_a_class_that_was_renamed_is_refused_by_name(folder_run: tuple[Path, Path]) -> None:
    """The same images and numbers of them, but every label would mean another class."""
    data, run = folder_run
    for part in ("train", "val"):
        (data / part / "ant").rename(data / part / "zant")
    with pytest.raises(DataError) as refusal:
        resume(run)
    assert "classes that are gone: ant" in refusal.value.message
    assert "classes that are new: zant" in refusal.value.message
    for part in ("train", "val"):
        (data / part / "zant").rename(data / part / "ant")
    assert resume(run).epochs == 3


@pytest.mark.parametrize("spelled", ["cafe\u0301", "ant "])
def test_a_run_of_classes_in_the_spelling_of_earlier_versions_goes_on_with_their_numbers(
    spelled: str,
    little_config: Make,
    image_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decomposed, the name sorts before `caff`, and composed behind it; of data with and without parts."""
    after = spelled[:3] + ("f" if spelled.startswith("c") else "\ta")
    parts = ("train/", "val/") if spelled.startswith("c") else ("",)
    data = image_folder({f"{part}{name}": 8 for part in parts for name in (spelled, after)})
    config = replace(little_config("run"), data=str(data))
    config = replace(config, recipe=replace(config.recipe, batch_size=4))
    with monkeypatch.context() as patch:
        for module in ("readers.passed_over", "subsets"):
            patch.setattr(f"deitctl.data.{module}.canonicalize_name", lambda name: name)
        stop_after(1, patch)
        with pytest.raises(Interrupted):
            run_training(config)
    began = json.loads((Path(config.output_dir) / "checkpoint" / "state.json").read_text())
    train, val = open_for_training(Source(str(data)), reporter=SilentReporter())
    assert fingerprint_split(train, val) != began["data_fingerprint"]
    assert resume(Path(config.output_dir)).epochs == 3
    ended = json.loads((Path(config.output_dir) / CONFIG).read_text())
    assert ended["label_names"] == sorted((spelled, after))


def test_an_image_that_moved_to_another_class_or_part_is_refused(
    folder_run: tuple[Path, Path],
) -> None:
    data, run = folder_run
    image = sorted((data / "train" / "ant").iterdir())[0]
    for place in (data / "train" / "bee" / "moved.png", data / "val" / "ant" / "moved.png"):
        image.rename(place)
        with pytest.raises(DataError, match=rf"gone or have another label: ant/{image.name}"):
            resume(run)
        place.rename(image)


def test_data_that_was_moved_is_named_where_it_is_now(
    folder_run: tuple[Path, Path], image_folder: Callable[..., Path]
) -> None:
    data, run = folder_run
    moved = data.rename(data.with_name("moved"))
    with pytest.raises(DataError, match="There is no dataset"):
        resume(run)
    other = image_folder({"train/ant": 6, "train/cow": 6, "val/ant": 3}, root="other")
    with pytest.raises(DataError, match="is not the data that"):
        resume(run, settings={"data": str(other)})
    assert resume(run, settings={"data": str(moved)}).epochs == 3
    assert Run.open(run)[1].data == str(moved)
    assert resume(run).epochs == 3


def test_without_its_list_of_images_a_run_still_refuses_other_ones(
    folder_run: tuple[Path, Path],
) -> None:
    data, run = folder_run
    (run / "split.csv").unlink()
    image = sorted((data / "train" / "ant").iterdir())[0]
    image.rename(image.with_name("renamed.png"))
    with pytest.raises(DataError, match="is not the data that .* began with"):
        resume(run)


def test_images_and_classes_that_are_new_are_left_out_with_a_note(
    little_config: Make,
    image_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    reporter: SilentReporter,
) -> None:
    """Of data that the run has split itself: when it goes on, and when it is made longer."""
    data = image_folder({"ant": 8, "bee": 8})
    config = replace(little_config("run"), data=str(data))
    config = replace(config, recipe=replace(config.recipe, batch_size=6))
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Interrupted):
            run_training(config)
    folder = Path(config.output_dir)
    image = sorted((data / "ant").iterdir())[0]
    for name in ("ant/new.png", "zebra/1.png", "zebra/2.png"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(image.read_bytes())
    note = f"Images of {data} that are new since {folder} began are left out: 3."
    assert resume(folder, reporter=reporter).epochs == 3
    assert reporter.notes.count(note) == 1  # type: ignore[attr-defined]
    run, config = Run.open(folder)
    recipe = replace(config.recipe, epochs=4, restart_epochs=(3,))
    run.extend(replace(config, recipe=recipe), "")
    assert resume(folder, reporter=reporter).epochs == 4
    assert reporter.notes.count(note) == 2  # type: ignore[attr-defined]


def test_an_image_that_was_repaired_is_taken_as_it_is_now_and_counted(
    folder_run: tuple[Path, Path], reporter: SilentReporter
) -> None:
    data, run = folder_run
    image = sorted((data / "train" / "ant").iterdir())[0]
    image.write_bytes((data / "val" / "bee").iterdir().__next__().read_bytes() + b"\0")
    assert resume(run, reporter=reporter).epochs == 3
    (warning,) = [w for w in reporter.warnings if "other contents" in w]  # type: ignore[attr-defined]
    assert warning.startswith("1 images have other contents")
    assert image.name in warning


def test_a_run_without_a_checkpoint_begins_with_the_data_as_it_is(
    folder_run: tuple[Path, Path],
) -> None:
    import shutil

    data, run = folder_run
    shutil.rmtree(run / "checkpoint")
    (data / "train" / "ant").rename(data / "train" / "asp")
    (data / "val" / "ant").rename(data / "val" / "asp")
    assert resume(run).epochs == 3
    assert "asp" in (run / "split.csv").read_text()
    assert "ant" not in (run / "split.csv").read_text()


def test_the_fingerprint_is_of_names_labels_and_parts_and_of_no_place(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})

    def fingerprint(folder: Path) -> str:
        return fingerprint_split(*open_for_training(Source(str(folder)), reporter=SilentReporter()))

    first = fingerprint(data)
    moved = data.rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    (image,) = (moved / "val" / "b").iterdir()
    image.rename(image.with_name("other" + image.suffix))
    assert fingerprint(moved) != first


@pytest.mark.parametrize("harm", ["damaged", "gone", "without its config"])
def test_best_weights_that_are_lost_are_replaced_by_the_best_to_come(
    harm: str, stopped: Path, little: Pair, reporter
) -> None:
    """At once, and not when they are scored, after hours; a run that is finished has none to come."""
    data = bytearray((stopped / WEIGHTS).read_bytes())
    if harm == "damaged":
        data[-9] ^= 1
        (stopped / WEIGHTS).write_bytes(data)
    else:
        (stopped / (WEIGHTS if harm == "gone" else CONFIG)).unlink()
    result = resume(stopped, datasets=little, reporter=reporter)
    (warning,) = reporter.warnings
    assert "The best weights so far, of epoch 1, are lost" in warning
    assert result.best.epoch in (2, 3)
    if harm == "damaged":
        (stopped / WEIGHTS).write_bytes(data)
        with pytest.raises(ModelError, match=r"is damaged: its checksum does not match\."):
            resume(stopped, datasets=little)
