"""Images from paths, URLs, bytes, Pillow images, arrays and tensors, read ahead in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.band_image import BandImage, has_bands
from deitctl.data.bands import decode_bands
from deitctl.data.decode import convert_image, decode, read_bytes, read_image
from deitctl.data.deep_image import Measured, RangeNeeded
from deitctl.data.eval_transform import Pixels, eval_transform, has_extreme_aspect
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.input_range import InputRange
from deitctl.models.model_config import Preprocessing, ValueRange
from deitctl.paths import suggest_path
from deitctl.threads import DaemonThreads

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | Image.Image | NDArray[Any] | torch.Tensor"
)
"""Path, URL, file's bytes, Pillow image, uint8 array [H,W,3], tensor [3,H,W] uint8 or 0..1."""
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"
STDIN = "-"
MAX_SUGGESTIONS = 10
"""Inputs that are compared with the names beside them."""
T = TypeVar("T")
R = TypeVar("R")


class Input(NamedTuple):
    """One input of a batch."""

    name: str
    pixels: Pixels | None
    """uint8 [3,S,S], or [3,H,W] for a model that resizes; None if it could not be read."""
    error: str | None


class _Unscaled(NamedTuple):
    """An input of more than 8 bits that states no range, as long as there is none."""

    name: str
    image: ImageLike
    measured: Measured | None


def is_image(images: Images) -> bool:
    """Return whether this is one image; arrays and tensors with a batch dimension are several.

    What is neither an image nor a list of images counts as one, which `open_image` refuses.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        return True
    if not isinstance(images, Iterable) or hasattr(images, "read"):  # a file iterates its lines
        return True
    num_dims = getattr(images, "ndim", None)
    if num_dims is None:
        return False
    is_array_of_objects = getattr(getattr(images, "dtype", None), "kind", "") in ("U", "O")
    return num_dims == 0 or (num_dims <= 3 and not is_array_of_objects)


def expand(
    images: Iterable[ImageLike], stdin: Iterable[str] = (), scan: FolderScan | None = None
) -> Iterator[ImageLike]:
    """Yield every image: of folders the files, sorted, and for `-` the lines of `stdin`.

    `scan` counts what is passed over in folders.
    """
    scan = scan or FolderScan()
    for image in images:
        if isinstance(image, str) and image == STDIN:
            yield from (line.rstrip("\r\n") for line in stdin if line.strip())
        elif isinstance(image, str | Path) and is_folder(str(image)):
            path = local_path(str(image))
            files = scan.list_images(path)
            # open_image refuses an empty folder, so that its place in the results says so
            yield next(files, path)
            yield from files
        else:
            yield image


def suggest_inputs(images: Iterable[str]) -> Iterator[str]:
    """Yield a line for each of the first inputs that is not there but is spelled like something that is."""
    for name in islice(images, MAX_SUGGESTIONS):
        if name != STDIN and "://" not in name and not os.path.exists(name):
            hint = suggest_path(name)
            if hint:
                yield f"There is no {name!r}. {hint}"


def is_url(name: str) -> bool:
    """Return whether a name is an http or https address."""
    return name.lower().startswith(("http://", "https://"))


def is_folder(name: str) -> bool:
    """Return whether a name is a local folder."""
    return not is_url(name) and os.path.isdir(local_path(name))


def local_path(name: str) -> str:
    """Return the path of a `file://` address; any other name unchanged."""
    if not name.lower().startswith("file://"):
        return name
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        parts = urlsplit(name)
    except ValueError:  # half of an IPv6 address
        return name
    # the address of another host stays as it is, and no such file will be found
    return url2pathname(parts.path) if parts.netloc in ("", "localhost") else name


def name_image(image: ImageLike, index: int) -> str:
    """Return what results call an image: its path or URL, or its position."""
    return str(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def open_image(
    image: ImageLike,
    name: str = "the image",
    value_range: ValueRange | None = None,
    bands: int = 0,
) -> Image.Image:
    """Return an image as upright RGB, or by its bands.

    Args:
        image: see `ImageLike`.
        name: for messages, of an image without a path.
        value_range: of images of more than 8 bits, see `decode`.
        bands: that a model takes, see `decode_bands`; 0: RGB.

    Raises:
        DataError: it cannot be read or downloaded, or an array has another dtype, shape or range.
    """
    if isinstance(image, str | os.PathLike):
        return _open_name(str(image), value_range, bands)
    if bands:
        return _open_bands(image, name, value_range, bands)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), name, value_range=value_range)
    if isinstance(image, Image.Image):
        return convert_image(image, name, value_range)
    torch = sys.modules.get("torch")  # nobody has a tensor without having imported it
    if torch is not None and isinstance(image, torch.Tensor):
        return Image.fromarray(_tensor_to_array(image, name))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(
                f"{name} is an array of dtype {image.dtype} and shape {list(image.shape)}.",
                "An array image is uint8 and [H,W,3], in RGB.",
            )
        return Image.fromarray(np.ascontiguousarray(image))
    if hasattr(image, "read"):
        raise DataError(f"{name} is an open file.", "Pass its path, or its bytes: file.read().")
    raise DataError(
        f"{name} is of type {type(image).__name__}.",
        "An image is a path, URL, bytes, Pillow image, array [H,W,3] or tensor [3,H,W].",
    )


def _fetch(image: ImageLike) -> ImageLike:
    """Return the file's bytes of an address, and anything else as it is."""
    if not isinstance(image, str) or not is_url(image):
        return image
    from deitctl.inference.download import fetch  # http takes longer to import than to decode

    return fetch(image)


def _open_bands(
    image: ImageLike, name: str, value_range: ValueRange | None, bands: int
) -> Image.Image:
    """Return an image of bands: of a file's bytes, or of an array of 8 bits."""
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_bands(bytes(image), name, bands, value_range)
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
    if isinstance(image, np.ndarray) and is_array and image.shape[2] == bands and image.size:
        return BandImage.from_array(image)
    shape = ""
    if isinstance(image, np.ndarray):
        shape = f" of dtype {image.dtype} and shape {list(image.shape)}"
    raise DataError(
        f"{name} is a {type(image).__name__}{shape}, and the model takes images of {bands} bands.",
        f"Such an image is a path, a file's bytes or an array uint8 [H,W,{bands}].",
    )


def _open_name(name: str, value_range: ValueRange | None, bands: int) -> Image.Image:
    if is_url(name):
        return open_image(_fetch(name), name, value_range, bands)
    path = local_path(name)
    if is_folder(name):
        scan = FolderScan()
        if next(scan.list_images(path), None) is None:
            raise DataError(f"{name} is a folder without images.", scan.describe_all())
        raise DataError(
            f"{name} is a folder in a list of files.", "Name it as an argument, not in the list."
        )
    if "://" in name and path == name and not os.path.exists(name):
        raise DataError(f"{name} is not read: addresses are http, https or file.")
    if bands:
        return decode_bands(read_bytes(Path(path)), path, bands, value_range)
    return read_image(Path(path), value_range)


def _tensor_to_array(tensor: torch.Tensor, name: str) -> Pixels:
    """Return a tensor [3,H,W], uint8 or float in 0..1, as uint8 [H,W,3]."""
    is_float = tensor.is_floating_point()
    description = f"{name} is a tensor of {tensor.dtype} and shape {list(tensor.shape)}"
    is_dtype_valid = is_float or str(tensor.dtype) == "torch.uint8"
    if not is_dtype_valid or tensor.ndim != 3 or len(tensor) != 3 or 0 in tensor.shape:
        raise DataError(
            f"{description}.", "A tensor image is [3,H,W] in RGB, uint8 or float in 0..1."
        )
    tensor = tensor.detach().cpu()
    if is_float:
        tensor = tensor.float()
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):  # negated, so that NaN is refused
            raise DataError(
                f"{description} with values from {low:.3g} to {high:.3g}.",
                "Float values are in 0..1, not normalized.",
            )
        tensor = (tensor * 255).round().byte()  # the inverse of ToTensor, exactly
    array: Pixels = tensor.permute(1, 2, 0).contiguous().numpy()
    return array


def to_unresized_array(image: Image.Image, pre: Preprocessing) -> Pixels:
    """Return an RGB image as uint8 [3,H,W], or raise `DataError` if it is too long."""
    if has_extreme_aspect(image.width, image.height, pre):
        raise DataError(
            f"An image of {image.width} x {image.height} pixels is too long for a file that "
            "resizes.",
            "Export one without --dynamic-size.",
        )
    return np.asarray(image).transpose(2, 0, 1)


def load_batches(
    images: Iterable[ImageLike],
    preprocessing: Preprocessing,
    batch_size: int,
    transform: Callable[[Image.Image, Preprocessing], Pixels] = eval_transform,
    value_range: InputRange | None = None,
) -> Iterator[list[Input]]:
    """Yield inputs in order, `batch_size` at a time, while threads decode the next batch.

    Args:
        images: no folders, see `expand`.
        preprocessing: the model's.
        batch_size: images at a time.
        transform: from an RGB image to what the model takes.
        value_range: of images of more than 8 bits; None: the model's, or one of the inputs.
    """
    bands = preprocessing.in_chans if has_bands(preprocessing.in_chans) else 0
    inputs_range = value_range or InputRange(preprocessing.value_range, SilentReporter(), bands)

    def open_input(name: str, image: ImageLike, chosen: ValueRange | None) -> Input:
        return Input(name, transform(open_image(image, name, chosen, bands), preprocessing), None)

    def load(named: tuple[str, ImageLike, ValueRange | None]) -> Input | _Unscaled:
        name, image, chosen = named
        try:
            image = _fetch(image)
            return open_input(name, image, chosen)
        except RangeNeeded as error:
            return _Unscaled(name, image, error.measured)
        except DataError as error:
            return Input(name, None, str(error))

    def scale(item: Input | _Unscaled) -> Input:
        if isinstance(item, Input):
            return item
        try:
            return open_input(item.name, item.image, inputs_range.for_decoding)
        except DataError as error:
            return Input(item.name, None, str(error))

    # The range as it is when a batch begins, and one of a batch as a whole: threads that came to it
    # first would choose by chance.
    named = ((name_image(im, n), im, inputs_range.for_decoding) for n, im in enumerate(images))
    for batch in read_ahead(named, load, batch_size):
        inputs_range.settle_by(item.measured for item in batch if isinstance(item, _Unscaled))
        yield [scale(item) for item in batch]


def read_ahead(items: Iterator[T], load: Callable[[T], R], batch_size: int) -> Iterator[list[R]]:
    """Apply `load` in threads, one batch ahead; memory holds two batches at most."""
    with DaemonThreads(min(8, os.cpu_count() or 1)) as threads:

        def submit_batch() -> list[Any]:
            return [threads.submit(load, item) for item in islice(items, batch_size)]

        pending = submit_batch()
        while pending:
            # With one at a time, the next path may depend on this result.
            following = [] if batch_size == 1 else submit_batch()
            yield [future.result() for future in pending]
            pending = following or submit_batch()
