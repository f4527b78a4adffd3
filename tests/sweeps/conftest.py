"""Runs that are trained by nobody: their folders are written as a training would leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deitctl.config import TrainConfig
from deitctl.events import SilentReporter
from deitctl.sweeps.definition import define_sweep
from deitctl.sweeps.sweep import Sweep
from deitctl.sweeps.variation import parse_variations

SETTINGS = {"data": "digits", "model": "deit_tiny", "recipe.epochs": 2, "workers": 0}
Score = Callable[[TrainConfig], float]


def _write_result(root: Path, score: float, **others: Any) -> None:
    best = {"epoch": 1, "select": "top1", "score": score, "top1": score}
    record = {"run": str(root), "seconds": 3.0, "best": best, "teacher": None} | others
    (root / "result.json").write_text(json.dumps(record))


class FakeProcess:
    """Ends at once: with a result, or as `fails` says."""

    def __init__(self, config: TrainConfig, score: Score, fails: Mapping[str, int]) -> None:
        root = Path(config.output_dir)
        assert (root / "run.toml").is_file()
        self.code = fails.get(root.name, 0)
        if self.code == 0:
            _write_result(root, score(config))

    def poll(self) -> int:
        return self.code

    def stop(self, signum: int) -> None: ...

    def kill(self) -> None: ...

    def explain_failure(self, code: int) -> str:
        return f"code {code}"


@pytest.fixture
def write_result() -> Callable[..., None]:
    """Write the result of a run; others of its keys may be named."""
    return _write_result


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Sweep]:
    """Define a sweep of digits, by the keywords of `define_sweep` and settings."""

    def make(*vary: str, settings: Mapping[str, Any] | None = None, **options: Any) -> Sweep:
        defaults = {
            "preset": "",
            "teachers": (),
            "random": 0,
            "optuna": 0,
            "num_seeds": 2,
            "seed": 0,
        }
        reporter = options.pop("reporter", SilentReporter())
        definition = define_sweep(parse_variations(vary), **(defaults | options))
        return Sweep(definition, SETTINGS | (settings or {}), {}, tmp_path / "out", reporter)

    return make


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Train a sweep by processes that end at once; return the names of those that were started."""
    monkeypatch.setattr("deitctl.sweeps.run_queue.POLL_S", 0)

    def run(
        sweep: Sweep, score: Score, fails: Mapping[str, int] | None = None, num_jobs: int = 1
    ) -> list[str]:
        started: list[str] = []

        def start(config: TrainConfig, log: Path, environ: Mapping[str, str]) -> FakeProcess:
            started.append(Path(config.output_dir).name)
            return FakeProcess(config, score, fails or {})

        sweep.train(num_jobs=num_jobs, num_gpus=0, start=start)
        return started

    return run
