"""What fuzzing has found stays mended, and a little of it is done again in every run of the tests."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOUND = sorted((Path(__file__).parent / "found").glob("*/*"))
TRIES = {
    "image": 400,
    "config": 40,
    "checkpoint": 300,
    "target_cache": 300,
    "data": 200,
    "run_log": 400,
    "state": 80,
    "export_metadata": 400,
}
"""Mutants of each target."""


@pytest.fixture(scope="module")
def fuzz() -> dict[str, ModuleType]:
    """The fuzzer's own files, which are no package."""
    loaded = {}
    for name in ("targets", "targets_records", "corpus"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "fuzz" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield loaded
    for name in loaded:
        del sys.modules[name]


@pytest.mark.parametrize("case", FOUND, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_an_input_that_once_failed_stays_fixed(case, fuzz):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about odd pickles
        find_target(fuzz, case.parent.name)(case.read_bytes())


def find_target(fuzz, name):
    return {**fuzz["targets"].TARGETS, **fuzz["targets_records"].TARGETS}[name]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(mutant) + 1))
        if rng.random() < 0.2:
            del mutant[at : at + int(rng.integers(1, 40))]
        elif rng.random() < 0.3:
            mutant[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif at < len(mutant):
            mutant[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))]))
    return bytes(mutant)


@pytest.mark.parametrize("name", TRIES)
def test_mutants_of_valid_inputs_raise_only_our_errors(name, fuzz, monkeypatch):
    monkeypatch.setenv("DEITCTL_MAX_PIXELS", "1000000")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target, seeds = find_target(fuzz, name), fuzz["corpus"].MAKERS[name]()
        rng = np.random.default_rng(0)
        for case in seeds:
            target(case)
        for number in range(TRIES[name]):
            target(mutate(rng, seeds[number % len(seeds)]))
