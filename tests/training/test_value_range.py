"""A training on 12-bit images, from the files to a prediction of one of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deitctl
from deitctl.config import TrainConfig
from deitctl.data.eval_transform import eval_transform
from deitctl.data.eval_views import EvalViews
from deitctl.data.readers.packed_shards import open_packed
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.value_range import NO_RANGE
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.model_config import Preprocessing, ValueRange
from deitctl.recipes import DIGITS
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run
from tests.data.deep_files import encode_png, write

SILENT = SilentReporter()
TWELVE = ValueRange(0, 4095)


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory) -> Path:
    """Images of 12 bits in 16; the first of class `dim` has no value above 10 bits."""
    folder = tmp_path_factory.mktemp("deep") / "data"
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name, top in (("bright", 4095), ("dim", 1000)):
            (folder / part / name).mkdir(parents=True)
            for n in range(count):
                values = rng.integers(0, top + 1, (32, 32)).astype(np.uint16)
                write(folder / part / name / f"{n}.png", encode_png(values))
    return folder


@pytest.fixture(scope="module")
def config(twelve_bits) -> TrainConfig:
    recipe = replace(DIGITS, epochs=1, restart_epochs=())
    return TrainConfig(
        model="deit_tiny", data=str(twelve_bits), recipe=recipe, device="cpu", workers=0
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("deep-run") / "run"
    run_training(replace(config, output_dir=str(root)), reporter=SILENT)
    return root


def test_the_model_keeps_the_range_of_its_training(run):
    assert load_model_config(run).preprocessing.value_range == TWELVE
    assert json.loads((run / "config.json").read_text())["deitctl"]["value_range"] == [0, 4095]


def test_a_single_image_is_predicted_with_the_pixels_of_training(run, twelve_bits):
    train, _ = open_for_training(Source(str(twelve_bits)), reporter=SILENT)
    classifier = deitctl.load(run, device="cpu")
    dim = next(n for n in range(12) if "dim" in train.name(n))
    stream = classifier.stream([train.name(dim)], keep_pixels=True)
    pixels = next(stream).pixels
    size = classifier.model_config.preprocessing.img_size
    expected = eval_transform(train.read(dim), classifier.model_config.preprocessing)
    assert np.array_equal(pixels, expected)
    assert pixels.shape == (3, size, size)
    assert pixels.max() < 70  # as dim as it was: 1000 of 4095


def test_a_resumed_run_keeps_its_range_though_the_data_would_have_another(
    run, config, twelve_bits, tmp_path
):
    assert Run(run).saved_value_range() == TWELVE
    record = json.loads((run / "checkpoint" / "state.json").read_text())
    assert record["value_range"] == "0.0,4095.0,0.0"
    brighter = encode_png(np.full((32, 32), 60000, np.uint16))
    changed = twelve_bits / "val" / "dim" / "0.png"
    before = changed.read_bytes()
    try:
        changed.write_bytes(brighter)
        result = resume(run, reporter=SILENT)
    finally:
        changed.write_bytes(before)
    assert result.num_val_images == 3  # the bright one is refused, and scales none of the others
    assert load_model_config(run).preprocessing.value_range == TWELVE


def test_a_pack_of_pixels_tells_the_range_to_the_model(twelve_bits, tmp_path):
    packed = tmp_path / "deep"
    deitctl.pack(str(twelve_bits), str(packed), raw=True, workers=0)
    parts = open_packed(packed)
    assert {part.value_range for part in parts.values()} == {TWELVE}
    train, _ = open_for_training(Source(str(twelve_bits)), reporter=SILENT)
    for n in range(len(train.labels)):
        assert np.array_equal(parts["train"].read(n), train.read(n))
    assert deitctl.verify_pack(str(twelve_bits), str(packed)).num_different == 0
    assert open_for_training(Source(str(packed)), reporter=SILENT)[0].value_range == TWELVE
    assert parts["train"].with_value_range(NO_RANGE).value_range == TWELVE


def test_pixels_in_a_pack_are_not_to_be_had_by_another_range(twelve_bits, tmp_path):
    packed = tmp_path / "deep"
    deitctl.pack(str(twelve_bits), str(packed), max_size=8, value_range="0,2000", workers=0)
    opened = open_for_training(Source(str(packed), value_range="0,2000"), reporter=SILENT)
    assert opened[0].value_range == ValueRange(0, 2000, clips=True)
    line = r"deep/.*tar was packed with the value range 0..2000, not with 12 bits .*. Pack"
    with pytest.raises(DataError, match=line):
        open_for_training(Source(str(packed), value_range="0,4095"), reporter=SILENT)
    for part in opened:  # as a model with another range sees them
        with pytest.raises(DataError, match=line):
            EvalViews(part, [Preprocessing(value_range=TWELVE)])


def test_check_says_the_range_that_training_chooses(twelve_bits):
    issues = {issue.code: issue for issue in deitctl.check(str(twelve_bits), workers=0).issues}
    assert "scaled as 12 bits (0..4095)" in issues["no_stated_range"].message
    assert "mixed_depths" not in issues
    issues = {
        issue.code: issue
        for issue in deitctl.check(str(twelve_bits), value_range="0,4095", workers=0).issues
    }
    assert "no_stated_range" not in issues


def test_an_evaluation_of_other_images_uses_the_range_of_the_model(run, twelve_bits, tmp_path):
    values = np.full((32, 32), 5000, np.uint16)
    for name in ("bright", "dim"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "1.png", encode_png(values // (1 if name == "bright" else 10)))
    result = deitctl.evaluate(str(tmp_path), model=run, device="cpu", workers=0)
    assert result.num_images == 1
    assert list(result.unreadable) == [str(tmp_path / "bright" / "1.png")]
    with pytest.raises(DataError, match="outside of the 12 bits"):
        deitctl.load(run, device="cpu").predict(tmp_path / "bright" / "1.png")


def test_parquet_files_do_not_hold_the_range_which_a_warning_names(twelve_bits, tmp_path, reporter):
    deitctl.pack(
        str(twelve_bits), str(tmp_path / "x"), raw=True, to="parquet", workers=0, reporter=reporter
    )
    assert any(re.search(r"--value-range 0(\.0)?,4095", warning) for warning in reporter.warnings)
