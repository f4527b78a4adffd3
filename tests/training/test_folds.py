"""Runs of all folds: stopped and gone on with, and what their out-of-fold predictions score."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.folds import FoldedData, split_folds
from deitctl.data.open import open_eval_split
from deitctl.data.run_data import read_run_data
from deitctl.errors import ConfigError, DataError, Interrupted, Signalled
from deitctl.events import SilentReporter
from deitctl.recipes import DIGITS
from deitctl.training.folds import (
    FoldSpread,
    FoldsResult,
    compute_spread,
    find_folds,
    read_folds_config,
    train_folds,
)
from deitctl.training.out_of_fold import Outputs, choose_predictions, score, write_predictions


def stop_at_fold_2(message: str) -> None:
    """Send a signal when the second fold begins."""
    if message.startswith("Fold 2 of 2"):
        raise Signalled(signal.SIGTERM)


@pytest.fixture(scope="module")
def folded(little: tuple[ImageDataset, ImageDataset]) -> FoldedData:
    train, _ = little
    return split_folds("digits", train, 2, seed=0, group_by="", reporter=SilentReporter())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    recipe = replace(DIGITS, img_size=32, epochs=1, batch_size=16, sampling="balanced")
    root = tmp_path_factory.mktemp("folds") / "two"
    return TrainConfig(
        model="deit_tiny",
        model_args={"depth": 1, "embed_dim": 48, "num_heads": 3},
        data="digits",
        recipe=recipe,
        task="classification",
        precision="fp32",
        workers=0,
        folds=2,
        output_dir=str(root),
    )


@pytest.fixture(scope="module")
def result(config: TrainConfig, folded: FoldedData) -> FoldsResult:
    """Of folds that were stopped after the first, and gone on with."""
    root, stopping = Path(config.output_dir), SilentReporter()
    stopping.note = stop_at_fold_2
    with pytest.raises(Interrupted) as caught:
        train_folds(config, folded, reporter=stopping)
    assert caught.value.resume_command == f"deitctl train --resume {root}"
    assert not (root / "folds.json").exists()
    assert find_folds(config, SilentReporter()).output_dir == str(root)
    first = (root / "fold1" / "model.safetensors").stat().st_mtime_ns
    result = train_folds(read_folds_config(root, {"workers": 0}), folded, reporter=SilentReporter())
    assert (root / "fold1" / "model.safetensors").stat().st_mtime_ns == first
    return result


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_by_the_run_that_held_it_out(result, folded):
    rows = read_table(result.predictions)
    assert [int(row["fold"]) for row in rows] == folded.fold_of.tolist()
    for fold in result.folds:
        record = json.loads((fold.run / "result.json").read_text())
        assert fold.scores["top1"] == pytest.approx(record["best"]["top1"], abs=1e-9)
        held = [row for row in rows if int(row["fold"]) == fold.fold]
        assert len(held) == fold.num_val_images == 30
        right = sum(row["label"] == row["predicted"] for row in held)
        assert fold.scores["top1"] == pytest.approx(100 * right / 30)
        names = [name for name in held[0] if name.startswith("probability ")]
        for row in held:
            probs = [float(row[name]) for name in names]
            assert sum(probs) == pytest.approx(1, abs=1e-4)
            assert names[int(np.argmax(probs))] == f"probability {row['predicted']}"


def test_pooled_and_mean_scores_are_those_of_the_table(result):
    rows = read_table(result.predictions)
    labels, preds = ([row[name] for row in rows] for name in ("label", "predicted"))
    pooled = result.pooled
    assert pooled["top1"] == pytest.approx(100 * metrics.accuracy_score(labels, preds))
    balanced = metrics.balanced_accuracy_score(labels, preds)
    assert pooled["balanced_accuracy"] == pytest.approx(100 * balanced)
    assert pooled["macro_f1"] == pytest.approx(
        100 * metrics.f1_score(labels, preds, average="macro")
    )
    tops = [fold.scores["top1"] for fold in result.folds]
    assert result.metrics["top1"].mean == pytest.approx(np.mean(tops))
    assert result.metrics["top1"].std == pytest.approx(np.std(tops, ddof=1))
    written = json.loads((result.output / "folds.json").read_text())
    assert written["pooled"] == pytest.approx(pooled)


def test_eval_of_a_folds_run_scores_what_it_held_out(result, reporter):
    run = read_run_data(result.folds[0].run)
    images = open_eval_split("", run=run, reporter=reporter)
    assert (images.split, len(images.dataset.labels), images.num_train_images) == ("fold", 30, 0)
    assert open_eval_split("digits", "val", run=run, reporter=reporter).split == "val"


def test_finished_folds_are_not_found_as_unfinished(result, config):
    assert find_folds(replace(config, output_dir=""), SilentReporter()).output_dir == ""


def test_other_images_and_other_settings_are_refused(result, config, folded, reporter):
    others = replace(folded, fold_of=folded.fold_of[::-1].copy())
    with pytest.raises(DataError, match="other images, labels or groups"):
        train_folds(config, others, reporter=reporter)
    with pytest.raises(ConfigError, match="seed is 0, not 1"):
        train_folds(replace(config, seed=1), folded, reporter=reporter)
    with pytest.raises(ConfigError, match="seed is 0, not 1"):
        read_folds_config(result.output, {"seed": 1})
    with pytest.raises(ConfigError, match="holds a run"):
        train_folds(replace(config, output_dir=str(result.folds[0].run)), folded, reporter=reporter)


@pytest.fixture
def several(little: tuple[ImageDataset, ImageDataset]) -> tuple[FoldedData, Outputs]:
    """Images of several labels, and probabilities that say something of them; one could not be read."""
    train, _ = little
    draw = np.random.default_rng(0)
    labels = draw.random((60, 10)) < 0.3
    probs = np.clip(0.5 * labels + 0.5 * draw.random((60, 10)), 0, 1).astype(np.float32)
    losses = draw.random(60)
    probs[7], losses[7] = np.nan, np.nan
    images = replace(train, labels=labels)
    folded = FoldedData("x", images, 1 + np.arange(60) % 3, 3, [f"p{n % 3}" for n in range(60)])
    return folded, Outputs(probs, losses, {7: "damaged"})


def test_scores_of_several_labels_are_sklearns(several):
    folded, outputs = several
    preds, thresholds = choose_predictions(folded, outputs)
    read = outputs.is_read
    scores = score(folded.images.labels, preds, outputs, np.ones(60, bool))
    labels, probs = folded.images.labels[read], outputs.probs[read]
    assert scores["map"] == pytest.approx(100 * metrics.average_precision_score(labels, probs))
    micro = metrics.average_precision_score(labels, probs, average="micro")
    assert scores["micro_ap"] == pytest.approx(100 * micro)
    for average in ("macro", "micro"):
        value = metrics.f1_score(labels, preds[read], average=average)
        assert scores[f"{average}_f1"] == pytest.approx(100 * value)
    assert thresholds.shape == (10,)
    assert not preds[7].any()


def test_no_image_has_a_part_in_its_own_thresholds(several):
    folded, outputs = several
    preds, _ = choose_predictions(folded, outputs)
    labels = folded.images.labels.copy()
    labels[folded.fold_of == 2] = ~labels[folded.fold_of == 2]
    other = replace(folded, images=replace(folded.images, labels=labels))
    again, _ = choose_predictions(other, outputs)
    assert (again == preds)[folded.fold_of == 2].all()
    assert (again != preds)[folded.fold_of != 2].any()


def test_the_spread_of_a_metric_is_over_the_folds_where_it_is_defined(several):
    """A fold whose held-out images have no label has no mAP."""
    folded, outputs = several
    labels = folded.images.labels & (folded.fold_of != 2)[:, None]
    folded = replace(folded, images=replace(folded.images, labels=labels))
    preds, _ = choose_predictions(folded, outputs)
    scores = [score(labels, preds, outputs, folded.fold_of == fold) for fold in (1, 2, 3)]
    maps = [by_name["map"] for by_name in scores]
    assert np.isnan([scores[1]["map"], scores[1]["macro_f1"], scores[1]["micro_ap"]]).all()
    spread = compute_spread(maps)
    assert (spread.mean, spread.std) == pytest.approx((np.nanmean(maps), np.nanstd(maps, ddof=1)))
    assert compute_spread(maps[:2]) == FoldSpread(maps[0], None)
    assert compute_spread([np.nan, np.nan]) == FoldSpread(None, None)


def test_the_table_of_several_labels_has_groups_and_says_what_could_not_be_read(
    several, tmp_path: Path
):
    folded, outputs = several
    preds, _ = choose_predictions(folded, outputs)
    write_predictions(tmp_path / "t.csv", folded, preds, outputs)
    rows = read_table(tmp_path / "t.csv")
    assert [row["group"] for row in rows] == folded.group_names
    names = folded.images.class_names
    for index, row in enumerate(rows):
        for cell, truth in ((row["label"], folded.images.labels), (row["predicted"], preds)):
            assert cell.split("|") == (
                [n for n, has in zip(names, truth[index], strict=True) if has] or [""]
            )
    assert rows[7]["probability 0"] == ""
