"""Runs are listed with what became of them, grouped by seed and compared; damaged and hostile folders are named."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from deitctl.cli.list_runs import runs
from deitctl.config import TrainConfig
from deitctl.errors import ConfigError
from deitctl.lock import is_locked
from deitctl.records import to_json
from deitctl.settings import write_toml
from deitctl.sweeps.run_info import read_run
from deitctl.sweeps.run_list import compare_runs, list_runs
from deitctl.sweeps.spread import Spread

EPOCH = '{{"kind": "epoch", "epoch": {}, "step": 5, "top1": {}}}\n'
Make = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, make_sweep, write_result) -> Make:
    config: TrainConfig = make_sweep("smoothing=0.1").runs[0].config

    def make(name: str, score: float | None = None, log: str = "", **changes: object) -> Path:
        root = tmp_path / "runs" / name
        root.mkdir(parents=True)
        (root / "run.toml").write_text(write_toml(replace(config, **changes)))  # type: ignore[arg-type]
        if log:
            (root / "metrics.jsonl").write_text(log)
        if score is not None:
            write_result(root, score)
        return root

    return make


def test_each_run_has_its_status_and_score(make_run: Make, tmp_path: Path) -> None:
    make_run("done", 90.0)
    make_run("new")
    make_run("part", log=EPOCH.format(1, 80.0) + EPOCH.format(2, 70.0))
    diverged = make_run("sweep/a/spike", log=EPOCH.format(1, 50.0))
    (diverged / "incidents").mkdir()
    listing = list_runs([tmp_path / "runs"])
    rows = {i.run.name: (i.status, i.metric, i.score, i.epochs_done) for i in listing.runs}
    assert rows == {
        "done": ("finished", "top1", 90.0, 2),
        "new": ("waiting", None, None, 0),
        "part": ("stopped", "top1", 80.0, 2),
        "spike": ("diverged", "top1", 50.0, 1),
    }
    assert listing.groups is None


def test_a_run_that_a_process_writes_is_running(make_run: Make) -> None:
    root = make_run("busy", log=EPOCH.format(1, 50.0))
    assert not is_locked(root / "lock")
    with FileLock(root / "lock", fallback_to_soft=False):
        assert is_locked(root / "lock")
        assert read_run(root).status == "running"
    assert read_run(root).status == "stopped"


def test_the_metric_is_the_selected_one_with_top1_where_none_is_named(
    make_run: Make, write_result
) -> None:
    root = make_run("a")
    best = {"top1": 70.0, "select": "balanced", "score": 61.5}
    write_result(root, 0, best=best)
    assert (read_run(root).metric, read_run(root).score) == ("balanced", 61.5)
    write_result(root, 0, best={"top1": 70.0})
    assert (read_run(root).metric, read_run(root).score) == ("top1", 70.0)
    write_result(root, 0, best={"top1": None, "map": 55.0})
    assert (read_run(root).metric, read_run(root).score) == ("map", 55.0)


def test_a_run_whose_metric_is_not_defined_is_finished_without_a_score(
    make_run: Make, write_result: Callable[..., None], tmp_path: Path
) -> None:
    """Of several labels an image, of which no validation image has one."""
    for seed in (0, 1):
        best = {"select": "map", "score": 0.0, "top1": None, "map": 80.0 if seed else None}
        write_result(make_run(f"run{seed}", seed=seed), 0.0, best=best)
    info = next(info for info in list_runs([tmp_path / "runs"]).runs if info.seed == 0)
    assert (info.status, info.metric, info.score) == ("finished", "map", None)
    (group,) = list_runs([tmp_path / "runs"], group=True).groups
    assert (group.metric, group.score) == ("map", Spread.of([80.0]))


def test_the_newest_run_comes_first(make_run: Make, tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        os.utime(make_run(name) / "run.toml", (0, 1e9 - age))
    assert [info.run.name for info in list_runs([tmp_path / "runs"]).runs] == ["a", "b", "c"]


def test_runs_that_differ_in_the_seed_alone_are_a_group(make_run: Make, tmp_path: Path) -> None:
    for seed, score in enumerate((70.0, 74.0)):
        make_run(f"a{seed}", score, seed=seed, workers=seed)
    make_run("other", 90.0, split_seed=5)
    groups = list_runs([tmp_path / "runs"], group=True).groups
    assert groups is not None
    (pair,) = [group for group in groups if len(group.runs) == 2]
    assert (pair.seeds, pair.score, pair.metric) == ([0, 1], Spread.of([70.0, 74.0]), "top1")


def test_copies_and_unfinished_runs_are_no_sample(make_run: Make, tmp_path: Path) -> None:
    for age, (name, score) in enumerate({"new": 70.0, "old": 10.0, "oldest": 20.0}.items()):
        root = make_run(name, score)
        for file in root.iterdir():
            os.utime(file, (0, 1e9 - age))
    make_run("other", 74.0, seed=1)
    make_run("part", log=EPOCH.format(1, 80.0))
    (group,) = list_runs([tmp_path / "runs"], group=True).groups or ()
    assert (group.score, group.seeds) == (Spread.of([70.0, 74.0]), [0, 1])
    assert (group.num_copies, group.num_unfinished, len(group.runs)) == (2, 1, 5)


def test_folds_are_one_group(make_run: Make, tmp_path: Path) -> None:
    for fold in (1, 2, 3):
        make_run(f"fold{fold}", 70.0 + fold, folds=3, fold=fold)
    (group,) = list_runs([tmp_path / "runs"], group=True).groups or ()
    assert (group.score, group.folds) == (Spread.of([71.0, 72.0, 73.0]), [1, 2, 3])


def test_a_run_that_patience_ended_has_the_epochs_that_it_did(
    make_run: Make, write_result: Callable[..., None]
) -> None:
    root = make_run("a")
    write_result(root, 70.0, epochs=1, stopped="patience")
    info = read_run(root)
    assert (info.epochs_done, info.epochs, info.stopped) == (1, 2, "patience")


@pytest.mark.parametrize(("columns", "shown"), [(80, {"time"}), (160, {"time", "changed"})])
def test_columns_that_fit_are_printed(
    columns: int,
    shown: set[str],
    make_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    folder = str(tmp_path / "runs")
    make_run("lr=0.0001_wd=0.05_seed=0", 70.0)
    runs([folder], output_format="table")
    listed = capsys.readouterr().out
    assert "1 run in" in listed
    assert {word for word in ("time", "changed") if word in listed} == shown
    runs([folder], group=True, output_format="table")
    grouped = capsys.readouterr().out
    assert "1 group of runs that differ in the seed alone: data digits, model deit_tiny" in grouped
    assert "teacher" not in grouped


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fl").mkdir()
    runs([str(tmp_path / "fl")], output_format="table")
    assert (
        capsys.readouterr().out.replace("\n", " ").strip() == f"There are no runs in {tmp_path}/fl."
    )


def test_two_runs_are_compared_by_settings_and_metrics(make_run: Make) -> None:
    a, b = make_run("a", 70.0), make_run("b", 74.0, seed=1, model="deit_small")
    comparison = compare_runs([a, b])
    settings = {row.name: row.values for row in comparison.settings}
    assert settings == {"model": ["deit_tiny", "deit_small"], "seed": [0, 1]}
    assert {row.name: row.values for row in comparison.metrics}["best.top1"] == [70.0, 74.0]
    assert to_json(comparison)["metrics"]
    with pytest.raises(ConfigError, match="One run cannot be compared"):
        compare_runs([a])


def test_a_damaged_folder_is_named_and_the_others_are_listed(
    make_run: Make, tmp_path: Path
) -> None:
    make_run("fine", 70.0)
    for name, text in (("toml", "x = ["), ("empty", ""), ("deep", "a." * 5000 + "b = 1")):
        (make_run(name) / "run.toml").write_text(text)
    for name, text in (("json", "{"), ("nan", '{"best": {"top1": 1e999}}')):
        (make_run(name) / "result.json").write_text(text)
    (make_run("log") / "metrics.jsonl").write_bytes(b"\xff\n" * 10 + b'{"kind": "epoch"' * 1000)
    make_run("pipe")
    os.mkfifo(tmp_path / "runs" / "pipe" / "metrics.jsonl")
    listing = list_runs([tmp_path / "runs"])
    assert sorted(damaged.run.name for damaged in listing.damaged) == ["deep", "empty", "toml"]
    assert all(len(damaged.error.splitlines()) == 1 for damaged in listing.damaged)
    statuses = {info.run.name: info.status for info in listing.runs}
    assert statuses["fine"] == "finished"
    assert statuses["json"] == statuses["nan"] == "waiting"
    assert statuses["log"] == "stopped"


def test_folders_that_go_in_circles_end(make_run: Make, tmp_path: Path) -> None:
    root = make_run("a")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    deep = tmp_path / "runs" / "/".join("x" * 20)
    deep.mkdir(parents=True)
    (deep / "run.toml").touch()
    listing = list_runs([tmp_path / "runs"])
    assert [info.run for info in listing.runs] == [root]
    assert not listing.damaged
