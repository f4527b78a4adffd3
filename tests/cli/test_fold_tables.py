"""What `train --folds` prints on a terminal and elsewhere."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.cli.fold_tables import finish_folds, print_fold_sizes
from deitctl.evaluation.intervals import Interval
from deitctl.training.folds import FoldScore, FoldSpread, FoldsResult
from deitctl.training.plan import FoldPlan


def make_result(teacher_top1: float | None = None) -> FoldsResult:
    folds = [
        FoldScore(
            fold=fold,
            run=Path(f"two/fold{fold}"),
            num_train_images=30,
            num_val_images=30,
            best_epoch=1,
            scores={"top1": top1, "macro_f1": top1 - 1, "loss": 0.5},
            teacher_top1=teacher_top1,
            seconds=2.0,
        )
        for fold, top1 in ((1, 80.0), (2, 90.0))
    ]
    return FoldsResult(
        output=Path("two"),
        data="digits",
        model="deit_tiny",
        task="classification",
        num_folds=2,
        group_by="patient",
        num_groups=12,
        num_images=60,
        folds=folds,
        metrics={
            "top1": FoldSpread(85.0, 7.07),
            "macro_f1": FoldSpread(84.0, 7.07),
            "loss": FoldSpread(0.5, 0.0),
        },
        pooled={"top1": 85.0, "macro_f1": 84.5, "loss": 0.5},
        pooled_top1_interval=Interval(73.9, 91.9),
        thresholds=None,
        predictions=Path("two/out_of_fold.csv"),
        unreadable=[],
        seconds=4.0,
    )


def read_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(("│", "|"))]
    return [[cell.strip() for cell in line.strip("│|").split("│")] for line in lines]


@pytest.mark.parametrize("teacher", [None, 95.0])
def test_the_table_has_every_fold_their_spread_and_the_pooled_score(teacher, capsys):
    finish_folds(make_result(teacher), shape="table", quiet=True)
    text = capsys.readouterr().out
    more = [["95.00"], ["95.00"], [""], [""], [""]] if teacher else [[]] * 5
    assert read_rows(text)[:5] == [
        ["fold 1", "30", "80.00", "79.00", "0.500", *more[0]],
        ["fold 2", "30", "90.00", "89.00", "0.500", *more[1]],
        ["mean", "", "85.00", "84.00", "0.500", *more[2]],
        ["std", "", "7.07", "7.07", "0.000", *more[3]],
        ["all pooled", "60", "85.00", "84.50", "0.500", *more[4]],
    ]
    assert "deit_tiny on digits: 2 folds, 12 groups by patient; held-out images, %" in text
    assert "73.9 to 91.9" in text


def test_a_score_that_is_not_defined_is_a_dash_and_no_fold_to_show(capsys, monkeypatch):
    """Of several labels an image, where no image of a fold has any."""
    result = make_result()
    first = replace(result.folds[0], scores={"map": math.nan})
    metrics = {"map": FoldSpread(90.0, None)}
    folds = [first, replace(result.folds[1], scores={"map": 90.0})]
    result = replace(result, folds=folds, metrics=metrics, pooled={"map": 85.0})
    shown: list[list[str]] = []
    monkeypatch.setattr(
        "deitctl.cli.fold_tables.print_next", lambda words, **_: shown.append(words)
    )
    finish_folds(result, shape="table", quiet=False)
    assert [row[2] for row in read_rows(capsys.readouterr().out)[:5]] == [
        "-",
        "90.00",
        "90.00",
        "-",
        "85.00",
    ]
    assert shown == [["eval", "two/fold2"]]


def test_elsewhere_it_is_one_json_object(capsys):
    finish_folds(make_result(), shape="json", quiet=True)
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["top1"] == {"mean": 85.0, "std": 7.07}
    assert record["folds"][1]["run"] == "two/fold2"


def test_a_plan_has_the_sizes_of_all_folds(capsys):
    print_fold_sizes([FoldPlan(1, 40, 20), FoldPlan(2, 39, 21)])
    assert read_rows(capsys.readouterr().out) == [["1", "40", "20"], ["2", "39", "21"]]
