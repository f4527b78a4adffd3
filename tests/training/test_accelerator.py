"""Whole steps of every kind of training, and an evaluation, keep to budgets on a pretended accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PRETEND = Path(__file__).parents[1] / "pretend"
sys.path.insert(0, str(PRETEND))
from mps_operators import find_missing, has_kernel  # noqa: E402
from nondeterminism import find_refused  # noqa: E402

Measured = dict[str, dict[str, Any]]


MAX_OPERATORS = {
    "labels": 600,
    "mixed": 850,
    "unmixed": 893,
    "soft": 895,
    "soft unmixed": 909,
    "features": 805,
    "micro-batches": 1610,
    "convnet": 1800,
    "evaluation": 161,
}
"""Launched on the device a step, or a batch of an evaluation, with two blocks: a twentieth above what they were."""


@pytest.fixture(scope="module")
def measured() -> Measured:
    """A process of its own: torch's Python backend stays registered for good."""
    program = [sys.executable, str(PRETEND / "runs.py"), "--steps", "2", "--depth", "2"]
    run = subprocess.run(
        [*program, *MAX_OPERATORS], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def list_lines(measured: dict[str, Any], kind: str) -> list[str]:
    """Return where something was recorded, for the message of a test."""
    return [f"{line}: {what}, {count:g}" for k, what, line, count in measured["lines"] if k == kind]


@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_nobody_waits_for_the_device(measured: Measured, kind: str) -> None:
    assert list_lines(measured[kind], "wait") == []


@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_copies_to_the_device_are_from_pinned_memory(measured: Measured, kind: str) -> None:
    assert list_lines(measured[kind], "unpinned copy") == []


@pytest.mark.parametrize("fault", ["device mismatch", "float64"])
@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_nothing_is_computed_that_an_accelerator_refuses(
    measured: Measured, kind: str, fault: str
) -> None:
    assert list_lines(measured[kind], fault) == []


@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_a_step_launches_few_operators(measured: Measured, kind: str) -> None:
    assert MAX_OPERATORS[kind] / 2 < measured[kind]["operators"] <= MAX_OPERATORS[kind]


@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_every_operator_has_a_kernel_on_mps(measured: Measured, kind: str) -> None:
    names = measured[kind]["names"]
    assert {name: names[name] for name in find_missing(names)} == {}


@pytest.mark.parametrize("kind", MAX_OPERATORS)
def test_every_operator_has_a_deterministic_kernel_on_cuda(measured: Measured, kind: str) -> None:
    names = measured[kind]["names"]
    assert {name: names[name] for name in find_refused(names)} == {}


def test_operators_without_a_deterministic_kernel_are_told_from_their_neighbors() -> None:
    refused = [
        "aten._upsample_bicubic2d_aa_backward.default",
        "aten.put_.default",
        "aten.median.dim",
    ]
    others = [
        "aten._upsample_bicubic2d_aa.default",
        "aten.index_put_.default",
        "aten.median.default",
    ]
    assert find_refused([*refused, *others]) == refused


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("add.Tensor", True),  # by its structured delegate
        ("relu", True),  # its own kernel
        ("one_hot", True),  # made of other operators
        ("mode", False),
        ("no_such_operator", False),
    ],
)
def test_the_table_of_torch_knows_which_operators_mps_has(operator: str, expected: bool) -> None:
    assert has_kernel(operator) is expected
