from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data import fingerprint
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.eval_views import EvalViews
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.open import open_dataset
from deitctl.data.range_survey import settle_range
from deitctl.data.subsets import join, select
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.value_range import NO_RANGE
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.model_config import Preprocessing, ValueRange
from tests.data.deep_files import encode_png, encode_tiff, write

SILENT = SilentReporter()


def ramp(largest: int, dtype: type = np.uint16) -> np.ndarray:
    return np.linspace(0, largest, 40 * 40).reshape(40, 40).astype(dtype)


def make(folder: Path, largest: list[int]) -> FileDataset:
    """Make a PNG of 16 bits for each largest value."""
    paths = [str(write(folder / f"{n}.png", encode_png(ramp(v)))) for n, v in enumerate(largest)]
    return FileDataset(paths, np.zeros(len(paths), np.int64), ("a",))


def settle(*datasets: ImageDataset, option: str | ValueRange = "auto") -> tuple[ValueRange, str]:
    said: list[str] = []
    chosen = settle_range(datasets, option, said.append)
    return chosen, "\n".join(said)


def test_one_range_holds_all_images_and_is_said_in_a_line(tmp_path):
    dataset = make(tmp_path, [300, 4080, 900])
    assert settle(dataset) == (
        ValueRange(0, 4095),
        "3 of 3 images looked at hold values up to 4,080 in files of more than 8 bits that state no range: "
        "scaled as 12 bits (0..4095); --value-range LOW,HIGH changes it.",
    )


def test_a_dark_image_stays_dark_beside_a_bright_one(tmp_path):
    dataset = make(tmp_path, [255, 4095])
    dataset = dataset.with_value_range(settle(dataset)[0])
    assert [int(np.asarray(dataset.read(n)).max()) for n in range(2)] == [16, 255]


def test_all_parts_share_the_range(tmp_path):
    for part, largest in (("train", 900), ("val", 4000)):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            write(tmp_path / part / name / "1.png", encode_png(ramp(largest)))
    train, val = open_for_training(Source(str(tmp_path)), reporter=SILENT)
    assert train.value_range == val.value_range == ValueRange(0, 4095)


def test_images_of_eight_bits_need_no_range_and_nothing_is_said(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    dataset = FileDataset(
        [str(tmp_path / n) for n in ("a.png", "b.jpg")], np.zeros(2, np.int64), ("a",)
    )
    assert settle(dataset) == (NO_RANGE, "")


def test_of_jpegs_a_few_first_bytes_are_looked_at(tmp_path):
    class Counting(FileDataset):
        num_starts = num_reads = 0

        def read_start(self, index: int) -> bytes:
            Counting.num_starts += 1
            return super().read_start(index)

        def read_bytes(self, index: int) -> bytes:
            Counting.num_reads += 1
            return super().read_bytes(index)

    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    settle(Counting([str(tmp_path / "a.jpg")] * 1000, np.zeros(1000, np.int64), ("a",)))
    assert (Counting.num_starts, Counting.num_reads) == (4, 0)


def test_an_image_that_was_not_looked_at_is_refused_rather_than_guessed(tmp_path):
    dataset = make(tmp_path, [5000]).with_value_range(NO_RANGE)
    with pytest.raises(DataError, match="images that were looked at have 8 bits.*--value-range"):
        dataset.read(0)


def test_stated_ranges_choose_none_for_the_others(tmp_path):
    write(tmp_path / "a.png", encode_png(ramp(60000)))
    write(tmp_path / "b.png", encode_png(ramp(900), (10,)))
    write(tmp_path / "c.tif", encode_tiff(ramp(900), {341: 1023}))
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    dataset = FileDataset(paths, np.zeros(3, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert chosen == (0, 65535, False)
    assert said.startswith("1 of 3 images")
    dataset = dataset.with_value_range(chosen)
    assert np.asarray(dataset.read(2)).max() == 224  # 900 of 1023


def test_pngs_scaled_up_beyond_their_bits_decide_for_dark_ones_too(tmp_path):
    values = [np.array([[0, top & 0xFFF0]], np.uint16) for top in (0x0F00, 0xFFF0)]
    paths = [str(write(tmp_path / f"{n}.png", encode_png(v, (12,)))) for n, v in enumerate(values)]
    dataset = FileDataset(paths, np.zeros(2, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert (chosen[:2], said) == ((0, 65535), "")
    dataset = dataset.with_value_range(chosen)
    assert [int(np.asarray(dataset.read(n)).max()) for n in range(2)] == [15, 255]


def test_pngs_scaled_up_do_not_count_among_those_that_state_nothing(tmp_path):
    """None of them fills 16 bits; those with their high bits below, as the specification has them."""
    values = [np.array([[0, top << 6 | top >> 4]], np.uint16) for top in (10, 100, 200)]
    paths = [str(write(tmp_path / f"{n}.png", encode_png(v, (10,)))) for n, v in enumerate(values)]
    dataset = FileDataset(paths, np.zeros(3, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert (chosen[:2], said) == ((0, 65535), "")
    dataset = dataset.with_value_range(chosen)
    shown = [int(np.asarray(dataset.read(n)).max()) for n in range(3)]
    assert shown == [2, 25, 50]  # of 10, 100 and 200 of 1,023
    paths.append(str(write(tmp_path / "9.png", encode_png(values[0]))))
    said = settle(FileDataset(paths, np.zeros(4, np.int64), ("a",)))[1]
    assert (
        "that state no range, or in 2 PNGs were scaled up beyond the bits that they state" in said
    )


def test_pngs_that_are_dark_or_have_empty_bits_are_a_line(tmp_path):
    empty_bits = np.array([[0, 0x0660, 0x0FF0]], np.uint16)
    sure = encode_png(empty_bits + np.uint16(1), (12,))
    paths = [str(write(tmp_path / "a.png", encode_png(empty_bits, (12,))))]
    dataset = FileDataset(paths * 3, np.zeros(3, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert chosen == NO_RANGE
    assert said.startswith(
        "3 of 3 images looked at hold values within the bits that they state (sBIT)"
    )
    assert said.endswith("scaled up to 16 bits: --value-range 0,65535.")
    window, _ = settle(dataset, option="0,65535")
    assert np.asarray(dataset.with_value_range(window).read(0))[0, :, 0].tolist() == [0, 6, 16]
    paths.append(str(write(tmp_path / "b.png", sure)))
    assert settle(FileDataset(paths, np.zeros(2, np.int64), ("a",))) == (NO_RANGE, "")


def test_missing_values_in_one_image_leave_the_others_as_they_are(tmp_path):
    values = [np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8) for _ in range(4)]
    values[1][0, 0], values[2][0, 0] = -3.4e38, np.inf
    values[3][0, 0] = 1e20  # in no range that images have: this one is refused
    paths = [str(write(tmp_path / f"{n}.tif", encode_tiff(v))) for n, v in enumerate(values)]
    dataset = FileDataset(paths, np.zeros(4, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert chosen == ValueRange(0, 1)
    assert said.startswith("3 of 4 images looked at hold values up to 1 in")
    dataset = dataset.with_value_range(chosen)
    assert np.array_equal(np.asarray(dataset.read(1)), np.asarray(dataset.read(0)))
    with pytest.raises(DataError, match=r"3.tif holds values from .* to 1e\+20, outside of"):
        dataset.read(3)
    with pytest.raises(DataError, match="beyond 4,294,967,296.*--value-range LOW,HIGH"):
        settle(select(dataset, [3]).with_value_range(None))


def test_an_image_that_sets_the_range_alone_is_in_the_line(tmp_path):
    values = [ramp(1, np.float32), ramp(0.9, np.float32), ramp(1, np.float32)]
    values[2][0, 0] = -9999  # stated nowhere
    paths = [str(write(tmp_path / f"{n}.tif", encode_tiff(v))) for n, v in enumerate(values)]
    said = settle(FileDataset(paths, np.zeros(3, np.int64), ("a",)))[1]
    assert (
        "3 of 3 images looked at hold values from -9,999 to 1 (all but one of them up to 1) in"
        in said
    )


def test_an_option_without_images_that_it_scales_is_a_line(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    dataset = FileDataset([str(tmp_path / "a.png")], np.zeros(1, np.int64), ("a",))
    assert settle(dataset, option="0,100") == (
        ValueRange(0, 100, clips=True),
        "--value-range 0,100: none of the images looked at has more than 8 bits.",
    )
    assert settle(dataset, option=ValueRange(0, 100))[1] == ""  # a run that goes on
    assert settle(make(tmp_path, [300]), option="0,100")[1] == ""


def test_integers_and_floats_without_a_range_are_refused(tmp_path):
    write(tmp_path / "a.tif", encode_tiff(ramp(4000)))
    write(tmp_path / "b.tif", encode_tiff(ramp(1, np.float32)))
    dataset = FileDataset(
        [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")], np.zeros(2, np.int64), ("a",)
    )
    with pytest.raises(DataError, match="integers and some floating-point.*--value-range LOW,HIGH"):
        settle(dataset)
    assert settle(dataset, option="0,4000")[0] == ValueRange(0, 4000, clips=True)


def test_the_sample_is_bounded_and_spread(tmp_path):
    first = make(tmp_path, [900, 4000])
    paths = [first.paths[0]] * 700 + [first.paths[1]]  # the last one alone is brighter
    dataset = FileDataset(paths, np.zeros(701, np.int64), ("a",))
    chosen, said = settle(dataset)
    assert chosen == (0, 4095, False)
    assert said.startswith("256 of 256 images")


def test_unreadable_images_are_passed_over(tmp_path):
    dataset = make(tmp_path, [4000, 10])
    Path(dataset.paths[1]).write_bytes(encode_png(ramp(10))[:60])
    assert settle(dataset)[1].startswith("1 of 1 images")


def test_a_part_of_a_data_set_and_several_of_them_keep_the_range(tmp_path):
    dataset = make(tmp_path, [300, 4000])
    chosen = ValueRange(0, 4095)
    for images in (select(dataset, [0, 1]), join([dataset, dataset])):
        scaled = images.with_value_range(chosen)
        assert scaled.value_range == chosen
        assert np.asarray(scaled.read(0)).max() == 19  # 300 of 4095
        assert np.asarray(scaled.open(0)).max() == 19
    assert dataset.value_range is None


def test_another_range_is_another_fingerprint(tmp_path):
    dataset = make(tmp_path, [300, 4000])
    ranges = (
        None,
        ValueRange(0, 4095),
        ValueRange(0, 4095, clips=True),
        ValueRange(0, 4095.0001),
        ValueRange(0, 1023),
    )
    fingerprints = [fingerprint_dataset(dataset.with_value_range(r), SILENT) for r in ranges]
    assert len(set(fingerprints)) == len(ranges)
    assert fingerprint_dataset(dataset.with_value_range(NO_RANGE), SILENT) == fingerprints[0]


@pytest.mark.parametrize(
    ("name", "data", "is_hashed"),
    [
        ("a.png", encode_png(ramp(900), (12,)), True),
        ("a.tif", encode_tiff(ramp(900), {341: 1023}), True),
        ("a.png", encode_png(ramp(900))[:40], False),  # damaged
        ("a.tif", encode_tiff(ramp(255, np.uint8)), False),
    ],
)
def test_the_fingerprint_of_images_of_more_than_eight_bits_has_the_version_of_their_decoding(
    name, data, is_hashed, tmp_path, monkeypatch
):
    path = write(tmp_path / name, data)
    dataset = FileDataset([str(path)], np.zeros(1, np.int64), ("a",)).with_value_range(NO_RANGE)
    before = fingerprint_dataset(dataset, SILENT)
    monkeypatch.setattr(fingerprint, "DEEP_VERSION", 999)
    assert (fingerprint_dataset(dataset, SILENT) != before) == is_hashed


def test_a_model_sees_images_by_its_own_range(tmp_path):
    dataset = make(tmp_path, [1023]).with_value_range(ValueRange(0, 4095))
    by_model = [
        Preprocessing(img_size=40, crop_pct=1.0, value_range=value_range)
        for value_range in (None, ValueRange(0, 1023))
    ]
    views = EvalViews(dataset, by_model)[0].views
    assert [int(view.max()) for view in views] == [64, 255]


def test_digits_have_eight_bits():
    parts = open_dataset("digits", SILENT).list_parts()
    assert settle(*parts.values()) == (NO_RANGE, "")
