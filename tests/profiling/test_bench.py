"""Every stage of a real training is measured, the parts add up to it, nothing is left behind, failures are said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.cli.bench import duration, percent
from deitctl.data.dataset import FileSource
from deitctl.device import choose_device
from deitctl.errors import ConfigError, DataError
from deitctl.profiling import peak as ceiling
from deitctl.profiling.bench import _affordable, bench
from deitctl.profiling.bench_data import each, smaller
from deitctl.profiling.bench_result import BenchResult, Limit, Stage, StageClock, pooled
from deitctl.profiling.clock import Timing
from deitctl.training.configure import Request

CPU = choose_device("cpu", "fp32")
STAGES = [
    "open",
    "read",
    "decode",
    "augment",
    "view",
    "eval_transform",
    "loader",
    "teacher",
    "forward",
    "backward",
    "loop_at_hand",
    "loop",
    "optimizer",
    "average",
    "save",
    "evaluation",
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small matrices and copies; temporary folders where the test sees what is left of them."""
    monkeypatch.setitem(ceiling.MATRIX, "cpu", 128)
    monkeypatch.setattr(ceiling, "COPIED", 2**20)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


def request(data: str = "digits", **given: object) -> Request:
    settings = {"recipe.batch_size": 4, "workers": 0, "precision": "fp32", "device": "cpu", **given}
    return Request(data=data, model="deit_tiny", given=settings)


@pytest.fixture(scope="module")
def taught() -> BenchResult:
    """Distillation from a convnet that is asked about views."""
    before = ceiling.MATRIX["cpu"]
    ceiling.MATRIX["cpu"] = 128
    try:
        return bench(request(), teacher="test_resnet", seconds=0.1)
    finally:
        ceiling.MATRIX["cpu"] = before


def test_every_stage_has_a_speed(taught: BenchResult) -> None:
    assert [
        name for name in taught.stages if "step" not in name
    ] == STAGES  # a slow machine leaves the steps out
    for stage in taught.stages.values():
        assert stage.timing is not None, stage
        assert stage.timing.rate > 0
        assert stage.timing.first > 0
    shares = {name for name, stage in taught.stages.items() if stage.share is not None}
    assert shares == {"teacher", "forward", "backward", "optimizer", "average", "evaluation"}
    assert 2 <= taught.job["measured_batch_size"] <= taught.job["batch_size"] == 4
    assert taught.job["train_images"] == 1442


def test_the_parts_add_up_to_the_loop(taught: BenchResult) -> None:
    assert list(taught.parts) == [
        "teacher",
        "forward",
        "backward",
        "optimizer",
        "average",
        "loop",
        "waiting",
        "slowed",
    ]
    share = taught.job["measured_batch_size"] / taught.job["batch_size"]  # of what a step does once
    once = sum(taught.stages[name].timing.seconds for name in ("optimizer", "average"))
    whole = taught.stages["loop"].timing.seconds - once * (1 - share)
    assert sum(taught.parts.values()) == pytest.approx(whole)
    assert taught.parts["waiting"] > 0  # without processes a batch is rendered while the step waits


def test_a_teacher_is_a_stage_with_operations_of_its_own(taught: BenchResult) -> None:
    assert taught.job["teacher"] == "test_resnet"
    assert taught.flops["teacher"] > 0
    assert taught.stages["teacher"].share > 0
    assert taught.parts["teacher"] == taught.stages["teacher"].timing.seconds


def test_shares_are_operations_times_speed_over_the_ceiling(taught: BenchResult) -> None:
    products = taught.ceilings.flops["fp32"]
    for name, cost in (
        ("forward", taught.flops["forward"]),
        ("backward", taught.flops["step"] - taught.flops["forward"]),
        ("teacher", taught.flops["teacher"]),
        ("evaluation", taught.flops["forward"]),
    ):
        stage = taught.stages[name]
        assert stage.share == pytest.approx(cost * stage.timing.rate / products)


def test_the_record_is_json_with_all_of_it(taught: BenchResult) -> None:
    record = json.loads(json.dumps(taught.to_dict()))
    assert set(record) == {
        "job",
        "ceilings",
        "flops_per_image",
        "stages",
        "seconds_per_image",
        "expected",
        "advice",
        "seconds",
    }
    assert [s["name"] for s in record["stages"]][:2] == ["open", "read"]
    assert record["expected"]["recipe_seconds"] > record["expected"]["epoch_seconds"] > 0


def test_without_data_images_are_made_up_for_the_papers_recipe(reporter) -> None:
    settings = Request(
        model="deit_tiny", given={"recipe.img_size": 32, "workers": 0, "precision": "fp32"}
    )
    result = bench(settings, seconds=0.05, reporter=reporter)
    assert (result.job["data"], result.job["recipe"], result.job["classes"]) == (
        "made up",
        "paper",
        1000,
    )
    assert result.job["batch_size"] == 1024 > result.job["measured_batch_size"]
    assert "open" not in result.stages
    assert (
        result.stages["small_view"].timing.rate > result.stages["view"].timing.rate
    )  # 37 pixels high, not 375
    assert "64 images of 500 x 375 pixels are made up" in reporter.notes[0]


@pytest.mark.parametrize(
    ("batch_size", "guess", "measured"),
    [(100, 0.01, 100), (101, 0.01, 64), (1024, 0.1, 8), (1024, 5.0, 2), (6, 0.3, 2), (3, 100.0, 2)],
)
def test_two_steps_take_no_longer_than_a_stage(batch_size, guess, measured) -> None:
    assert _affordable(batch_size, guess, seconds=2.0) == measured


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_times_that_are_none_are_refused(seconds) -> None:
    with pytest.raises(ConfigError, match="seconds = "):
        bench(request(), seconds=seconds)


def test_data_of_which_nothing_can_be_read_is_an_error(image_folder) -> None:
    root = image_folder({"a": 4, "b": 4})
    for file in root.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="Not one of"):
        bench(request(str(root), **{"recipe.img_size": 32}), seconds=0.05)


def test_images_that_cannot_be_read_are_left_out_of_the_speed(image_folder) -> None:
    root = image_folder({"a": 12, "b": 12})
    (root / "a" / "0.png").write_bytes(b"no image")
    result = bench(request(str(root), **{"recipe.img_size": 32}), seconds=0.05)
    assert all(stage.timing is not None for stage in result.stages.values())


def out_of_memory() -> int:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_memory_that_runs_out_is_said_of_the_stage_and_the_next_is_measured() -> None:
    told: list[str] = []
    clock = StageClock(CPU, 0.01, told.append)
    first, second = clock.take("a", "A", out_of_memory), clock.take("b", "B", lambda: 1)
    assert (first.timing, first.problem) == (None, "memory runs out")
    assert second.timing is not None
    assert told == ["A", "B"]


def test_an_error_of_the_work_is_said_and_a_mistake_of_ours_is_not_hidden() -> None:
    def unreadable() -> int:
        raise DataError("x cannot be read.")

    def mistake() -> int:
        raise RuntimeError("shapes do not match")

    clock = StageClock(CPU, 0.01, lambda _: None)
    assert clock.take("a", "A", unreadable).problem == "x cannot be read."
    with pytest.raises(RuntimeError, match="shapes"):
        clock.take("a", "A", mistake)


def test_a_stage_knows_its_memory_and_its_share() -> None:
    def work() -> int:
        torch.ones(2**24)
        return 10

    stage = StageClock(CPU, 0.05, lambda _: None).take("a", "A", work, limit=Limit(3.0, 60.0, "x"))
    assert stage.share == pytest.approx(stage.timing.rate / 20)
    assert stage.memory == pytest.approx(2**26, rel=0.1)


def test_rounds_are_pooled() -> None:
    one = Stage(
        name="a",
        title="A",
        timing=Timing(9.0, (0.1, 0.1)),
        memory=5,
        share=0.2,
        ceiling="x",
        waited=0.01,
    )
    two = Stage(
        name="a",
        title="A",
        timing=Timing(1.0, (0.2, 0.3, 0.2)),
        memory=7,
        share=0.1,
        ceiling="x",
        waited=0.03,
    )
    both = pooled([one, two])
    assert both.timing == Timing(9.0, (0.1, 0.1, 0.2, 0.3, 0.2))
    assert (both.memory, both.waited, both.share) == (
        7,
        pytest.approx(0.02),
        pytest.approx(0.1),
    )  # half the speed
    assert (
        pooled([one, Stage(name="a", title="A", problem="memory runs out")]).problem
        == "memory runs out"
    )


def test_work_goes_round_the_keys_and_counts_what_could_be_read() -> None:
    seen: list[int] = []

    def do(key: int) -> None:
        seen.append(key)
        if key == 2:
            raise DataError("2 is broken")

    work = each([0, 1, 2], do)
    assert work() == 6  # 0 1 2 0 1 2 0 1
    assert work() == 5  # 2 0 1 2 0 1 2 0
    assert seen[:8] == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(DataError, match="2 is broken"):
        each([2], do)()


@pytest.mark.parametrize(
    ("size", "stored"), [((300, 200), (75, 50)), ((200, 400), (50, 100)), ((59, 80), None)]
)
def test_large_images_are_stored_again_with_a_short_side(size, stored, tmp_path) -> None:
    from deitctl.data.samplers import SampleKey

    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", size, (number, 2, 3)).save(paths[-1])
    source = FileSource(paths, np.zeros(3, np.int64), ("a",))
    found = smaller(source, [SampleKey(0, n, 0) for n in range(3)], 50, tmp_path)
    assert (found and found.read(0).size) == stored


def test_the_command_line_prints_a_table_and_leaves_nothing(tmp_path: Path) -> None:
    line = [
        "bench",
        "digits",
        "--model",
        "deit_tiny",
        "--workers",
        "0",
        "--seconds",
        "0.05",
        "--set",
        "batch_size=2",
    ]
    result = CliRunner().invoke(
        app, [*line, "--batch-size", "auto", "--format", "table"], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, result.output
    for said in (
        "loop, whole",
        "where the time goes",
        "ceilings: matrix product",
        "expected: ",
        "the recipe's 30 epochs",
    ):
        assert said in result.stdout
    assert "chosen here: " in result.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"temporary", "cache"}
    assert not list((tmp_path / "temporary").glob("deitctl*"))


def test_a_stage_without_a_speed_says_why_in_the_table() -> None:
    from deitctl.cli.bench import _row

    assert _row(Stage(name="a", title="A", problem="memory runs out"))[:2] == (
        "A",
        "memory runs out",
    )
    row = _row(
        Stage(
            name="a",
            title="A",
            timing=Timing(1.0, (0.01,)),
            memory=3 * 2**20,
            share=0.071,
            ceiling="bf16",
        )
    )
    assert row == ("A", "100", "", "1", "3", "7.1 % of bf16")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1.234, "1.2 s"),
        (104.0, "104 s"),
        (600.0, "10 min"),
        (7.7 * 3600, "7.7 h"),
        (400 * 86400.0, "400 days"),
    ],
)
def test_times_are_said_in_the_unit_that_suits_them(seconds, said) -> None:
    assert duration(seconds) == said
    assert (percent(0.0123), percent(0.5), percent(-0.4)) == ("1.2 %", "50 %", "-40 %")
