"""Images are copied, encoded as smaller JPEGs or stored as pixels, and keep their order whatever the processes."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import FileDataset
from deitctl.data.decode import decode
from deitctl.data.eval_transform import eval_transform
from deitctl.models.model_config import Preprocessing
from deitctl.packing import encode as packing
from deitctl.packing.encode import Encoding, compute_digest, encode_image, encode_images


@pytest.fixture
def make_dataset(tmp_path) -> Callable[..., FileDataset]:
    """A data set of files with the given bytes; None: a missing file."""

    def make(*contents: bytes | None) -> FileDataset:
        for number, data in enumerate(contents):
            if data is not None:
                (tmp_path / f"{number}.jpg").write_bytes(data)
        paths = [str(tmp_path / f"{number}.jpg") for number in range(len(contents))]
        return FileDataset(paths, np.zeros(len(paths), np.int64), ("a",))

    return make


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_by_default_files_are_copied_undecoded(make_dataset):
    data = [b"no image", b"", b"\xff\xd8 cut"]
    for index, expected in enumerate(data):
        assert encode_image(make_dataset(*data), index, Encoding()) == (
            expected,
            compute_digest(expected),
            len(expected),
            False,
            "",
        )


def test_a_large_image_gets_the_requested_short_side(make_dataset, make_image):
    data = encode(make_image(101, 60), quality=100, subsampling="4:4:4")
    stored = encode_image(make_dataset(data), 0, Encoding(max_size=40))
    assert stored.encoded
    # 40 * 101 / 60 = 67.3, rounded down as evaluation does
    assert decode(stored.data, "x").size == (67, 40)
    assert len(stored.data) < stored.source_bytes == len(data)
    assert stored.digest == compute_digest(data)


def test_images_are_resized_as_in_evaluation(make_dataset, make_image):
    """Without the JPEG in between, the view of an evaluation that resizes to the same size is the same to the pixel."""
    data = encode(make_image(101, 60), quality=100, subsampling="4:4:4")
    pre = Preprocessing(img_size=32, crop_pct=0.8)  # resizes to 40
    stored = encode_image(make_dataset(data), 0, Encoding(max_size=40, raw=True))
    assert np.array_equal(
        eval_transform(decode(stored.data, "x"), pre), eval_transform(decode(data, "x"), pre)
    )


def test_colors_keep_their_full_size(make_dataset, make_image):
    """Of columns in turn red and blue, 4:2:0 would make purple."""
    stripes = np.array(make_image(640, 640))
    stripes[100:-100, :, 1] = 0
    stripes[100:-100, :, 0] = np.where(np.arange(640) // 10 % 2, 0, 200)
    stripes[100:-100, :, 2] = 200 - stripes[100:-100, :, 0]
    stored = encode_image(
        make_dataset(encode(Image.fromarray(stripes), quality=100, subsampling="4:4:4")),
        0,
        Encoding(max_size=64),
    )
    assert stored.encoded
    red = np.asarray(decode(stored.data, "x"), np.int16)[24:40, 8:-8, 0]
    assert red[:, 0::2].mean() - red[:, 1::2].mean() > 100  # of 130 that are left by the filter


@pytest.mark.parametrize(
    ("size", "max_size", "smaller"),
    [((40, 60), 40, False), ((40, 60), 41, False), ((41, 60), 40, True), ((60, 41), 40, True)],
)
def test_only_images_with_a_larger_short_side_are_resized(
    size, max_size, smaller, make_dataset, make_image
):
    data = encode(make_image(*size), quality=100)
    stored = encode_image(make_dataset(data), 0, Encoding(max_size=max_size))
    assert stored.encoded is smaller
    assert (stored.data == data) is not smaller


def test_what_would_grow_is_encode(make_dataset):
    data = encode(Image.new("RGB", (64, 64), "red"), "PNG")
    stored = encode_image(make_dataset(data), 0, Encoding(max_size=63))
    assert (stored.data, stored.encoded, stored.error) == (data, False, "")


def test_orientation_is_applied_and_removed(make_dataset, make_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_image(90, 60), exif=exif, quality=100)
    for encoding in (Encoding(max_size=30), Encoding(raw=True), Encoding(max_size=30, raw=True)):
        image = Image.open(io.BytesIO(encode_image(make_dataset(data), 0, encoding).data))
        assert image.height > image.width
        assert image.getexif().get(0x0112, 1) == 1


def test_raw_pixels_are_those_of_the_decoder(make_dataset, make_image):
    clear = make_image(20, 30).copy()
    clear.putalpha(100)
    images = [
        encode(make_image(20, 30)),
        encode(clear, "PNG"),
        encode(make_image(20, 30).convert("L"), "PNG"),
    ]
    for data in images:
        stored = encode_image(make_dataset(data), 0, Encoding(raw=True))
        assert stored.data == b"P6\n20 30\n255\n" + decode(data, "x").tobytes()
        assert decode(stored.data, "x").tobytes() == decode(data, "x").tobytes()


def test_an_image_with_too_many_bytes_of_pixels_is_copied(make_dataset, make_image, monkeypatch):
    monkeypatch.setattr(packing, "MAX_BYTES", 1000)
    data = encode(make_image(40, 40))
    assert encode_image(make_dataset(data), 0, Encoding(raw=True)).data == data


@pytest.mark.parametrize("encoding", [Encoding(max_size=8), Encoding(raw=True)])
def test_a_damaged_image_is_copied_and_reported(encoding, make_dataset, make_image):
    data = encode(make_image(60, 60))[:-200]
    stored = encode_image(make_dataset(data), 0, encoding)
    assert (stored.data, stored.encoded) == (data, False)
    assert "0.jpg cannot be decoded" in stored.error


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(max_size=8), Encoding(raw=True)])
def test_an_unreadable_image_keeps_its_place_without_bytes(encoding, make_dataset):
    stored = encode_image(make_dataset(None), 0, encoding)
    assert stored[:4] == (b"", 0, 0, False)
    assert "cannot be read: No such file" in stored.error


def test_images_of_an_array_are_stored_as_pixels(digit_datasets):
    _, val = digit_datasets
    stored = encode_image(val, 3, Encoding())
    assert stored.data == b"P6\n8 8\n255\n" + val.read(3).tobytes()
    assert stored.digest == compute_digest(val.read_bytes(3))


def test_a_digest_is_64_bits_of_blake2b():
    assert compute_digest(b"abc").to_bytes(8, "little").hex() == "d8bb14d833d59559"  # b2sum -l 64


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(max_size=16), Encoding(raw=True)])
def test_any_number_of_processes_gives_the_same_in_the_same_order(
    encoding, make_dataset, make_image
):
    first = make_dataset(*(encode(make_image(24, 18 + n, n)) for n in range(7)), None)
    alone, together = (list(encode_images([first, first], encoding, workers)) for workers in (0, 2))
    assert alone == together
    assert len(alone) == 16
