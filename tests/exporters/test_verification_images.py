from __future__ import annotations

import shutil

import numpy as np
import pytest

from deitctl.data.dataset import FileDataset
from deitctl.data.run_data import write_split
from deitctl.data.subsets import select
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import ConfigError, DataError, ExportError
from deitctl.events import SilentReporter
from deitctl.exporters.compare import Verification
from deitctl.exporters.verification_images import (
    open_calibration_images,
    open_images,
    read_images,
)
from deitctl.exporters.verify import name_images
from deitctl.models.model_config import Preprocessing

PRE = Preprocessing(img_size=32)


def files(*paths):
    return FileDataset(tuple(map(str, paths)), np.zeros(len(paths), dtype=np.int64), ("",))


def test_images_are_spread_over_the_classes_in_the_order_of_the_data(digit_datasets):
    by_class = select(digit_datasets[1], np.argsort(digit_datasets[1].labels, kind="stable"))
    sample = read_images(by_class, PRE, 20)
    assert sample.pixels.shape == (20, 32, 32, 3)
    assert sample.pixels.dtype == np.uint8
    index = {by_class.name(i): int(by_class.labels[i]) for i in range(len(by_class.labels))}
    assert len({index[name] for name in sample.names}) == 10


def test_unreadable_images_are_replaced_by_others(image_folder):
    root = image_folder({"a": 6})
    paths = sorted((root / "a").iterdir())
    paths[0].write_bytes(b"no image")
    sample = read_images(files(*paths), PRE, 3)
    assert len(sample.names) == 3
    assert str(paths[0]) not in sample.names


def test_more_images_than_there_are_means_all(image_folder):
    root = image_folder({"a": 3})
    assert len(read_images(files(*(root / "a").iterdir()), PRE, 64).names) == 3


def test_no_readable_image_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="None of 1 images"):
        read_images(files(tmp_path / "absent.png"), PRE, 4)


@pytest.fixture
def run(tmp_path, image_folder):
    """What a run folder says of 40 images, and the names of those that it held out."""
    data = image_folder({"cat": 20, "dog": 20})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(f'data = "{data}"\n')
    train, val = open_for_training(Source(str(data)), reporter=SilentReporter())
    write_split(folder, train, val)
    return str(folder), str(data), list_names(val)


def list_names(dataset):
    return {dataset.name(i) for i in range(len(dataset.labels))}


def test_a_run_is_verified_on_what_it_held_out_and_calibrated_on_what_it_was_trained_on(
    run, reporter
):
    model, data, held_out = run
    for ref in ("", data):
        images = open_images(model, ref, reporter)
        assert list_names(images.dataset) == held_out
        verified = read_images(images.dataset, PRE, 64)
        calibration = open_calibration_images(model, ref, verified, reporter)
        assert not list_names(calibration) & held_out
        assert len(calibration.labels) == 40 - len(held_out)
        assert reporter.notes[-1] == (
            f"Calibrating on {40 - len(held_out)} training images of {data}."
        )
        verification = name_images(Verification(num_verified=3), images, model, verified)
        assert (verification.data, verification.split) == (data, "val")
        assert verification.num_train_images == 0


def test_nothing_is_calibrated_on_the_images_of_the_verification(run, image_folder, reporter):
    _, data, _ = run
    images = open_images("deit_tiny", data, reporter)
    verified = read_images(images.dataset, PRE, 10)
    calibration = open_calibration_images("deit_tiny", data, verified, reporter)
    assert list_names(calibration) == list_names(images.dataset) - set(verified.names)
    assert reporter.notes[-1].endswith("without 10 that it is verified on.")
    with pytest.raises(ConfigError, match="that it is verified on"):
        open_calibration_images("m", data, read_images(images.dataset, PRE, 40), reporter)
    with pytest.raises(ConfigError, match="--calibration-data IMAGES"):
        open_calibration_images("m", "", verified, reporter)


def test_loose_images_of_the_training_are_counted(run, reporter):
    model, data, held_out = run
    images = open_images(model, f"{data}/cat", reporter)
    assert images.count_train_images(model, range(20)) == 20 - sum("/cat/" in n for n in held_out)
    assert open_images("deit_tiny", f"{data}/cat", reporter).train_masks == {}


def test_a_run_whose_data_is_gone_is_verified_on_digits_and_says_so(run, reporter):
    model, data, _ = run
    shutil.move(data, f"{data}-moved")
    images = open_images(model, "", reporter)
    assert (images.data, images.split) == ("digits", "val")
    assert "cannot be opened" in reporter.notes[0]
    verified = read_images(images.dataset, PRE, 4)
    with pytest.raises(DataError, match="which is not there"):
        open_calibration_images(model, "", verified, reporter)


def test_images_of_the_verification_are_recognized_however_they_are_spelled(
    run, tmp_path, reporter
):
    _, data, _ = run
    (tmp_path / "link").symlink_to(data)
    verified = read_images(open_images("deit_tiny", data, reporter).dataset, PRE, 40)
    with pytest.raises(ConfigError, match="that it is verified on"):
        open_calibration_images("deit_tiny", str(tmp_path / "link"), verified, reporter)
