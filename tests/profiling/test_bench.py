"""Every stage of a real training is measured, the parts add up to it, nothing is left behind, errors are reported."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.cli.bench import _row, format_duration, format_number, format_share
from deitctl.device import choose_device
from deitctl.errors import ConfigError, DataError
from deitctl.profiling import peak
from deitctl.profiling.bench import StageTable, _call_in_turn, _limit_batch_size, bench
from deitctl.profiling.bench_result import BenchResult, Stage
from deitctl.recipes import DIGITS
from deitctl.records import to_object

CPU = choose_device("cpu", "fp32")
STAGES = [
    "read",
    "decode",
    "train_view",
    "eval_view",
    "loader",
    "teacher",
    "forward",
    "backward",
    "optimizer",
    "ema_update",
    "step_cached_batch",
    "end_to_end",
    "evaluation",
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small matrices and copies; temporary folders where the test sees what is left of them."""
    monkeypatch.setitem(peak.MATRIX_SIDE, "cpu", 128)
    monkeypatch.setattr(peak, "COPY_BYTES", 2**20)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


def settings(data: str = "digits", **changes: object) -> dict[str, object]:
    usual = {"workers": 0, "precision": "fp32", "device": "cpu", "recipe.batch_size": 4}
    return usual | {"data": data, "model": "deit_tiny"} | changes


@pytest.fixture(scope="module")
def distillation() -> BenchResult:
    """Distillation from a convnet on unmixed views."""
    before = peak.MATRIX_SIDE["cpu"]
    peak.MATRIX_SIDE["cpu"] = 128
    try:
        return bench(settings(**{"distill.teacher": "test_resnet"}), seconds=0.1)
    finally:
        peak.MATRIX_SIDE["cpu"] = before


def find(result: BenchResult, name: str) -> Stage:
    return next(stage for stage in result.stages if stage.name == name)


def test_every_stage_has_a_speed(distillation: BenchResult) -> None:
    assert [stage.name for stage in distillation.stages] == STAGES
    for stage in distillation.stages:
        assert stage.images_per_second is not None, stage
        assert stage.images_per_second > 0
    shares = {stage.name for stage in distillation.stages if stage.peak_share is not None}
    assert shares == {"teacher", "forward", "backward", "optimizer", "ema_update", "evaluation"}
    setup = distillation.setup
    assert 2 <= setup.measured_batch_size <= setup.batch_size == 4
    assert setup.num_train_images == 1442


def test_the_parts_add_up_to_the_training(distillation: BenchResult) -> None:
    times, setup = distillation.step_time_s, distillation.setup
    assert list(times) == [
        "teacher",
        "forward",
        "backward",
        "optimizer",
        "ema_update",
        "overhead",
        "data_wait",
        "loader_contention",
    ]
    share = setup.measured_batch_size / setup.batch_size
    # of the parts as they are given: noise may have scaled what was measured
    saved = (times["optimizer"] + times["ema_update"]) * (1 / share - 1)
    assert sum(times.values()) == pytest.approx(find(distillation, "end_to_end").seconds - saved)
    assert times["data_wait"] > 0  # without workers a batch is rendered while the step waits
    assert distillation.data_wait_share == pytest.approx(times["data_wait"] / sum(times.values()))


def test_the_teacher_is_a_stage_with_operations_of_its_own(distillation: BenchResult) -> None:
    assert (distillation.setup.teacher, distillation.setup.teacher_input) == (
        "test_resnet",
        "unmixed",
    )
    assert distillation.flops_per_image.teacher > 0
    assert find(distillation, "teacher").peak_share > 0
    # scaled down where noise makes the parts longer than the whole step
    assert 0 < distillation.step_time_s["teacher"] <= find(distillation, "teacher").seconds


def test_peak_shares_are_operations_times_speed_over_the_peak(distillation: BenchResult) -> None:
    flops = distillation.flops_per_image
    for name, cost in (
        ("forward", flops.forward),
        ("backward", flops.step - flops.forward),
        ("teacher", flops.teacher),
        ("evaluation", flops.forward),
    ):
        stage = find(distillation, name)
        assert stage.peak == "fp32"
        assert stage.peak_share == pytest.approx(
            cost * stage.images_per_second / distillation.peak.flops_per_second["fp32"]
        )


def test_the_result_is_json(distillation: BenchResult) -> None:
    record = json.loads(json.dumps(to_object(distillation)))
    assert set(record) == {
        "schema_version",
        "setup",
        "peak",
        "flops_per_image",
        "stages",
        "step_time_s",
        "data_wait_share",
        "expected",
        "hints",
        "seconds",
    }
    assert [stage["name"] for stage in record["stages"]] == STAGES
    assert record["expected"]["run_s"] > record["expected"]["epoch_s"] > 0
    assert len(record["hints"]) <= 3


def test_without_data_synthetic_images_are_measured_with_the_papers_recipe(reporter) -> None:
    small = {"model": "deit_tiny", "recipe.img_size": 32, "workers": 0, "precision": "fp32"}
    result = bench(small, seconds=0.05, reporter=reporter)
    setup = result.setup
    assert (setup.data, setup.recipe, setup.num_classes) == (None, "paper", 1000)
    assert setup.batch_size == 1024 > setup.measured_batch_size
    assert setup.median_side_px == 375
    assert "64 synthetic images" in reporter.notes[0]


@pytest.mark.parametrize(
    ("batch_size", "image_s", "measured"),
    [(100, 0.01, 100), (101, 0.01, 64), (1024, 0.1, 8), (1024, 5.0, 2), (6, 0.3, 2), (3, 100.0, 2)],
)
def test_two_steps_take_no_longer_than_a_stage(batch_size, image_s, measured) -> None:
    assert _limit_batch_size(batch_size, image_s, seconds=2.0) == measured


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_stage_times_out_of_range_are_refused(seconds) -> None:
    with pytest.raises(ConfigError, match="seconds = "):
        bench(settings(), seconds=seconds)


def test_data_without_a_readable_image_is_an_error(image_folder) -> None:
    root = image_folder({"a": 4, "b": 4})
    for file in root.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="None of"):
        bench(settings(str(root), **{"recipe.img_size": 32}), seconds=0.05)


def test_unreadable_images_are_left_out_of_the_speed(image_folder) -> None:
    root = image_folder({"a": 12, "b": 12})
    (root / "a" / "0.png").write_bytes(b"no image")
    result = bench(settings(str(root), **{"recipe.img_size": 32}), seconds=0.05)
    assert all(stage.images_per_second is not None for stage in result.stages)


def raise_out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_a_stage_that_runs_out_of_memory_has_an_error_and_the_next_is_measured() -> None:
    names: list[str] = []
    table = StageTable(CPU, 0.01, names.append)
    table.measure("a", raise_out_of_memory)
    table.measure("b", lambda: None)
    assert names == list(table.by_name) == ["a", "b"]
    assert table.by_name["a"] == Stage(name="a", error="out of memory")
    assert table.by_name["b"].images_per_second > 0


def test_errors_of_data_are_reported_and_programming_errors_raised() -> None:
    def unreadable() -> None:
        raise DataError("x cannot be read.")

    def mistake() -> None:
        raise RuntimeError("shapes do not match")

    table = StageTable(CPU, 0.01, lambda _: None)
    assert table.measure("a", unreadable).error == "x cannot be read."
    with pytest.raises(RuntimeError, match="shapes"):
        table.measure("a", mistake)


def use_64_mib() -> None:
    """Of the system itself: what malloc takes depends on what the process has freed before."""
    with mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for page in range(0, 2**26, mmap.PAGESIZE):
            block[page] = 1


def test_a_stage_has_its_memory_and_its_share_of_the_peak() -> None:
    table = StageTable(CPU, 0.05, lambda _: None)
    stage = table.measure("a", use_64_mib, 10, peak=("copy", 20.0))
    assert stage.peak_share == pytest.approx(stage.images_per_second / 20)
    assert stage.memory_mib == pytest.approx(64, rel=0.1)


def test_a_single_sample_has_no_interquartile_range() -> None:
    slow, fast = StageTable(CPU, 0.1, lambda _: None), StageTable(CPU, 1.0, lambda _: None)
    assert slow.measure("a", lambda: time.sleep(0.2)).images_per_second_iqr is None
    assert fast.measure("b", lambda: time.sleep(0.001)).images_per_second_iqr is not None


def test_work_goes_through_the_items_in_turn() -> None:
    seen: list[int] = []
    work = _call_in_turn([0, 1, 2], seen.append)
    for _ in range(5):
        work()
    assert seen == [0, 1, 2, 0, 1]


def test_the_command_line_prints_tables_and_leaves_nothing(tmp_path: Path) -> None:
    line = ["bench", "digits", "--model", "deit_tiny", "--workers", "0", "--seconds", "0.05"]
    line += ["--set", "batch_size=2", "--batch-size", "auto", "--format", "table"]
    result = CliRunner().invoke(app, line, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for text in (
        "step cached batch",
        "where the time goes",
        "peak: matrix product",
        "expected: ",
        f"{DIGITS.epochs} epochs",
    ):
        assert text in result.stdout
    assert "Batch size" in result.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"temporary", "cache"}
    assert not list((tmp_path / "temporary").glob("deitctl*"))


def test_a_stage_without_a_speed_has_its_error_in_the_table() -> None:
    assert _row(Stage(name="a", error="out of memory"))[:2] == ("a", "out of memory")
    stage = Stage(
        name="a",
        images_per_second=1234.5,
        images_per_second_iqr=12.34,
        memory_mib=3.0,
        peak="bf16",
        peak_share=0.071,
    )
    assert _row(stage) == ("a", "1,230", "12", "3", "7.1 % of bf16")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234, "1.2 s"),
        (104.0, "104 s"),
        (600.0, "10 min"),
        (7.7 * 3600, "7.7 h"),
        (400 * 86400.0, "400 days"),
    ],
)
def test_durations_are_in_the_unit_that_suits_them(seconds, text) -> None:
    assert format_duration(seconds) == text


def test_numbers_are_rounded_to_significant_digits() -> None:
    assert [format_share(share) for share in (0.0, 1e-7, 0.0123, 0.5, 1.4)] == [
        "0 %",
        "< 0.1 %",
        "1.2 %",
        "50 %",
        "140 %",
    ]
    assert (format_number(389_123.0, 3), format_number(42.64, 3), format_number(0.01234, 2)) == (
        "389,000",
        "42.6",
        "0.012",
    )
