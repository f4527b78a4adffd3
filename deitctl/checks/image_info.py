"""Inspection of an image: format, mode, size, readability, digests for finding duplicates."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.cores import count_cores
from deitctl.data.bands import ALPHA_MODES, count_bands
from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import decode, open_header, read_bytes
from deitctl.data.decode_limits import limit_tags
from deitctl.data.file_types import DAMAGED, explain_file
from deitctl.data.near_duplicates import DIGEST_BYTES, difference_hash, digest_pixels
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.data.stream import batched_range, stream_batches
from deitctl.data.value_range import OPTION
from deitctl.errors import DataError
from deitctl.events import Reporter

BATCH_SIZE = 32
MIN_FOR_WORKERS = 256  # images; for fewer, starting processes takes longer
ORIENTATION = 0x0112  # EXIF tag

ENDS = ("truncated", "unexpected end of file")
"""In messages of Pillow and libheif: a file ends too soon."""

EXTENSION_BY_FORMAT = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
FORMAT_BY_EXTENSION = {
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".tiff": "TIFF",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".jpe": "JPEG",
    ".jif": "JPEG",
    ".mpo": "JPEG",
    ".apng": "PNG",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".heif": "HEIF",
    ".hif": "HEIF",
}
FORMAT_BY_EXTENSION |= {extension: name for name, extension in EXTENSION_BY_FORMAT.items()}


class ImageInfo(NamedTuple):
    """A description of an image; of an unreadable one `issue` and `error` alone."""

    issue: str = ""
    """Why it cannot be read: unreadable, empty_file, not_an_image, other_format, truncated, outside_range or
    damaged."""
    error: str = ""
    kind: str = ""
    """What it is, of those that are not_an_image or of an other_format."""
    digest: bytes = bytes(DIGEST_BYTES)
    """Of the upright RGB pixels."""
    hash: bytes = b""
    """See `difference_hash`; empty where it tells nothing."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels, upright."""
    mode: str = "RGB"
    """As stored, as Pillow names it."""
    format: str = ""
    """As stored, as Pillow names it; empty for images without a file."""
    animated: bool = False
    rotated: bool = False
    blank: bool = False
    """One color all over."""
    num_bands: int = 0
    """Of a TIFF whose bands are no colors, as far as it is not read by them; 0 of other files."""


def inspect_image(dataset: ImageDataset, index: int) -> ImageInfo:
    """Read and decode an image once, and describe it; never raises for an unreadable one."""
    name = dataset.name(index)
    try:
        data = dataset.read_bytes(index)
    except DataError as error:
        return ImageInfo("unreadable", str(error))
    header = None if dataset.bands else _read_header(data, name)
    num_bands = 0
    if not dataset.bands and (header is None or header.mode not in ALPHA_MODES):
        num_bands = count_bands(data) or 0
    try:  # an image of an array in memory has no header
        image = (
            dataset.read(index)
            if header is None
            else decode(data, name, value_range=dataset.value_range)
        )
    except DataError as error:
        # without the name, which may contain any word itself
        issue, kind = _classify_error(data, str(error).replace(name, ""))
        return ImageInfo(issue, str(error), kind, num_bands=num_bands)
    stored = header or ImageInfo()
    if isinstance(dataset, TarDataset) and dataset.is_packed:
        # the name is that of the original file, whose format packing may have changed
        stored = stored._replace(format="")
    return stored._replace(
        num_bands=num_bands,
        digest=digest_pixels(image),
        hash=difference_hash(image),
        size=image.size,
        blank=all(low == high for low, high in image.getextrema()),  # type: ignore[misc]
    )


def format_of_name(name: str) -> str:
    """Return the format that a file name's extension stands for, empty if none."""
    return FORMAT_BY_EXTENSION.get(PurePath(name).suffix.lower(), "")


def is_image(path: str) -> bool:
    """Return whether a file is of a format that deitctl reads; pipes and devices are not opened."""
    try:
        open_header(read_bytes(Path(path)), path)
        return True
    except DataError:
        return False


def _read_header(data: bytes, name: str) -> ImageInfo | None:
    """Describe an image as stored, without decoding it; None if it does not even begin like one."""
    try:
        with warnings.catch_warnings(), limit_tags():
            warnings.simplefilter("ignore")
            image = open_header(data, name)
            # MPO is a camera's JPEG with a preview behind it
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            animated = kind != "JPEG" and bool(getattr(image, "is_animated", False))
            return ImageInfo(
                mode=image.mode,
                format=kind,
                animated=animated,
                rotated=image.getexif().get(ORIENTATION, 1) != 1,
            )
    except MemoryError:
        raise
    except Exception:  # damaged headers raise a dozen kinds of errors; decoding names the right one
        return None


def _classify_error(data: bytes, error: str) -> tuple[str, str]:
    """Return the issue of a file that could not be decoded, and what it is if it is another file."""
    if not data:
        return "empty_file", ""
    if any(end in error.lower() for end in ENDS):
        return "truncated", ""
    if OPTION in error:
        return "outside_range", ""
    if "--in-chans" in error and not error.lstrip().startswith("is a TIFF"):
        return "other_bands", ""
    explanation = explain_file(data)
    if "not an image of a known kind" in error:
        return "not_an_image", "of no known kind"
    if not explanation or explanation not in error or DAMAGED in explanation:
        return "damaged", ""
    kind = explanation.partition(";")[0]
    other = kind.removesuffix(", not an image")
    return ("not_an_image" if other != kind else "other_format"), other


class JoinedImages:
    """The images of several data sets under one numbering, each as its `ImageInfo`."""

    def __init__(self, datasets: Sequence[ImageDataset]) -> None:
        self.datasets = datasets
        self.counts: NDArray[np.int64] = np.array([len(s.labels) for s in datasets], dtype=np.int64)
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, index: int) -> ImageInfo:
        return inspect_image(*self.locate(index))

    def locate(self, index: int) -> tuple[ImageDataset, int]:
        """Return the data set of an image, and its index there."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.datasets[which], int(index - self.ends[which] + self.counts[which])

    def name(self, index: int) -> str:
        """Return the name of an image."""
        dataset, place = self.locate(index)
        return dataset.name(place)


def resolve_workers(requested: int, num_images: int) -> int:
    """Return the number of decoding processes: as requested; for -1 one a core, 0 for few images."""
    if requested >= 0:
        return requested
    return count_cores() if num_images > MIN_FOR_WORKERS else 0


def inspect_images(
    images: JoinedImages, workers: int, reporter: Reporter | None = None
) -> Generator[list[ImageInfo]]:
    """Yield the infos of all images in order, in lists.

    Args:
        images: of any data sets.
        workers: as for `resolve_workers`.
        reporter: gets a warning when none comes for a minute.
    """
    return stream_batches(
        images.__getitem__,
        list,
        batched_range(len(images), BATCH_SIZE),
        workers=resolve_workers(workers, len(images)),
        reporter=reporter,
    )
