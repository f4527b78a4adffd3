"""A run is trained again: equal to the last bit, or where they part, or why they could not be equal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import deitctl
from deitctl.cli.app import app
from deitctl.errors import ConfigError, Interrupted, ModelError, TeacherError
from deitctl.events import SilentReporter, Task
from deitctl.training.extensions import FILE as EXTENSIONS
from deitctl.training.reproduction_check import find_teacher_changes
from deitctl.training.session import FILE as SESSIONS
from deitctl.training.session import read_sessions

SETTINGS: dict[str, Any] = {
    "pretrained": False,
    "img_size": 32,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "model_args": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "ema_decay": 0.9,
}
WEIGHT = "blocks.0.attn.qkv.weight"


class StopsIn(SilentReporter):
    """SIGTERM when a task whose label begins so has advanced by so many images."""

    def __init__(self, label: str, num_images: int) -> None:
        self.label, self.num_images = label, num_images

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            yield _StopsTask(self.num_images) if label == self.label else task


class _StopsTask:
    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def skip(self, amount: int) -> None:
        self.num_images -= amount

    def advance(self, amount: int = 1, **fields: object) -> None:
        self.num_images -= amount
        if self.num_images <= 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_image: Callable[..., Any]) -> Path:
    """Twelve training images and four of validation, of two classes."""
    root = tmp_path_factory.mktemp("images") / "photos"
    for part, count in (("train", 6), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 40 * number + 10 * (part == "val") + i
                make_image(24, 18, seed).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run of two epochs of three steps, that was stopped in its second and resumed."""
    root = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(Interrupted):
        deitctl.train(
            images, model="deit_tiny", epochs=2, output=root, reporter=StopsIn("epoch 2/2", 4),
            **SETTINGS,
        )  # fmt: skip
    shutil.copytree(root, root.with_name("stopped"))
    deitctl.train(resume=root)
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def hash_files(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def change_record(run: Path, kind: str, changes: Mapping[str, Any]) -> None:
    """Change the last record of a kind in a run's log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [*_, last] = [line for line in lines if line["kind"] == kind]
    last.update(changes)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_was_stopped_and_resumed_is_equal_to_the_last_bit(trained: Path) -> None:
    before = hash_files(trained)
    result = deitctl.reproduce(trained)
    assert (result.is_equal, result.is_whole, result.first) == (True, True, None)
    assert (result.epochs, result.num_epochs_compared, result.steps) == (2, 2, 6)
    assert result.num_steps_compared == 4  # the first and the last step of an epoch
    tensors = len(load_file(trained / "model.safetensors"))
    assert result.num_tensors_compared == 3 * tensors
    assert result.has_compared_result
    assert hash_files(trained) == before
    assert [session.step for session in read_sessions(trained)] == [0, 4]


def test_of_an_unfinished_run_is_compared_what_there_is(trained: Path) -> None:
    result = deitctl.reproduce(trained.with_name("stopped"))
    assert (result.is_equal, result.is_whole, result.has_compared_result) == (True, True, False)
    assert result.steps == 4  # that of its checkpoint


def test_the_beginning_alone_is_compared(trained: Path) -> None:
    result = deitctl.reproduce(trained, steps=1)
    assert (result.is_equal, result.is_whole, result.steps) == (True, False, 1)
    assert (result.num_steps_compared, result.num_tensors_compared) == (1, 0)
    result = deitctl.reproduce(trained, epochs=1)
    assert (result.is_equal, result.epochs, result.num_epochs_compared) == (True, 1, 1)


def test_a_changed_weight_is_named_with_the_size_of_its_difference(run: Path) -> None:
    path = run / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {"deitctl": file.metadata()["deitctl"]}
    tensors = load_file(path)
    tensors[WEIGHT][5, 7] += 0.25
    save_file(tensors, path, metadata)
    result = deitctl.reproduce(run)
    assert result.first is not None
    assert result.first.name == f"saved weights: {WEIGHT}"
    assert (result.first.num_different, result.first.num_values) == (1, tensors[WEIGHT].numel())
    assert result.first.difference == pytest.approx(0.25)
    assert [parting.name for parting in result.partings] == [result.first.name]


def test_a_damaged_weight_is_refused_before_training(run: Path) -> None:
    data = bytearray((run / "checkpoint/model.safetensors").read_bytes())
    data[-5] ^= 1
    (run / "checkpoint/model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        deitctl.reproduce(run, reporter=StopsIn("epoch 1/2", 0))


def test_it_stops_at_the_first_parting_unless_it_is_to_go_on(run: Path, tmp_path: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "loss": first["loss"] + 0.5})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    change_record(run, "epoch", {"val_loss": 9.0})
    result = deitctl.reproduce(run, output=tmp_path / "again")
    assert (result.steps, result.is_whole) == (1, False)
    assert [(p.where, p.step, p.name) for p in result.partings] == [("step", 0, "loss")]
    assert result.first is not None
    assert result.first.difference == pytest.approx(0.5)
    assert (tmp_path / "again" / "metrics.jsonl").exists()
    result = deitctl.reproduce(run, to_end=True)
    assert [p.name for p in result.partings] == ["loss", "val_loss"]
    assert (result.is_whole, result.is_equal) == (True, False)


def test_other_threads_and_versions_are_said_before_the_first_step(
    run: Path, reporter: Any
) -> None:
    session = json.loads((run / SESSIONS).read_text().splitlines()[0])
    (run / SESSIONS).write_text(json.dumps({**session, "num_threads": 64, "torch": "2.0.1"}))
    result = deitctl.reproduce(run, steps=1, reporter=reporter)
    assert [(d.name, d.recorded, d.is_change) for d in result.differences] == [
        ("torch", "2.0.1", False),
        ("num_threads", "64", False),
    ]
    assert (
        "threads: 64 in the run, 1 here (as in the run: OMP_NUM_THREADS=64)." in reporter.warnings
    )


def test_changed_images_are_refused_by_name_and_trained_on_when_allowed(
    run: Path, images: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(images, tmp_path / "other"))
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace(str(images), str(other)))
    shutil.copy(other / "train/dog/0.png", other / "train/cat/3.png")
    with pytest.raises(ConfigError, match=r"images with other contents: \S*3\.png"):
        deitctl.reproduce(run)
    result = deitctl.reproduce(run, allow_changes=True)
    assert [d.name for d in result.differences] == ["data"]
    assert not result.is_equal
    (other / "train/cat/3.png").unlink()
    with pytest.raises(ConfigError, match=r"images that are gone .*3\.png"):
        deitctl.reproduce(run)


def test_runs_that_no_folder_holds_are_refused_in_words(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "folds.toml").write_text("")
    with pytest.raises(ConfigError, match="runs of several folds"):
        deitctl.reproduce(tmp_path / "folds")
    with pytest.raises(ConfigError, match="the run itself"):
        deitctl.reproduce(run, output=run / "checkpoint" / "again")
    (run / EXTENSIONS).write_text('{"objective": {"name": "mine"}}')
    with pytest.raises(ConfigError, match="trained with the objective of a program"):
        deitctl.reproduce(run)


def test_initial_weights_that_changed_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    text = (run / SESSIONS).read_text()
    began = read_sessions(run)[0].initial_weights
    (run / SESSIONS).write_text(text.replace(began, "0" * len(began)))
    with pytest.raises(ConfigError, match="initial weights of deit_tiny are others"):
        deitctl.reproduce(run)
    assert not list((tmp_path / "temporary").iterdir())


def test_an_interruption_says_how_far_it_was_equal(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Interrupted) as caught:
        deitctl.reproduce(trained, reporter=StopsIn("epoch 2/2", 4))
    assert caught.value.saved == "Up to step 4 it is equal."
    assert caught.value.resume_command == f"deitctl reproduce {trained}"
    assert not list(tmp_path.glob("deitctl-reproduce-*"))


def test_the_exit_code_says_whether_it_is_equal(run: Path) -> None:
    change_record(run, "epoch", {"top1": 12.5})
    done = CliRunner().invoke(app, ["reproduce", str(run), "--format", "json", "-q"])
    assert (done.exit_code, json.loads(done.stdout)["first"]["name"]) == (3, "top1")
    done = CliRunner().invoke(
        app, ["reproduce", str(run), "--steps", "1", "--format", "table", "-q"]
    )
    assert done.exit_code == 0
    assert "equal to the last bit: 1 logged step, 0 epochs and 0 tensors" in done.stdout


def test_a_distilled_run_with_cached_targets_is_equal_and_another_teacher_is_refused(
    images: Path, tmp_path: Path, imagenet_teacher: Callable[..., Path]
) -> None:
    teacher = deitctl.train(
        images, model="test_resnet", epochs=1, output=tmp_path / "teacher",
        **{k: v for k, v in SETTINGS.items() if k != "model_args"},
    ).run  # fmt: skip
    student = deitctl.distill(
        images, teacher=teacher, student="deit_tiny", epochs=1, views=1, output=tmp_path / "student",
        allow_weak_teacher=True, **SETTINGS,
    ).run  # fmt: skip
    result = deitctl.reproduce(student)
    assert (result.is_equal, result.is_whole) == (True, True)
    record = json.loads((student / "teacher.json").read_text())
    record["weights_fingerprint"] = "0" * 16
    (student / "teacher.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="teacher .* has other weights"):
        deitctl.reproduce(student)
    shutil.rmtree(teacher)
    with pytest.raises((ModelError, TeacherError), match="teacher"):
        deitctl.reproduce(student)


def test_each_of_several_teachers_is_compared_with_its_own_record() -> None:
    record = {"weights_fingerprint": "a", "more_teachers": [{"weights_fingerprint": "b"}]}
    preflights: Any = [
        SimpleNamespace(name=name, weights_fingerprint=key, finetuned="no")
        for name, key in (("first", "a"), ("second", "c"))
    ]
    [change] = find_teacher_changes(record, preflights)
    assert (change.name, change.recorded, change.now) == ("teacher", "b", "c")
    assert change.message == "the teacher second has other weights than in the run"
    assert not find_teacher_changes({}, preflights)
