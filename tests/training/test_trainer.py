"""A run goes on through signals, a disk that fills, memory that runs out, and weights that are newer than its state."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deitctl import device
from deitctl.config import ProgressiveResize, TrainConfig
from deitctl.data import loader_pool
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import select
from deitctl.errors import ConfigError, DataError, DeitctlError, Interrupted
from deitctl.evaluation import batch_size
from deitctl.events import SilentReporter, Task
from deitctl.models.checkpoint_io import (
    WEIGHTS,
    load_tensors,
    read_metadata,
    save_tensors,
)
from deitctl.models.vit import VisionTransformer
from deitctl.training import build, step
from deitctl.training.best_weights import SCORE_KEY, load_best
from deitctl.training.build import TrainSetup
from deitctl.training.checkpointer import AsyncCheckpointer
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.engine import Engine
from deitctl.training.estimate import estimate_seconds
from deitctl.training.launch import resume, run_training
from deitctl.training.monitor import LossMonitor, Observation
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import RECORD_CHECKSUM
from deitctl.training.state import Progress, TrainState

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="limits the address space, looks into /proc"
)


class Does(SilentReporter):
    """Calls something when a task of the given name begins."""

    def __init__(self, label: str, action: Callable[[], None]) -> None:
        self.label, self.action = label, action

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            if label == self.label:
                self.action()
            yield task


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def stopped_after(config: TrainConfig, epochs: int, little: Pair) -> Path:
    with pytest.raises(Interrupted):
        run_training(config, datasets=little, reporter=Does(f"epoch {epochs + 1}/3", stop))
    return Path(config.output_dir)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="what starts elsewhere takes seconds")
def test_loader_processes_start_once_a_run(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once an evaluation, of which an epoch has two and the end one; the weights are those without any."""
    start, started = loader_pool._start_loader, list[int]()
    monkeypatch.setattr(
        loader_pool, "_start_loader", lambda *arguments: (started.append(1), start(*arguments))[1]
    )
    monkeypatch.setattr(batch_size, "DEFAULT", 8)  # one batch would start none
    config = little_config("loaders")
    assert config.recipe.epochs == 3
    assert config.recipe.ema_decay
    run = run_training(replace(config, workers=2), datasets=little).run
    assert len(started) == 2
    alone = run_training(replace(little_config("alone"), workers=0), datasets=little).run
    assert len(started) == 2
    assert (run / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()


def state_of(run: Path) -> dict[str, object]:
    return json.loads((run / "checkpoint" / "state.json").read_text())


def test_saved_weights_carry_their_epoch_and_score(little_config: Make, little: Pair) -> None:
    result = run_training(short(little_config("run")), datasets=little)
    note = json.loads(read_metadata(result.run / WEIGHTS)[SCORE_KEY])
    state = state_of(result.run)
    assert note == {
        "epoch": state["best_epoch"],
        "select": "top1",
        "score": state["best_score"],
        "weights": state["best_weights"],
        "images": len(little[1].labels),
    }
    assert (note["epoch"], note["weights"]) == (result.best.epoch, result.best.weights)


def keep_weights_of(run: Path, note: object) -> None:
    """Write the run's weights again as those that were kept for another epoch, without telling the state."""
    text = note if isinstance(note, str) else json.dumps(note)
    save_tensors(run / WEIGHTS, load_tensors(run / WEIGHTS), {SCORE_KEY: text})


def test_weights_saved_after_the_checkpoint_are_the_best_so_far(
    little_config: Make, little: Pair
) -> None:
    """Killed between the two: the note of a later epoch is believed, and nothing worse takes its place."""
    run = stopped_after(little_config("run"), 1, little)
    keep_weights_of(run, {"epoch": 2, "select": "top1", "score": 100.0, "weights": "ema"})
    before = (run / WEIGHTS).read_bytes()
    result = resume(run, datasets=little)
    assert (result.best.epoch, result.best.weights) == (2, "ema")
    assert state_of(run)["best_score"] == 100.0
    assert (run / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("note", "epoch"),
    [
        (
            {"epoch": 5, "select": "top1", "score": 50.0, "weights": "model"},
            5,
        ),  # later, whatever it scored
        ({"epoch": 5, "top1": 50.0, "weights": "model"}, 5),  # of an older deitctl
        ({"epoch": 5, "select": "loss", "score": -1.0, "weights": "model"}, 4),  # of another run
        ({"epoch": 4, "select": "top1", "score": 99.0, "weights": "model"}, 4),  # the state's own
        ({"epoch": 3, "select": "top1", "score": 99.0, "weights": "model"}, 4),
        ({"epoch": 9}, 4),
        ({"epoch": "x"}, 4),
        ("{", 4),
        ("[]", 4),
        ("3", 4),
        ("null", 4),
        ("", 4),
        ({"epoch": None, "top1": 1, "weights": "model"}, 4),
    ],
)
def test_only_a_valid_note_of_a_later_epoch_is_loaded(
    note: object, epoch: int, tmp_path: Path
) -> None:
    save_tensors(tmp_path / WEIGHTS, {"x": torch.ones(1)})
    keep_weights_of(tmp_path, note)
    progress = Progress(epoch=5, best_epoch=4, best_score=80.0, best_weights="ema")
    state = SimpleNamespace(progress=progress)
    holder = SimpleNamespace(run=Run(tmp_path), state=state, metric="top1")
    load_best(holder)  # type: ignore[arg-type]
    kept = (4, 80.0, "ema") if epoch == 4 else (5, 50.0, "model")
    assert (progress.best_epoch, progress.best_score, progress.best_weights) == kept


def test_a_run_without_weights_has_no_note_to_load(tmp_path: Path) -> None:
    progress = Progress()
    holder = SimpleNamespace(run=Run(tmp_path), state=SimpleNamespace(progress=progress))
    load_best(holder)  # type: ignore[arg-type]
    assert progress == Progress()


def test_a_signal_within_a_step_saves_when_the_step_is_done(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the forward passes of two micro-batches of the second step."""
    config, calls, compute_losses = (
        replace(short(little_config("run")), micro_batch_size=8),
        [],
        step.compute_losses,
    )

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            stop()
        return compute_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", interrupted)
        with pytest.raises(Interrupted) as error:
            run_training(config, datasets=little)
    assert error.value.exit_code == 143
    run = Path(config.output_dir)
    assert state_of(run)["step"] == 2
    whole = run_training(
        replace(short(little_config("whole")), micro_batch_size=8), datasets=little
    ).run
    resume(run, datasets=little)
    for file in ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", WEIGHTS):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def short(config: TrainConfig) -> TrainConfig:
    """One epoch, of four steps."""
    return replace(config, recipe=replace(config.recipe, epochs=1))


def test_a_disk_that_fills_ends_the_run_in_a_line_and_a_resume_ends_as_if_it_had_not(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(short(little_config("whole")), datasets=little).run
    config, sync = short(little_config("run", save_every="1")), os.fsync
    full, stage = [False], AsyncCheckpointer.stage

    def fsync(handle: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    def fill_before(checkpointer: AsyncCheckpointer, state: TrainState) -> None:
        checkpointer.finish()  # what was under way is on the disk
        full[0] = state.progress.step >= 2
        stage(checkpointer, state)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(AsyncCheckpointer, "stage", fill_before)
    with pytest.raises(DeitctlError, match="No space left on device") as error:
        run_training(config, datasets=little)
    run = Path(config.output_dir)
    assert f"deitctl train --resume {run}" in error.value.hint
    assert not [p for p in run.rglob("*") if ".new" in p.name or p.name.startswith(".")]
    assert state_of(run)["step"] == 1
    monkeypatch.undo()
    resume(run, datasets=little)
    for file in ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", WEIGHTS):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def test_with_on_bad_image_stop_an_unreadable_image_ends_the_run(
    little_config: Make, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2})
    damaged = root / "train" / "b" / "3.png"
    damaged.write_text("not an image")
    config = little_config("run", data=str(root), on_bad_image="stop")
    recipe = replace(
        config.recipe, batch_size=16, augment=replace(config.recipe.augment, repeated_aug=1)
    )
    with pytest.raises(
        DataError, match=rf"{damaged} is a text file, not an image.*--on-bad-image stop"
    ):
        run_training(replace(config, recipe=recipe))


@pytest.mark.slow
@LINUX
def test_training_continues_when_memory_really_runs_out(tmp_path: Path) -> None:
    program = Path(__file__).with_name("short_of_memory.py")
    spec = importlib.util.spec_from_file_location("short_of_memory", program)
    assert spec is not None
    assert spec.loader is not None
    here = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(here)
    roomy = here.train(str(tmp_path / "roomy"), 0)
    # How much address space the allocator fragments differs from time to time, so that a limit may be too little
    # between two that are enough: limits are tried until one is too little for 256 images and enough for fewer.
    short = None
    for number in range(24):
        room = str(250 + 60 * (number % 4) + 10 * (number // 4))
        command = [sys.executable, str(program), str(tmp_path / room), room]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            assert "Memory runs out even with 2 images" in done.stderr, done.stderr[-2000:]
        elif json.loads(done.stdout)["warnings"]:
            short = json.loads(done.stdout)
            break
    assert short is not None
    assert roomy["warnings"] == []
    assert (
        short["warnings"][0]
        == "Out of memory with micro-batches of 256 images: continuing with 128, and the batch size is still 256."
    )
    for name, tolerance in (("train", 1e-5), ("grad_norm", 1e-4), ("loss", 1e-4)):
        assert short[name] == pytest.approx(roomy[name], rel=tolerance)
    assert state_of(tmp_path / room)["micro_batch_size"] <= 128


def started(root: Path) -> subprocess.Popen[str]:
    """Start a real training of 22 short steps, and return when it is among them."""
    command = [
        sys.executable,
        "-m",
        "deitctl",
        "train",
        "digits",
        "--model",
        "deit_tiny",
        "--img-size",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "64",
        "--workers",
        "0",
        "--save-every",
        "1h",
        "--precision",
        "fp32",
        "--output",
        str(root),
        "--format",
        "json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (root / "metrics.jsonl").exists(), run)
    return run


def wait_for(there: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert run.poll() is None, run.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_sigusr1_saves_and_the_run_ends_as_usual(tmp_path: Path) -> None:
    """On the real command line, which would save by itself in an hour only."""
    root = tmp_path / "run"
    with started(root) as run:
        try:
            assert not (root / "checkpoint").exists()
            run.send_signal(signal.SIGUSR1)
            wait_for((root / "checkpoint" / "state.json").exists, run)
            assert state_of(root)["step"] < 23
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 0, err
    assert json.loads(out)["epochs"] == 1
    assert state_of(root)["step"] == 23


@pytest.mark.parametrize("signum", [signal.SIGTERM, getattr(signal, "SIGUSR1", None)])
@pytest.mark.parametrize("label", ["fit the new head", "estimate"])
def test_signals_before_the_first_step_do_not_wait_for_it(
    label: str,
    signum: signal.Signals | None,
    little_config: Make,
    little: Pair,
    tmp_path: Path,
    deit: Callable[..., VisionTransformer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the head is fitted or the speed is measured; the run then ends in the same bytes."""
    if signum is None:
        pytest.skip("there is no SIGUSR1 here")
    weights = tmp_path / "five.safetensors"
    save_tensors(weights, deit(classes=5).state_dict())
    config = little_config("whole", model_args={}, weights=str(weights))
    config = replace(config, recipe=replace(config.recipe, epochs=1, head_init="ridge"))
    whole = run_training(config, datasets=little).run
    saved: list[int] = []
    save = AsyncCheckpointer.save

    def record(self: AsyncCheckpointer, state: TrainState, **options: Any) -> None:
        saved.append(state.progress.step)
        save(self, state, **options)

    monkeypatch.setattr(AsyncCheckpointer, "save", record)
    reporter = Does(label, lambda: signal.raise_signal(signum))
    if label == "estimate":

        def measure(setup: TrainSetup, *, pause: Callable[[], None]) -> float | None:
            signal.raise_signal(signum)
            return estimate_seconds(setup, pause=pause)

        monkeypatch.setattr("deitctl.training.begin.estimate_seconds", measure)
    config = replace(config, output_dir=str(tmp_path / "stopped"))
    if signum == signal.SIGTERM:
        with pytest.raises(Interrupted):
            run_training(config, datasets=little, reporter=reporter)
        assert saved == [0]
        resume(tmp_path / "stopped", datasets=little)
    else:
        run_training(config, datasets=little, reporter=reporter)
        assert saved == [0, 4]
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_finished_run_without_its_log_is_an_error_in_a_line(
    little_config: Make, little: Pair
) -> None:
    config = little_config("run")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    run = run_training(config, datasets=little).run
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"metrics.jsonl has no record of its last epoch"):
        resume(run, datasets=little)


def test_a_resume_in_an_early_epoch_continues_to_the_full_size(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, reporter: Any
) -> None:
    """Two epochs of 16 pixels and one of 32: a resume ends as if there had been no stop, at the full size."""

    def early(name: str) -> TrainConfig:
        config = little_config(name)
        return replace(
            config,
            recipe=replace(
                config.recipe,
                epochs=3,
                progressive_resize=ProgressiveResize(scale=0.5, fraction=0.7),
            ),
        )

    config, sizes, compute_losses = early("run"), [], step.compute_losses

    def seen(engine: Engine, batch: DeviceBatch) -> object:
        sizes.append(batch.images.shape[-1])
        if len(sizes) == 5:
            stop()
        return compute_losses(engine, batch)

    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", seen)
        # whose steps are none of the run's
        patch.setattr("deitctl.training.begin.estimate_seconds", lambda *_, **__: None)
        with pytest.raises(Interrupted):
            run_training(config, datasets=little, reporter=reporter)
        assert any("so few patches" in said for said in reporter.warnings)
        resume(Path(config.output_dir), datasets=little)
    assert sizes == [16] * 8 + [32] * 4
    whole = run_training(early("whole"), datasets=little).run
    for file in ("checkpoint/model.safetensors", WEIGHTS):
        assert (Path(config.output_dir) / file).read_bytes() == (whole / file).read_bytes(), file


def test_on_a_cpu_micro_batches_fit_the_block_that_malloc_keeps(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model of six tokens 3,072 numbers an image: eight images fit, and the sum is that of the whole batch."""
    sizes, compute_losses = [], step.compute_losses

    def seen(engine: Engine, batch: DeviceBatch) -> object:
        sizes.append(len(batch.keys))
        return compute_losses(engine, batch)

    whole = run_training(short(little_config("whole")), datasets=little).run
    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", seen)
        patch.setattr(device, "MAX_HEAP_BLOCK", 8 * 5 * 4 * 192 * 4)
        parts = run_training(short(little_config("parts")), datasets=little).run
    assert sizes == [8, 6, 8, 8] * (len(sizes) // 4)  # of batches of 14 and 16 in turn
    assert state_of(parts)["micro_batch_size"] == 0  # it is the device's, not the run's
    a, b = (load_tensors(run / "checkpoint" / "model.safetensors") for run in (whole, parts))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_an_epoch_trains_on_every_image_once_and_logs_the_mean_over_them(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 58 images in batches of 28 and 30: a mean of the batches' means would be another."""
    config = short(little_config("run"))
    augment = replace(config.recipe.augment, repeated_aug=1)
    config = replace(config, recipe=replace(config.recipe, batch_size=32, augment=augment))
    monitor, seen = LossMonitor.update, list[tuple[list[int], float]]()

    def update(self: LossMonitor, observation: Observation) -> None:
        seen.append(([key.index for key in observation.keys], observation.reading.read()["loss"]))
        monitor(self, observation)

    monkeypatch.setattr(LossMonitor, "update", update)
    run = run_training(config, datasets=(select(little[0], range(58)), little[1])).run
    assert [len(indices) for indices, _ in seen] == [28, 30]
    assert sorted(index for indices, _ in seen for index in indices) == list(range(58))
    (epoch,) = (r for r in Run(run).records("epoch"))
    assert epoch["images_seen"] == 58
    mean = sum(len(indices) * loss for indices, loss in seen) / 58
    assert epoch["train"]["loss"] == pytest.approx(mean, rel=1e-6)


def test_a_run_whose_epochs_were_divided_otherwise_is_not_resumed(
    little_config: Make, little: Pair
) -> None:
    run = stopped_after(little_config("run"), 1, little)
    text = (run / "run.toml").read_text()
    assert "batch_size = 16" in text
    (run / "run.toml").write_text(text.replace("batch_size = 16", "batch_size = 8"))
    state = state_of(run)
    state["settings"] = {}  # of an earlier version, which kept none, and had no checksums
    del state[RECORD_CHECKSUM]
    (run / "checkpoint" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"it is at step 4 in epoch 2, and an epoch has 8 now"):
        resume(run, datasets=little)


def test_views_of_another_version_are_a_warning(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, reporter: Any
) -> None:
    config = short(little_config("run"))
    with monkeypatch.context() as patch:
        patch.setattr(build, "VIEWS_VERSION", 1)
        run_training(config, datasets=little)
    resume(Path(config.output_dir), datasets=little, reporter=reporter)
    assert any("another version's training views" in warning for warning in reporter.warnings)
