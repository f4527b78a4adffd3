from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.decode import measure_values, read_image
from deitctl.data.deep_image import Measured
from deitctl.data.range_survey import NUM_LOOKED_AT
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.inference import download, input_range, inputs
from deitctl.inference.classifier import Classifier
from deitctl.inference.input_range import InputRange
from deitctl.inference.inputs import load_batches
from deitctl.models.model_config import ModelConfig, Preprocessing, ValueRange
from tests.data.deep_files import encode_png, encode_tiff, write


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)


class Brightest:
    """A backend that answers with the largest value of its input."""

    resizes_images = False

    def __init__(self, value_range: ValueRange | None) -> None:
        preprocessing = Preprocessing(img_size=8, crop_pct=1.0, value_range=value_range)
        self.model_config = ModelConfig(
            architecture="a", num_classes=1, preprocessing=preprocessing
        )

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).max(1, keepdims=True).astype(np.float32)

    scores = logits


def make(folder: Path, *largest: int) -> list[str]:
    return [
        str(write(folder / f"{n}.png", encode_png(np.full((8, 8), top, np.uint16))))
        for n, top in enumerate(largest)
    ]


def classify(images, own: ValueRange | None = None, **options) -> tuple[list[float], list]:
    reporter = Warnings()
    classifier = Classifier(Brightest(own), reporter=reporter, **options)
    predictions = classifier.predict(images)
    found = [p.predictions[0].score if p.error is None else -1 for p in predictions]
    return found, reporter.messages


def test_one_range_serves_all_inputs_and_is_said_once(tmp_path):
    found, messages = classify(make(tmp_path, 255, 4095))
    assert found == [16, 255]
    assert len(messages) == 1
    assert "2 of 2 images looked at hold values up to 4,095" in messages[0]
    assert "12 bits (0..4095)" in messages[0]


def test_a_folder_is_looked_at_before_its_first_image(tmp_path):
    make(tmp_path, *[255] * 20, 4095)
    assert sorted(classify([str(tmp_path)])[0]) == [16] * 20 + [255]


def test_one_image_is_a_data_set_of_one(tmp_path):
    paths = make(tmp_path, 1023, 4095)
    assert [classify([path])[0] for path in paths] == [[255], [255]]


def test_a_model_with_a_range_uses_it_and_warns_of_nothing(tmp_path):
    assert classify(make(tmp_path, 255, 4095), ValueRange(0, 4095)) == ([16, 255], [])
    assert classify(make(tmp_path, 255), ValueRange(0, 4095)) == ([16], [])


def test_an_image_beyond_the_range_of_the_model_has_an_error(tmp_path):
    assert classify(make(tmp_path, 255, 5000), ValueRange(0, 4095))[0] == [16, -1]
    with pytest.raises(DataError, match="outside of the 12 bits.*--value-range"):
        Classifier(Brightest(ValueRange(0, 4095))).predict(make(tmp_path, 5000)[0])


def test_a_range_of_the_user_goes_before_that_of_the_model(tmp_path):
    found = classify(make(tmp_path, 255, 4095), ValueRange(0, 4095), value_range="0,255")
    assert found == ([255, 255], [])


def test_bytes_and_pillow_images_share_the_range_of_a_list(tmp_path):
    paths = make(tmp_path, 255, 4095)
    images = [Path(paths[0]).read_bytes(), Image.open(paths[1])]
    assert classify(images)[0] == [16, 255]


def test_a_stream_is_looked_at_batch_by_batch(tmp_path):
    paths = make(tmp_path, 255, 4095, 200)
    plain = tmp_path / "plain.jpg"
    Image.new("RGB", (8, 8), "white").save(plain)
    pre = Preprocessing(img_size=8, crop_pct=1.0)
    batches = load_batches(iter([str(plain), str(plain), *paths[:2], paths[2]]), pre, 2)
    found = [int(item.pixels.max()) for batch in batches for item in batch]
    assert found == [255, 255, 16, 255, 12]


def test_files_of_several_sources_are_each_scaled_by_themselves(tmp_path):
    ones = np.full((8, 8), 1, np.float32)
    paths = [
        str(write(tmp_path / "a.tif", encode_tiff(ones))),
        str(write(tmp_path / "b.tif", encode_tiff(ones * 255))),
        *make(tmp_path, 4095),
    ]
    found, messages = classify(paths)
    assert found == [255, 255, 255]
    assert len(messages) == 1
    assert "each is scaled by its own values" in messages[0]


def test_images_of_eight_bits_settle_nothing(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    chosen = InputRange(None, SilentReporter())
    names = [str(tmp_path / "a.png"), "http://example.com/a.png", str(tmp_path / "none.png")]
    assert chosen.settle(iter(names)) == 3
    assert chosen.value_range is None


def test_images_that_no_look_reaches_settle_by_their_batch_whatever_thread_is_first(
    tmp_path, monkeypatch
):
    """Of 30 equal runs, three once scaled by the brightest of the batch, and 27 failed on it."""
    paths = [Path(p).rename(Path(p).with_suffix(".jpg")) for p in make(tmp_path, 900, 4000, 700)]
    fast = {paths[0]: 0.0, paths[1]: 0.01, paths[2]: 0.0}
    monkeypatch.setattr(inputs, "read_image", lambda p, r: time.sleep(fast[p]) or read_image(p, r))
    found, messages = classify([str(p) for p in paths])
    assert found == [56, 249, 44]
    assert len(messages) == 1
    assert "3 of 3 images looked at hold values up to 4,000" in messages[0]
    monkeypatch.setattr(inputs, "is_url", lambda name: name.endswith(".jpg"))
    fetched: list[str] = []
    monkeypatch.setattr(download, "fetch", lambda n: fetched.append(n) or Path(n).read_bytes())
    assert classify([str(p) for p in paths])[0] == [56, 249, 44]
    assert sorted(fetched) == sorted(map(str, paths))  # each once


def test_nothing_is_looked_at_twice(tmp_path, monkeypatch):
    stated = [
        str(write(tmp_path / f"{n}.png", encode_png(np.full((8, 8), 999, np.uint16), (10,))))
        for n in range(40)
    ]
    looks: list[str] = []

    def measure(data: bytes, name: str) -> Measured | None:
        looks.append(name)
        return measure_values(data, name)

    monkeypatch.setattr(input_range, "measure_values", measure)
    assert classify(stated) == ([249] * 40, [])
    assert sorted(looks) == sorted(stated)


def test_of_many_inputs_a_few_are_held_and_all_are_counted():
    names = (f"/nowhere/{n}.png" for n in range(100_000))
    looks, num_images = input_range._sample_looks(names)
    assert num_images == 100_000
    assert NUM_LOOKED_AT <= len(looks) <= 2 * NUM_LOOKED_AT
    places = [int(Path(look.args[0]).stem) for look in looks]
    assert set(np.diff(places)) == {places[1]}
    assert places[-1] > 99_000


def test_values_beyond_any_range_are_an_error_of_their_image_alone(tmp_path):
    huge = encode_tiff(np.full((8, 8), 1e20, np.float32))
    paths = [str(write(tmp_path / "a.tif", huge)), *make(tmp_path, 4095)]
    found, messages = classify(paths)
    assert found == [-1, 255]
    assert len(messages) == 1
    assert classify(iter(paths))[0] == [-1, 255]
    assert classify(paths[:1]) == ([-1], [])
