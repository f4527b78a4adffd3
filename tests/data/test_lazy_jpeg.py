"""Each JPEG decoder gives Pillow's pixels and Pillow's errors."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deitctl.config import AugmentConfig
from deitctl.data import lazy_jpeg as module
from deitctl.data.decode import decode
from deitctl.data.lazy_jpeg import JpegDecoder, LazyJpeg, open_image
from deitctl.data.transforms import resized_crop, train_transform
from deitctl.errors import DataError

KINDS = {
    "plain": {"quality": 90},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "stored as RGB": {"keep_rgb": True},
    "coarse": {"quality": 5},
}
TURN = 0x0112


def jpeg(image, orientation=1, **options):
    exif = Image.Exif()
    exif[TURN] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options, **({} if orientation == 1 else {"exif": exif}))
    return buffer.getvalue()


def whole(make_image):
    return make_image.crop((0, 0, *make_image.size))


LOADERS = {
    "torchcodec": module._load_torchcodec,
    "torchvision": module._load_torchvision,
    "pillow": lambda: JpegDecoder("pillow", None),
}


def use_decoder(monkeypatch, decoder):
    monkeypatch.setattr(module, "load_jpeg_decoder", lambda: decoder)


@pytest.fixture(params=LOADERS)
def decoder(request, monkeypatch):
    """Each decoder in turn; a missing one skips nothing but its own cases."""
    loaded = LOADERS[request.param]()
    if loaded is None:
        pytest.skip(f"{request.param} is not installed")
    assert loaded.name == request.param
    use_decoder(monkeypatch, loaded)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(96, 72), (61, 33), (1, 1), (8, 200)], ids=str)
def test_pixels_are_pillows(kind, size, decoder, make_image):
    data = jpeg(make_image(*size), **KINDS[kind])
    opened = open_image(data, "x")
    assert isinstance(opened, LazyJpeg)
    assert opened.size == size
    assert np.array_equal(whole(opened), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_crop_returns_the_box(decoder, make_image):
    data = jpeg(make_image())
    assert np.array_equal(
        open_image(data, "x").crop((5, 7, 50, 60)), np.asarray(decode(data, "x"))[7:60, 5:50]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied(orientation, decoder, make_image):
    data = jpeg(make_image(64, 40), orientation)
    opened = open_image(data, "x")
    assert opened.size == ((40, 64) if orientation > 4 else (64, 40)) == decode(data, "x").size
    assert np.array_equal(whole(opened), np.asarray(decode(data, "x")))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF")],
)
def test_other_images_are_decoded_immediately(mode, kind, make_image):
    buffer = io.BytesIO()
    make_image().convert(mode).save(buffer, kind)
    opened = open_image(buffer.getvalue(), "x")
    assert isinstance(opened, Image.Image)
    assert np.array_equal(np.asarray(opened), np.asarray(decode(buffer.getvalue(), "x")))


def outcome(read):
    try:
        return read().tobytes()
    except DataError as error:
        return str(error)


@given(
    cut=st.integers(0, 3000),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3),
)
def test_damaged_files_give_pillows_pixels_or_error(cut, changes, make_image):
    """The same pixels, or the same error in the same words, whichever bytes are changed or missing."""
    damaged = bytearray(jpeg(make_image(64, 48), quality=80))
    for place, value in changes:
        damaged[place % len(damaged)] = value
    data = bytes(damaged[: max(1, len(damaged) - cut // 3)])

    def ours():
        opened = open_image(data, "x.jpg")
        return np.asarray(opened) if isinstance(opened, Image.Image) else whole(opened)

    assert outcome(ours) == outcome(lambda: np.asarray(decode(data, "x.jpg")))


def test_limits_are_checked_before_anything_is_decoded(monkeypatch, make_image):
    monkeypatch.setattr(module, "load_jpeg_decoder", lambda: pytest.fail("decoded"))
    data = jpeg(make_image(96, 72))
    monkeypatch.setenv("DEITCTL_MAX_PIXELS", "6000")
    with pytest.raises(DataError, match="x has 96 x 72 pixels, more than 6,000"):
        open_image(data, "x")
    monkeypatch.delenv("DEITCTL_MAX_PIXELS")
    data = jpeg(make_image(96, 72), progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00\x12"
    with pytest.raises(DataError, match=r"x has 2\d\d scans, more than 200"):
        open_image(data[:-2] + scan * 200 + data[-2:], "x")


def test_very_large_images_are_left_to_pillow_and_its_lock(monkeypatch, make_image):
    monkeypatch.setattr(module, "LARGE", 1000)
    use_decoder(monkeypatch, JpegDecoder("x", lambda _: pytest.fail("not by Pillow")))
    data = jpeg(make_image())
    assert np.array_equal(whole(open_image(data, "x")), np.asarray(decode(data, "x")))


@pytest.mark.parametrize(
    ("size", "box", "target", "orientation", "shrink"),
    [
        ((800, 640), (400, 400), 100, 1, 2),
        ((800, 640), (400, 399), 100, 1, 1),
        ((800, 640), (800, 640), 40, 1, 8),
        ((800, 640), (639, 640), 40, 1, 4),
        ((801, 640), (400, 400), 100, 1, 2),
        ((801, 640), (400, 400), 100, 6, 1),
        ((800, 640), (400, 400), 100, 6, 2),
    ],
)
def test_a_reduced_crop_keeps_two_pixels_a_side_for_one_of_the_view(
    size, box, target, orientation, shrink
):
    assert LazyJpeg(b"", "x", size, orientation).choose_shrink(*box, target) == shrink


def make_photo(width, height, seed):
    """An image like a photo: amplitudes of 1 / frequency^1.3, deviation of 60 levels, correlated colors."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(
        np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)
    )

    def field():
        spectrum = (
            np.fft.rfft2(draw.standard_normal((height, width))) / np.maximum(frequency, 1) ** 1.3
        )
        values = np.fft.irfft2(spectrum, (height, width))
        return values / values.std()

    gray = field()
    levels = np.stack([127 + 58 * gray + 15 * field() for _ in range(3)], axis=-1)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_reduced_crop_differs_from_one_decoded_in_full_by_less_than_a_level(
    shrink, subsampling, monkeypatch
):
    """In the mean, where it keeps no more than it has to; at one pixel for one of the view by three times that."""
    size, side = 48, 2 * 48 * shrink + 1
    data = jpeg(make_photo(side + 90, side + 20, shrink), quality=90, subsampling=subsampling)
    opened, full = open_image(data, "x"), decode(data, "x")
    box = (37, 13, 37 + side, 13 + side)

    def mean_difference(size):
        assert opened.choose_shrink(side, side, size) == shrink
        views = [np.asarray(resized_crop(image, box, size)).astype(int) for image in (opened, full)]
        return np.abs(views[0] - views[1]).mean()

    bounded = mean_difference(size)
    assert 0 < bounded < 1
    monkeypatch.setattr(module, "OVERSAMPLING", 1)
    assert mean_difference(2 * size) > 3 * bounded


@pytest.mark.parametrize("corner", [(0, 0), (256, 0), (0, 256), (256, 256)])
def test_nothing_outside_of_a_reduced_crop_shows_at_its_edges(corner):
    """A white square on black, its sides on the borders of JPEG's blocks, is a white view."""
    left, top = corner
    levels = np.zeros((512, 512, 3), np.uint8)
    levels[top : top + 256, left : left + 256] = 255
    opened = open_image(jpeg(Image.fromarray(levels), quality=95, subsampling=0), "x")
    assert opened.choose_shrink(256, 256, 64) == 2
    view = np.asarray(resized_crop(opened, (left, top, left + 256, top + 256), 64))
    assert view.min() == 255


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(640, 480), (643, 485)], ids=str)
def test_a_shrunk_crop_is_the_same_crop(orientation, size, make_image):
    """Decoded at a quarter, it is where it was: moved by two pixels of the image, it differs more."""
    smooth = make_image(40, 30).resize(size, Image.Resampling.BICUBIC)
    data = jpeg(smooth, orientation, quality=95)
    opened, full = open_image(data, "x"), decode(data, "x")
    box = (21, 13, 21 + 400, 13 + 420)
    shown = np.asarray(resized_crop(opened, box, 96)).astype(float)
    errors = {
        by: np.abs(
            shown
            - np.asarray(resized_crop(full, tuple(np.add(box, (by, by, by, by)).tolist()), 96))
        ).mean()
        for by in (-2, 0, 2)
    }
    assert errors[0] < 1
    assert errors[0] < 0.6 * min(errors[-2], errors[2])


def test_a_view_of_an_image_is_the_view_of_its_pixels(make_image):
    """Where nothing is shrunk; and so whatever the source keeps its images in."""
    augment = AugmentConfig(crop_scale=(0.1, 1.0), hflip=0.5, rand_augment="rand-m9-mstd0.5-inc1")
    data = jpeg(make_image(300, 200))
    for index in range(10):
        views = [
            train_transform(p, augment, 224, 0, 0, index)
            for p in (open_image(data, "x"), decode(data, "x"))
        ]
        assert np.array_equal(*views)


def test_decoders_are_tried_in_order(monkeypatch):
    load = module.load_jpeg_decoder.__wrapped__
    if module._load_torchcodec() is not None:
        assert load().name == "torchcodec"
    monkeypatch.setattr(module, "_load_torchcodec", lambda: None)
    assert load().name == "torchvision"
    monkeypatch.setattr(module, "_load_torchvision", lambda: None)
    assert load() == ("pillow", None)


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_torchcodec_that_cannot_be_loaded_counts_as_missing(error, monkeypatch):
    def fail(name, *args, real=builtins.__import__):
        if name.startswith("torchcodec"):
            raise error("libcudart.so.13: cannot open shared object file")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert module._load_torchcodec() is None


def test_torchvision_is_not_imported_and_can_be_afterwards():
    code = """
import sys, torch
from deitctl.data import lazy_jpeg
decoder = lazy_jpeg._load_torchvision()
lazy_jpeg.load_jpeg_decoder()
assert "torchvision" not in sys.modules
from torchvision.io import decode_jpeg, encode_jpeg
data = encode_jpeg(torch.arange(3 * 16 * 16).reshape(3, 16, 16).to(torch.uint8))
assert torch.equal(decoder.decode(data.numpy().tobytes()), decode_jpeg(data))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
