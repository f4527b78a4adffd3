"""One look at every image: what it is, whether it can be read, and a few bytes by which copies are found."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from deitctl.cores import available_cores
from deitctl.data.dataset import Source
from deitctl.data.decode import decode
from deitctl.data.loader import leave_signals_to_the_parent
from deitctl.data.readers.pack import PackSource
from deitctl.errors import DataError

DIGEST = 16  # bytes: 128 bits of BLAKE2 over the decoded pixels
HASH = 16  # bytes: 64 differences across and 64 down
LEAST_EDGES = 48
"""Of a hash's 128 differences those that must be 2 gray levels or more, else it describes noise on a plain ground."""
LEAST_SIDE = 32
"""Images smaller than this, in pixels, are too much alike for a hash to tell apart."""
BATCH, ONE_PROCESS = 32, 256  # fewer images than that are not worth starting processes for
ORIENTATION = 0x0112  # EXIF tag

EXTENSION_OF = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
}
FORMAT_OF = {".jpeg": "JPEG", ".jfif": "JPEG", ".tiff": "TIFF", ".pgm": "PPM", ".pbm": "PPM"}
FORMAT_OF |= {extension: name for name, extension in EXTENSION_OF.items()}


class ImageInfo(NamedTuple):
    """What one look at an image tells; of an unreadable one `problem` and `why` alone."""

    problem: str = ""
    """The check that it fails: unreadable, empty_file, not_an_image, truncated or damaged."""
    why: str = ""
    digest: bytes = bytes(DIGEST)
    """Of the upright RGB pixels."""
    hash: bytes = b""
    """See `difference_hash`; empty where it would say nothing."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels, upright."""
    mode: str = "RGB"
    """As stored, in Pillow's words."""
    format: str = ""
    """As stored: a key of `EXTENSION_OF`, another of Pillow's, or empty for images without a file."""
    animated: bool = False
    rotated: bool = False
    blank: bool = False
    """One color all over."""


def look(source: Source, index: int) -> ImageInfo:
    """Read and decode one image once, and describe it; never raises for what is wrong with it."""
    name = source.name(index)
    try:
        data = source.raw(index)
    except DataError as error:
        return ImageInfo("unreadable", str(error))
    header = _header(data)
    try:  # what is held in memory has no header
        image = source.read(index) if header is None else decode(data, name)
    except DataError as error:
        return ImageInfo(_problem(data, str(error).replace(name, "")), str(error))
    stored = header or ImageInfo()
    if isinstance(
        source, PackSource
    ):  # the name is that of the file it was, whose format it need not have
        stored = stored._replace(format="")
    return stored._replace(
        digest=pixel_digest(image),
        hash=difference_hash(image),
        size=image.size,
        blank=all(low == high for low, high in image.getextrema()),  # type: ignore[misc]
    )


def pixel_digest(image: Image.Image) -> bytes:
    """Hash an RGB image's size and pixels: the same for every lossless way to store it."""
    return hashlib.blake2b(
        image.tobytes(), digest_size=DIGEST, person=b"%dx%d" % image.size
    ).digest()


def difference_hash(image: Image.Image) -> bytes:
    """Return 128 bits that copies of an image share but for a few: which of two neighboring regions is lighter.

    64 bits compare neighbors across an 8x9 grid, 64 down a 9x8 grid. Empty for images that are too small or too
    plain to be told apart by it.
    """
    if min(image.size) < LEAST_SIDE:
        return b""
    gray = image.convert("L")
    across, down = (
        np.diff(
            np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.int16), axis=axis
        ).ravel()
        for size, axis in (((9, 8), 1), ((8, 9), 0))
    )
    steps = np.concatenate([across, down])
    return np.packbits(steps > 0).tobytes() if (np.abs(steps) > 1).sum() >= LEAST_EDGES else b""


def promised_format(name: str) -> str:
    """Return the format that a file name's extension stands for, empty if none."""
    return FORMAT_OF.get(PurePath(name).suffix.lower(), "")


def is_image(path: str) -> bool:
    """Say whether Pillow knows the file for an image by its first bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=tuple(EXTENSION_OF)).close()
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _header(data: bytes) -> ImageInfo | None:
    """Describe an image as stored, without decoding it; None if it does not even begin like one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            kind = (
                "JPEG" if image.format == "MPO" else image.format or ""
            )  # a camera's JPEG with a preview behind it
            animated = kind != "JPEG" and bool(getattr(image, "is_animated", False))
            return ImageInfo(
                mode=image.mode,
                format=kind,
                animated=animated,
                rotated=image.getexif().get(ORIENTATION, 1) != 1,
            )
    except Exception:  # damaged headers raise a dozen kinds; decoding says what is wrong
        return None


def _problem(data: bytes, why: str) -> str:
    if not data:
        return "empty_file"
    if "is not an image" in why:
        return "not_an_image"
    return "truncated" if "truncated" in why.lower() else "damaged"


class Images(Dataset[ImageInfo]):
    """The images of several sources under one numbering, each shown as its `ImageInfo`."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.counts: NDArray[np.int64] = np.array([len(s.labels) for s in sources], dtype=np.int64)
        self.ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, index: int) -> ImageInfo:
        return look(*self.locate(index))

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the source that holds an image, and its number there."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], int(index - self.ends[which] + self.counts[which])

    def name(self, index: int) -> str:
        """Name an image."""
        source, place = self.locate(index)
        return source.name(place)


def processes(wanted: int, num_images: int) -> int:
    """Return how many processes are to look at images: as many as wanted; -1: one a core, or 0, none but this, for few."""
    if wanted >= 0:
        return wanted
    return available_cores() if num_images > ONE_PROCESS else 0


def look_at_all(images: Images, workers: int) -> Iterator[list[ImageInfo]]:
    """Yield the looks of all images in order, in lists, by `workers` processes (see `processes`)."""
    with warnings.catch_warnings():  # the number of processes is the user's to choose
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            images,
            batch_size=BATCH,
            num_workers=processes(workers, len(images)),
            collate_fn=list,
            worker_init_fn=leave_signals_to_the_parent,
        )
        return iter(loader)
