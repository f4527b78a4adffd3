"""Every command computes fp32 in fp32, whatever the program has set; deterministic kernels change no bit on CPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import deitctl
from deitctl.arithmetic import WORKSPACE_VARIABLE
from deitctl.errors import ConfigError
from deitctl.models.checkpoint_io import WEIGHTS, load_tensors

SETTINGS: dict[str, Any] = {
    "model": "deit_tiny",
    "pretrained": False,
    "img_size": 32,
    "epochs": 1,
    "batch_size": 64,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "fraction": 0.1,
    "model_args": {"depth": 1, "embed_dim": 48, "num_heads": 3},
}


@pytest.fixture
def seen() -> Iterator[set[tuple[str, bool, bool]]]:
    """What is set whenever a layer computes, in a program that wants speed."""
    observed: set[tuple[str, bool, bool]] = set()

    def observe(module: nn.Module, _: object) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            observed.add(read())

    hook = register_module_forward_pre_hook(observe)
    torch.set_float32_matmul_precision("medium")
    yield observed
    hook.remove()
    torch.set_float32_matmul_precision("highest")


def read() -> tuple[str, bool, bool]:
    """Return how torch multiplies in fp32, and whether its kernels repeat their bits."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, **settings: Any) -> Path:
        deitctl.train("digits", output=tmp_path / name, **SETTINGS, **settings)
        return tmp_path / name

    return train


def test_no_command_takes_over_how_a_program_multiplies(
    seen, train, tmp_path: Path, make_image
) -> None:
    program, image = read(), tmp_path / "image.png"
    make_image().save(image)
    run = str(train("run"))
    commands: dict[str, Callable[[], object]] = {
        "train": lambda: None,  # done
        "eval": lambda: deitctl.evaluate("digits", model=run, workers=0),
        "predict": lambda: deitctl.load(run).predict(str(image)),
        "explain": lambda: list(deitctl.explain([image], model=run, output=tmp_path / "maps")),
        "export": lambda: deitctl.export(run, to="timm", num_images=2),
    }
    for name, command in commands.items():
        command()
        assert seen == {("highest", False, False)}, name
        assert read() == program, name
        seen.clear()


def test_deterministic_kernels_train_to_the_same_bits_on_a_cpu(
    seen, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    runs = [train("plain"), train("deterministic", deterministic=True)]
    assert seen == {("highest", False, False), ("highest", False, True)}
    plain, ours = (load_tensors(run / WEIGHTS) for run in runs)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    assert "deterministic = true" in (runs[1] / "run.toml").read_text(encoding="utf-8")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_ends_at_an_operator_without_a_deterministic_kernel_and_says_how_to_go_on(
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)

    def scatter(module: nn.Module, _: object) -> None:  # as a layer of a model might
        if module.training and isinstance(module, nn.LayerNorm):
            torch.zeros(2).put_(torch.zeros(1, dtype=torch.long), torch.ones(1))

    hook = register_module_forward_pre_hook(scatter)
    with pytest.raises(ConfigError) as caught:
        train("run", deterministic=True)
    hook.remove()
    assert caught.value.message.startswith("put_ has no kernel that repeats its bits")
    assert caught.value.hint.endswith("run --no-deterministic")
    assert not torch.are_deterministic_algorithms_enabled()


SPAWNED = """
import json, multiprocessing, sys
import deitctl

def note(metrics):
    pids.append([process.pid for process in multiprocessing.active_children()])

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # as on macOS
    pids = []
    settings = json.loads(sys.argv[1])
    deitctl.train("digits", output=sys.argv[2], callbacks=[type("Pids", (), {"on_epoch_end": staticmethod(note)})()],
                  **settings)
    print(json.dumps(pids))
"""


def test_loaders_that_are_spawned_serve_all_epochs_and_their_validation(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPAWNED)
    settings = json.dumps({**SETTINGS, "epochs": 2, "workers": 1, "fraction": 0.05})
    done = subprocess.run(
        [sys.executable, str(program), settings, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert len(first) == 1
    assert others == [first]
