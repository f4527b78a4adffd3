"""Decoding of images of N bands: TIFFs, NumPy arrays, and images with alpha or CMYK where N is theirs."""

from __future__ import annotations

import io
from importlib.util import find_spec
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.config import MAX_CHANS
from deitctl.data.band_image import BandImage
from deitctl.data.decode import (
    decode_own_mode,
    get_max_pixels,
    measure_values,
    named_errors,
    open_header,
    read_pages,
    require_size,
)
from deitctl.data.decode_limits import MAX_TILES
from deitctl.data.deep_image import Measured, choose_unstated, scale_values
from deitctl.data.file_types import is_raw
from deitctl.data.magic import TIFF_STARTS
from deitctl.data.tiff_tags import (
    BITS,
    FORMAT,
    HEIGHT,
    NEW_SUBFILE,
    ORIENTATION,
    PHOTOMETRIC,
    SAMPLES,
    WIDTH,
    TiffTags,
    iterate_directories,
)
from deitctl.data.value_range import NODATA, find_missing
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange

Values = NDArray[Any]
NPY_START = b"\x93NUMPY"
MAX_PIXEL_BYTES = 17
"""Of all bands, where an image has as many pixels as it may: what the largest RGB image takes."""
MAX_HEADER = 10_000
"""Bytes of an array's header."""
DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")
BANDS_VERSION = 1
"""Increased when `decode_bands` gives other pixels; cached teacher targets are then stale."""
ALPHA_MODES = {"LA": 2, "RGBA": 4, "CMYK": 4}
"""Pillow's modes that are read as bands."""
INSTALL_TIFF = "pip install 'deitctl[tiff]'"


class Bands(NamedTuple):
    """The values of an image of bands."""

    values: Values
    """[H,W,N], upright."""
    nodata: float | None = None
    """That stands for none."""

    @property
    def is_eight_bit(self) -> bool:
        """Whether the values are pixels as they are."""
        return self.values.dtype == np.uint8


def decode_bands(
    data: bytes, name: str, num_bands: int, value_range: ValueRange | None = None
) -> BandImage:
    """Decode an image of `num_bands` bands, upright; values of more than 8 bits are scaled to 8.

    Args:
        data: the file.
        name: of the image, for messages.
        num_bands: that it must have.
        value_range: of the data, see `decode`; one range for all bands.

    Raises:
        DataError: as `decode`, or it has another number of bands.
    """
    if not _is_array(data):
        image = decode_own_mode(data, name, value_range)
        if ALPHA_MODES.get(image.mode) != num_bands:
            raise _make_refusal(name, image.mode, num_bands)
        return BandImage(image.split())
    bands = _read(data, name, num_bands)
    if bands.is_eight_bit:
        return BandImage.from_array(bands.values)
    is_clipped = value_range is not None and value_range.clips
    chosen = value_range if is_clipped else choose_unstated(_measure(bands), value_range, name)
    assert chosen is not None
    pixels = np.empty(bands.values.shape, np.uint8)
    for place in range(num_bands):  # in the memory of one
        values = bands.values[..., place]
        pixels[..., place] = scale_values(values, chosen)
        if (missing := find_missing(values, bands.nodata)) is not None:
            pixels[..., place][missing] = 0
    return BandImage.from_array(pixels)


def measure_bands(data: bytes, name: str, num_bands: int) -> Measured | None:
    """Measure the values of an image of bands of more than 8 bits; None for one of 8.

    Raises:
        DataError: as `decode_bands`.
    """
    if not _is_array(data):
        return measure_values(data, name)
    bands = _read(data, name, num_bands)
    return None if bands.is_eight_bit else _measure(bands)


def require_bands(data: bytes, name: str, num_bands: int) -> None:
    """Raise `DataError` if the header of an image shows that it has not so many bands, or cannot be read."""
    if data.startswith(NPY_START):
        _read_array(data, name, num_bands)
    elif data.startswith(TIFF_STARTS):
        _find_tiff_pages(data, name, num_bands)
    else:
        mode = open_header(data, name).mode
        if ALPHA_MODES.get(mode) != num_bands and not mode.startswith(("I", "F")):
            raise _make_refusal(name, mode, num_bands)


def count_bands(data: bytes) -> int | None:
    """Return the bands of a TIFF that is neither gray nor RGB; None of any other file."""
    if not data.startswith(TIFF_STARTS) or is_raw(data):
        return None
    samples, pages = _count_tiff(data)
    count = samples if samples > 1 else len(pages)
    return None if count in (1, 3) else count


def _is_array(data: bytes) -> bool:
    """Whether an image is read by its values: an array, or a TIFF but one that Pillow has a mode for."""
    if data.startswith(NPY_START):
        return True
    if not data.startswith(TIFF_STARTS):
        return False
    tags = next(iterate_directories(data))
    is_eight_bit = set(tags.values.get(BITS, (1,))) == {8} and tags.is_unsigned
    samples = tags.values.get(SAMPLES, (1,))[0]
    return not (is_eight_bit and samples in (2, 4) and _has_mode(data))


def _has_mode(data: bytes) -> bool:
    try:
        return open_header(data, "").mode in ALPHA_MODES
    except DataError:
        return False


def _read(data: bytes, name: str, num_bands: int) -> Bands:
    if data.startswith(NPY_START):
        return Bands(_read_array(data, name, num_bands))
    return _read_tiff(data, name, num_bands)


def _measure(bands: Bands) -> Measured:
    low, high = np.inf, -np.inf
    for place in range(bands.values.shape[2]):
        values = bands.values[..., place]
        if (missing := find_missing(values, bands.nodata)) is not None:
            values = values[~missing]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:  # no values at all
        low = high = 0.0
    is_float = bands.values.dtype.kind == "f"
    height, width, count = bands.values.shape
    return Measured(low, high, is_float, None, False, False, height * width * count)


def _read_array(data: bytes, name: str, num_bands: int) -> Values:
    """Return the values of a .npy file, [H,W,N]; its header is checked before anything is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_fortran, dtype = readers[version](file, max_header_size=MAX_HEADER)
    except Exception as error:  # damaged text raises SyntaxError, TokenError, TypeError ...
        raise DataError(f"{name} is a NumPy array whose header cannot be read.") from error
    if dtype.hasobject or dtype.str[1:] not in DTYPES:
        raise DataError(
            f"{name} is an array of {dtype}.", "Bands are uint8, uint16, int16, float or the like."
        )
    height, width, channels_first = _find_axes(shape, num_bands, name)
    require_values((width, height), num_bands, dtype.itemsize, name)
    count = height * width * num_bands
    if len(data) - file.tell() != count * dtype.itemsize:
        raise DataError(f"{name} is a NumPy array that is cut short.", "Copy it again.")
    values = np.frombuffer(data, dtype, count, file.tell())
    values = values.reshape(shape, order="F" if is_fortran else "C")
    return np.moveaxis(values, 0, 2) if channels_first else values


def _find_axes(shape: tuple[int, ...], num_bands: int, name: str) -> tuple[int, int, bool]:
    """Return height, width and whether bands come first, of an array's shape.

    Raises:
        DataError: it is that of no image of `num_bands`, or of one in two ways.
    """
    is_last, is_first = (len(shape) == 3 and shape[axis] == num_bands for axis in (2, 0))
    if not is_last and not is_first:
        raise DataError(
            f"{name} is an array of shape {'x'.join(map(str, shape)) or 'of one number'}, where an "
            f"image of {num_bands} bands is [H,W,{num_bands}] or [{num_bands},H,W].",
            _describe_way_on(),
        )
    if is_last and is_first and shape[1] != num_bands:
        raise DataError(
            f"{name} is an array of shape {'x'.join(map(str, shape))}: which axis has its bands is "
            "not clear.",
            "Use images of more pixels than bands.",
        )
    if 0 in shape:
        raise DataError(f"{name} is an array without pixels.")
    return (shape[0], shape[1], False) if is_last else (shape[1], shape[2], True)


def _read_tiff(data: bytes, name: str, num_bands: int) -> Bands:
    places = _find_tiff_pages(data, name, num_bands)
    first = next(iterate_directories(data))
    pages = None
    if len(places) > 1 and _is_of_pillow(first):
        try:
            pages = read_pages(data, name, places)
        except DataError:  # such as a compression that Pillow lacks
            pages = None
    nodata = None
    if pages is None:
        pages, nodata = _read_by_tifffile(data, name, places)
        pages = [_turn_upright(page, first.values.get(ORIENTATION, (1,))[0]) for page in pages]
    values = pages[0] if len(pages) == 1 else np.stack(pages, axis=2)
    if values.ndim != 3 or values.shape[2] != num_bands:
        raise DataError(f"{name} has values of shape {values.shape}, not of {num_bands} bands.")
    return Bands(values, nodata)


def _is_of_pillow(tags: TiffTags) -> bool:
    """Whether Pillow reads the values of a band of such a TIFF as they are."""
    bits = tags.values.get(BITS, (1,))[0]
    return bits in (8, 16) and tags.is_unsigned and NODATA not in tags.values


def _find_tiff_pages(data: bytes, name: str, num_bands: int) -> tuple[int, ...]:
    """Return the places of the directories that hold the bands: one of N samples, or N of one.

    Raises:
        DataError: it has another number of bands, or more pixels than are read.
    """
    if is_raw(data):
        open_header(data, name)  # which refuses it
    samples, pages = _count_tiff(data)
    first = next(iterate_directories(data), TiffTags({}))
    width, height = (first.values.get(tag, (0,))[0] for tag in (WIDTH, HEIGHT))
    if not (width and height and samples):
        open_header(data, name)
        raise DataError(f"{name} is a damaged TIFF.", "Copy or download it again.")
    count = samples if samples > 1 else len(pages)
    if count != num_bands:
        raise DataError(
            f"{name} has {count} band{'s' * (count != 1)}, and --in-chans {num_bands} takes images "
            f"of {num_bands}.",
            _describe_way_on(count),
        )
    if samples == 1 and first.values.get(PHOTOMETRIC, (1,))[0] == 0:
        raise DataError(
            f"{name} has bands in which 0 is white.", "Store them with 0 as black (MinIsBlack)."
        )
    item_bytes = -(-max(first.values.get(BITS, (1,))) // 8)
    require_values((width, height), num_bands, item_bytes, name)
    return (0,) if samples > 1 else pages


def _count_tiff(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Return the samples of a pixel, and the places of the pages that are as the first one.

    Smaller copies of the image, which pyramids have, do not count.
    """
    samples, pages, kind = 0, [], ()
    for place, tags in enumerate(islice(iterate_directories(data), 4 * MAX_CHANS)):
        bits = tags.values.get(BITS, (1,))
        own: tuple[Any, ...] = (
            *(tags.values.get(tag, (0,))[0] for tag in (WIDTH, HEIGHT)),
            bits,
            tags.values.get(FORMAT, (1,))[0],
        )
        if not place:
            samples, kind = tags.values.get(SAMPLES, (len(bits),))[0], own
        if own == kind and not tags.values.get(NEW_SUBFILE, (0,))[0] & 1:
            pages.append(place)
    return samples, tuple(pages)


def _read_by_tifffile(
    data: bytes, name: str, places: tuple[int, ...]
) -> tuple[list[Values], float | None]:
    """Return the values of pages as tifffile reads them, [H,W] or [H,W,C], and what stands for none.

    Raises:
        DataError: it is not installed, or the file is damaged.
    """
    # imagecodecs bounds what a compressed tile becomes.
    if any(find_spec(package) is None for package in ("tifffile", "imagecodecs")):
        raise DataError(
            f"{name} is a TIFF of bands that Pillow does not read.", f"{INSTALL_TIFF} reads it."
        )
    import tifffile

    with named_errors(data, name), tifffile.TiffFile(io.BytesIO(data)) as file:
        values = []
        for place in places:
            page: Any = file.pages[place]
            if len(page.dataoffsets) > MAX_TILES:
                raise DataError(f"{name} has more than {MAX_TILES:,} tiles.")
            array = page.asarray(maxworkers=1)
            is_planar = array.ndim == 3 and page.planarconfig == 2
            values.append(np.moveaxis(array, 0, 2) if is_planar else array)
        text = file.pages.first.tags.valueof(NODATA)
    try:
        return values, float(text.strip(" \0")) if isinstance(text, str) else None
    except ValueError:
        return values, None


def _turn_upright(values: Values, orientation: int) -> Values:
    """Return values [H,W] or [H,W,C] as EXIF's orientation, 1 to 8, has them upright."""
    if orientation in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return values[rows, columns]


def require_values(size: tuple[int, int], num_bands: int, item_bytes: int, name: str) -> None:
    """Raise `DataError` if an image of bands has more pixels, or takes more memory, than is read."""
    require_size(size, name)
    num_bytes, most = size[0] * size[1] * num_bands * item_bytes, MAX_PIXEL_BYTES * get_max_pixels()
    if num_bytes > most:
        raise DataError(f"{name} has {num_bytes:,} bytes of values, more than {most:,}.")


def _make_refusal(name: str, mode: str, num_bands: int) -> DataError:
    """Return the error of an image of Pillow's mode that has not the bands of the model."""
    count = ALPHA_MODES.get(mode) or (1 if mode in ("1", "L", "F") or mode[0] == "I" else 3)
    kind = {1: "gray", 3: "RGB"}.get(count, mode)
    return DataError(
        f"{name} has {count} band{'s' * (count != 1)} ({kind}), and --in-chans {num_bands} takes "
        f"images of {num_bands}.",
        _describe_way_on(count),
    )


def _describe_way_on(count: int = 0) -> str:
    if count in (1, 3):
        return "Leave --in-chans out for images of RGB, or remove such images from the data."
    own = f"--in-chans {count} reads it; a" if count else "A"
    return f"{own} model takes images of one number of bands."
