"""What becomes of an image on its way into a pack."""

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
from deitctl.packing.encode import Form, digest_of, keep, keep_all


@pytest.fixture
def source_of(tmp_path) -> Callable[..., FileDataset]:
    """A source of files with the given bytes; None: a file that is not there."""

    def make(*contents: bytes | None) -> FileDataset:
        for number, data in enumerate(contents):
            if data is not None:
                (tmp_path / f"{number}.jpg").write_bytes(data)
        paths = [str(tmp_path / f"{number}.jpg") for number in range(len(contents))]
        return FileDataset(paths, np.zeros(len(paths), np.int64), ("a",))

    return make


def stored(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_nothing_said_keeps_the_bytes_and_looks_at_no_image(source_of):
    data = [b"no image", b"", b"\xff\xd8 cut"]
    for index, expected in enumerate(data):
        assert keep(source_of(*data), index, Form()) == (
            expected,
            digest_of(expected),
            len(expected),
            False,
            "",
        )


def test_a_large_image_gets_the_short_side_asked_for(source_of, make_image):
    data = stored(make_image(101, 60), quality=100, subsampling="4:4:4")
    kept = keep(source_of(data), 0, Form(max_size=40))
    assert kept.encoded
    assert decode(kept.data, "x").size == (
        67,
        40,
    )  # 40 * 101 / 60 = 67.3, rounded down as evaluation does
    assert len(kept.data) < kept.before == len(data)
    assert kept.digest == digest_of(data)


def test_it_is_made_smaller_as_evaluation_makes_it(source_of, make_image):
    """Without the JPEG in between, the view of an evaluation that resizes to the same size is the same to the pixel."""
    data = stored(make_image(101, 60), quality=100, subsampling="4:4:4")
    pre = Preprocessing(img_size=32, crop_pct=0.8)  # resizes to 40
    kept = keep(source_of(data), 0, Form(max_size=40, raw=True))
    assert np.array_equal(
        eval_transform(decode(kept.data, "x"), pre), eval_transform(decode(data, "x"), pre)
    )


def test_colors_keep_their_full_size(source_of, make_image):
    """Of columns in turn red and blue, 4:2:0 would make purple."""
    stripes = np.array(make_image(640, 640))
    stripes[100:-100, :, 1] = 0
    stripes[100:-100, :, 0] = np.where(np.arange(640) // 10 % 2, 0, 200)
    stripes[100:-100, :, 2] = 200 - stripes[100:-100, :, 0]
    kept = keep(
        source_of(stored(Image.fromarray(stripes), quality=100, subsampling="4:4:4")),
        0,
        Form(max_size=64),
    )
    assert kept.encoded
    red = np.asarray(decode(kept.data, "x"), np.int16)[24:40, 8:-8, 0]
    assert red[:, 0::2].mean() - red[:, 1::2].mean() > 100  # of 130 that are left by the filter


@pytest.mark.parametrize(
    ("size", "max_size", "smaller"),
    [((40, 60), 40, False), ((40, 60), 41, False), ((41, 60), 40, True), ((60, 41), 40, True)],
)
def test_only_a_short_side_above_is_made_smaller(size, max_size, smaller, source_of, make_image):
    data = stored(make_image(*size), quality=100)
    kept = keep(source_of(data), 0, Form(max_size=max_size))
    assert kept.encoded is smaller
    assert (kept.data == data) is not smaller


def test_what_would_grow_is_kept(source_of):
    data = stored(Image.new("RGB", (64, 64), "red"), "PNG")
    kept = keep(source_of(data), 0, Form(max_size=63))
    assert (kept.data, kept.encoded, kept.why) == (data, False, "")


def test_orientation_is_applied_and_not_said_again(source_of, make_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(make_image(90, 60), exif=exif, quality=100)
    for form in (Form(max_size=30), Form(raw=True), Form(max_size=30, raw=True)):
        image = Image.open(io.BytesIO(keep(source_of(data), 0, form).data))
        assert image.height > image.width
        assert image.getexif().get(0x0112, 1) == 1


def test_bare_pixels_are_those_of_the_decoder(source_of, make_image):
    clear = make_image(20, 30).copy()
    clear.putalpha(100)
    images = [
        stored(make_image(20, 30)),
        stored(clear, "PNG"),
        stored(make_image(20, 30).convert("L"), "PNG"),
    ]
    for data in images:
        kept = keep(source_of(data), 0, Form(raw=True))
        assert kept.data == b"P6\n20 30\n255\n" + decode(data, "x").tobytes()
        assert decode(kept.data, "x").tobytes() == decode(data, "x").tobytes()


def test_pixels_that_are_more_than_an_image_may_have_are_kept_as_they_were(
    source_of, make_image, monkeypatch
):
    monkeypatch.setattr(packing, "MAX_BYTES", 1000)
    data = stored(make_image(40, 40))
    assert keep(source_of(data), 0, Form(raw=True)).data == data


@pytest.mark.parametrize("form", [Form(max_size=8), Form(raw=True)])
def test_what_is_damaged_keeps_its_bytes_and_is_named(form, source_of, make_image):
    data = stored(make_image(60, 60))[:-200]
    kept = keep(source_of(data), 0, form)
    assert (kept.data, kept.encoded) == (data, False)
    assert "0.jpg cannot be decoded" in kept.why


@pytest.mark.parametrize("form", [Form(), Form(max_size=8), Form(raw=True)])
def test_what_cannot_be_read_keeps_its_place_without_bytes(form, source_of):
    kept = keep(source_of(None), 0, form)
    assert kept[:4] == (b"", 0, 0, False)
    assert "cannot be read: No such file" in kept.why


def test_images_in_no_file_are_kept_as_pixels(digit_datasets):
    _, val = digit_datasets
    kept = keep(val, 3, Form())
    assert kept.data == b"P6\n8 8\n255\n" + val.read(3).tobytes()
    assert kept.digest == digest_of(val.read_bytes(3))


def test_a_digest_is_64_bits_of_blake2b():
    assert digest_of(b"abc").to_bytes(8, "little").hex() == "d8bb14d833d59559"  # b2sum -l 64


@pytest.mark.parametrize("form", [Form(), Form(max_size=16), Form(raw=True)])
def test_any_number_of_processes_keeps_the_same_in_the_same_order(form, source_of, make_image):
    first = source_of(*(stored(make_image(24, 18 + n, n)) for n in range(7)), None)
    alone, together = (list(keep_all([first, first], form, workers)) for workers in (0, 2))
    assert alone == together
    assert len(alone) == 16
