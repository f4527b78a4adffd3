import io
import tracemalloc

import imagecodecs  # noqa: F401  # of the extra `tiff`
import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.band_image import BandImage, show_bands
from deitctl.data.bands import count_bands, decode_bands, measure_bands, require_bands
from deitctl.data.eval_transform import eval_transform
from deitctl.data.transforms import render_view
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing, ValueRange

SHAPE = (12, 10, 5)


def draw(shape=SHAPE, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file.getvalue()


def pages(array, tiled=False):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for band in np.moveaxis(array, 2, 0):
            writer.write(band, contiguous=False, photometric="minisblack")
    return file.getvalue()


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_every_way_to_store_bands_gives_the_same_pixels(dtype):
    values = draw(dtype=dtype, high=250 if dtype == "u1" else 4000)
    value_range = ValueRange(0, 4095)
    stored = [
        npy(values),
        npy(np.moveaxis(values, 2, 0)),
        npy(np.asfortranarray(values)),
        tiff(values, planarconfig="contig"),
        tiff(values, planarconfig="contig", compression="lzw"),
        tiff(np.moveaxis(values, 2, 0), planarconfig="separate", byteorder=">"),
        pages(values),
    ]
    expected = values if dtype == "u1" else np.rint(values / np.float64(4095) * 255)
    for data in stored:
        image = decode_bands(data, "x", 5, value_range)
        assert np.array_equal(np.asarray(image), expected)
        measured = measure_bands(data, "x", 5)
        assert (measured is None) == (dtype == "u1")
        assert measured is None or measured[:3] == (values.min(), values.max(), dtype == "f4")


def test_a_tiff_is_turned_upright():
    values = draw()
    turned = tiff(np.rot90(values).copy(), planarconfig="contig", extratags=[(274, 3, 1, 6)])
    assert np.array_equal(np.asarray(decode_bands(turned, "x", 5)), values)


def test_nodata_and_nan_are_black_and_set_no_range():
    values = draw(dtype="f4", high=100)
    values[0, 0] = -9999
    values[1, 1] = np.nan
    data = tiff(values, planarconfig="contig", extratags=[(42113, 2, 0, "-9999")])
    assert measure_bands(data, "x", 5).low >= 0
    pixels = np.asarray(decode_bands(data, "x", 5, ValueRange(0, 128)))
    assert not pixels[0, 0].any()
    assert not pixels[1, 1].any()


def test_alpha_and_cmyk_are_bands_where_their_number_is_named():
    rgba = draw((8, 9, 4))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for image in (
        encode(Image.fromarray(rgba), "PNG"),
        encode(Image.fromarray(rgba), "TIFF", tiffinfo=tags),
    ):
        assert np.array_equal(np.asarray(decode_bands(image, "x", 4)), rgba)
    gray = draw((8, 9, 2))
    assert np.array_equal(
        np.asarray(decode_bands(encode(Image.fromarray(gray, "LA"), "PNG"), "x", 2)), gray
    )
    cmyk = encode(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "JPEG")
    assert len(decode_bands(cmyk, "x", 4).bands) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(Image.new("RGB", (8, 8)), "JPEG"), r"x has 3 bands \(RGB\), and --in-chans 4"),
        (encode(Image.new("L", (8, 8)), "PNG"), r"x has 1 band \(gray\)"),
        (tiff(draw(), planarconfig="contig"), "x has 5 bands, and --in-chans 4 .*--in-chans 5 "),
        (pages(draw()), "x has 5 bands"),
        (npy(draw()), r"shape 12x10x5, where an image of 4 bands is \[H,W,4\] or \[4,H,W\]"),
        (npy(draw((4, 9, 4))), "not clear"),
        (npy(draw((9, 9, 4)).astype("c8")), "array of complex64"),
        (npy(draw((9, 9, 4)))[:-1], "cut short"),
        (b"\x93NUMPY\x01\x00", "header cannot be read"),
        (npy(draw()).replace(b"}", b"("), "header cannot be read"),
    ],
)
def test_images_without_the_bands_are_refused_with_what_they_have(data, message):
    for refuse in (decode_bands, require_bands):
        with pytest.raises(DataError, match=message):
            refuse(data, "x", 4)


def test_objects_are_not_unpickled():
    file = io.BytesIO()
    np.save(file, np.full((4, 4, 4), None), allow_pickle=True)
    with pytest.raises(DataError, match="array of object"):
        decode_bands(file.getvalue(), "x", 4)


def test_a_header_allocates_nothing_before_its_size_is_checked():
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (60000, 1500, 4)}
    np.lib.format.write_array_header_1_0(file, header)
    huge = file.getvalue() + bytes(8)
    tracemalloc.start()
    with pytest.raises(DataError, match="bytes of values"):
        decode_bands(huge, "x", 4)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_bands_are_counted_where_they_are_no_colors():
    assert count_bands(tiff(draw(), planarconfig="contig")) == 5
    assert count_bands(pages(draw())) == 5
    assert count_bands(encode(Image.new("RGB", (8, 8)), "TIFF")) is None
    assert count_bands(npy(draw())) is None


CONFIG = AugmentConfig(crop_scale=(0.3, 1.0), hflip=0.5, affine=(20.0, 0.2, 0.1))


@pytest.mark.parametrize("side", [8, 20])
def test_a_view_of_bands_is_that_of_rgb_band_by_band(side):
    rgb = draw((50, 60, 3))
    bands = BandImage.from_array(np.concatenate([rgb, rgb[..., ::-1]], axis=2))
    for index in range(4):
        of_rgb = np.asarray(render_view(Image.fromarray(rgb), CONFIG, side, 0, 0, index), int)
        of_bands = np.asarray(render_view(bands, CONFIG, side, 0, 0, index), int)
        expected = np.concatenate([of_rgb, of_rgb[..., ::-1]], axis=2)
        assert np.abs(of_bands - expected).max() <= 1  # torch's kernels of 3 and 6 channels round


def test_an_evaluation_view_has_the_pixels_of_each_band_alone():
    values = draw((50, 60, 5))
    pre = Preprocessing(img_size=(16, 24), mean=(0.5,) * 5, std=(0.5,) * 5)
    view = eval_transform(BandImage.from_array(values), pre)
    assert view.shape == (5, 16, 24)
    gray = Preprocessing(img_size=(16, 24), mean=(0.5,), std=(0.5,))
    for band in range(5):
        alone = eval_transform(Image.fromarray(values[..., band].copy()).convert("RGB"), gray)
        assert np.array_equal(view[band], alone[0])


def test_a_model_of_bands_refuses_rgb_and_the_reverse():
    image = BandImage.from_array(draw())
    with pytest.raises(DataError, match="has 5 bands, and the model takes 3"):
        eval_transform(image, Preprocessing(img_size=8))
    with pytest.raises(DataError, match="has 3 bands, and the model takes 4"):
        eval_transform(
            show_bands(image), Preprocessing(img_size=8, mean=(0.5,) * 4, std=(1.0,) * 4)
        )


def test_pixels_outlive_their_image():
    values = draw((200, 200, 5))
    pixels = [np.asarray(BandImage.from_array(values).crop((0, 0, 200, 200))) for _ in range(20)]
    rng.generator(0, "other memory").random(10**6)
    assert all(np.array_equal(p, values) for p in pixels)
