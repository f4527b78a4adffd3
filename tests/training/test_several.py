"""Two processes are one: the same training to rounding, each image scored once, one writer, one word of failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.validate import validate
from deitctl.events import SilentReporter
from deitctl.models.factory import load_model
from deitctl.recipes import DIGITS
from deitctl.settings import write_toml
from deitctl.training.launch import run_training

Pair = tuple[ImageDataset, ImageDataset]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def read_model_config(root: Path, teacher: Path | None) -> TrainConfig:
    """A configuration with every random part on, repeated augmentation and stochastic depth among them.

    An epoch of 60 images is batches of 14 and 16 in turn.
    """
    augment = replace(
        DIGITS.augment,
        rand_augment="rand-m9-mstd0.5-inc1",
        random_erase_prob=0.5,
        mixup=0.8,
        cutmix=1.0,
        repeated_aug=2,
        student_affine=(6.0, 0.06, 0.05),
        mixup_group_size=6,  # one of them is of both processes, of eight images each
    )
    recipe = replace(
        DIGITS, img_size=32, epochs=2, batch_size=16, drop_path_rate=0.2, augment=augment
    )
    distill = DistillConfig(
        teacher=str(teacher),
        mode="soft",
        alpha=0.5,
        tau=2.0,
        reduction="batchmean",
        dist_token=True,
        allow_weak_teacher=True,
        teacher_input="unmixed",
        views=2,
        logits_topk=100,
        teacher_cache=str(root.with_name(f"{root.name}-targets")),
    )
    return TrainConfig(
        model="deit_tiny",
        data="digits",
        recipe=recipe,
        precision="fp32",
        workers=0,
        output_dir=str(root),
        distill=distill if teacher else None,
        model_args={"depth": 2},
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, taught_once: Path) -> Path:
    """Where two processes trained `plain` and `taught`, filled the cache of `taught` and evaluated seven images."""
    out = tmp_path_factory.mktemp("together")
    configs = [
        read_model_config(out / "plain", None),
        read_model_config(out / "taught", taught_once),
    ]
    for config in configs:
        Path(f"{config.output_dir}.toml").write_text(write_toml(config))
    program = Path(__file__).with_name("together.py")
    files = [f"{c.output_dir}.toml" for c in configs]
    done = subprocess.run(
        [*LAUNCH, str(program), str(out), *files], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def log_of(run: Path, kind: str) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == kind]


def assert_close(ours: Path, theirs: Path) -> None:
    """Weights after all steps, and the loss of every step that was logged: equal but for rounding."""
    mine, other = (load_file(run / "checkpoint" / "model.safetensors") for run in (ours, theirs))
    for name, value in other.items():
        torch.testing.assert_close(
            mine[name], value, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    for a, b in zip(log_of(ours, "step"), log_of(theirs, "step"), strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    images = [[r["images_seen"] for r in log_of(run, "epoch")] for run in (ours, theirs)]
    assert images[0] == images[1]


@pytest.mark.parametrize("kind", ["plain", "taught"])
def test_two_processes_train_what_one_trains(
    kind: str, together: Path, little: Pair, tmp_path: Path, taught_once: Path
) -> None:
    teacher = taught_once if kind == "taught" else None
    alone = run_training(read_model_config(tmp_path / kind, teacher), datasets=little).run
    assert_close(together / kind, alone)


@pytest.mark.parametrize("size", [2, 6])
def test_gradients_that_add_up_train_what_whole_batches_train(
    size: int, little: Pair, tmp_path: Path
) -> None:
    whole = run_training(read_model_config(tmp_path / "whole", None), datasets=little).run
    parts = run_training(
        replace(read_model_config(tmp_path / "parts", None), micro_batch_size=size), datasets=little
    ).run
    assert_close(parts, whole)


def test_both_processes_return_the_result_of_all_images(together: Path, little: Pair) -> None:
    first, second = (json.loads((together / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert {**first, "rank": 1} == second
    assert first["size"] == 2
    loaded = load_model(str(together / "plain"), reporter=SilentReporter())
    eval_model = EvalModel(
        model=loaded.model,
        preprocessing=loaded.model_config.preprocessing,
        rows=tuple(range(10)),
        head="cls",
    )
    (alone,) = validate(
        [eval_model],
        select(little[1], range(7)),
        device=choose_device("cpu", "fp32"),
        batch_size=2,
        workers=0,
        reporter=SilentReporter(),
    )
    assert first["indices"] == alone.indices.tolist() == list(range(7))
    assert first["preds"] == alone.preds.tolist()
    assert first["loss"] == pytest.approx(alone.loss, rel=1e-5)
    assert first["top1"] == alone.top1


def test_processes_share_the_missing_teacher_targets(together: Path) -> None:
    """The training computed those of two views, `cache-teacher` those of a third: no record of 22 bytes is
    left empty."""
    record = json.loads((together / "rank-0.json").read_text())
    files = sorted((together / "taught-targets").glob("view-*.bin"))
    assert len(files) == 3
    assert all(b"\0" * 22 not in file.read_bytes() for file in files)
    assert record["num_computed"] == 60


def start(arguments: list[str], *, restarts: int = 0) -> subprocess.Popen[str]:
    launch = [*LAUNCH, "--max-restarts", str(restarts), "-m", "deitctl"]
    return subprocess.Popen(
        [*launch, *arguments],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_step(job: subprocess.Popen[str], run: Path, step: int) -> None:
    while job.poll() is None:  # starting takes minutes on a busy machine
        state = run / "checkpoint" / "state.json"
        try:
            if json.loads(state.read_text())["step"] >= step:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError("it ended without that state")


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the processes in /proc")
def test_a_process_that_dies_takes_the_job_down_and_a_restart_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two is killed within an epoch; torchrun starts both again, and they go on with the run they began."""
    monkeypatch.chdir(tmp_path)
    options = [
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
        "3",
        *("--opt", "lamb", "--sched", "wsd", "--freeze-blocks", "6"),
        "--precision",
        "fp32",
        "--format",
        "json",
    ]
    whole = start([*options, "--output", "whole"])
    talk = whole.communicate(timeout=300)
    assert whole.returncode == 0, talk[1][-3000:]
    assert len(talk[0].splitlines()) == 1  # one of them speaks
    job = start(options, restarts=1)
    run = tmp_path / "runs" / "deit_tiny-digits"
    wait_for_step(job, run, 6)
    os.kill(children(job.pid)[-1], signal.SIGKILL)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err[-3000:]
    assert "Resuming runs/deit_tiny-digits" in err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["epochs"] == 1
    for file in (
        "model.safetensors",
        "checkpoint/model.safetensors",
        "checkpoint/optimizer.safetensors",
    ):
        assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_commands_of_one_process_refuse_torchrun() -> None:
    command = [sys.executable, "-m", "deitctl", "predict", "x.jpg"]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "[process 1] error: predict works in one process. torchrun is for train, distill, cache-teacher, eval."
    ]


def test_a_batch_needs_a_pair_of_images_for_each_process(tmp_path: Path) -> None:
    options = [
        "train",
        "digits",
        "--model",
        "deit_tiny",
        "--img-size",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "2",
    ]
    done = start([*options, "--output", str(tmp_path / "run")])
    _, err = done.communicate(timeout=200)
    assert done.returncode == 1
    assert "A batch of 2 is too small for 2 processes" in err
