"""Encoding of images for shards: the file as it is, a smaller JPEG, or bare pixels."""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from PIL import Image

from deitctl.checks.image_info import JoinedImages, resolve_workers
from deitctl.data.contents import compute_digest
from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import MAX_BYTES, decode
from deitctl.data.eval_transform import get_resized_size
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.stream import batched_range, stream_batches
from deitctl.data.subsets import Subset
from deitctl.errors import DataError
from deitctl.events import Reporter

QUALITY = 90
"""Of a JPEG, in libjpeg's scale."""
SUBSAMPLING = "4:4:4"
"""Color at full size: a quarter of it saves a sixth of the bytes, and changes a network's logits
more than a quality of 85 does (docs/results/data.md)."""
FILTER = Image.Resampling.BICUBIC
"""As in evaluation, so that evaluating at the size of the pack gives the same pixels."""
CHUNK = 8
"""Images that a process takes at a time."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored; by default files are copied."""

    max_size: int = 0
    """Short side in pixels above which an image becomes a smaller JPEG; 0: none does."""
    raw: bool = False
    """Store pixels, which need no decoding."""

    @property
    def copies_files(self) -> bool:
        """Whether no image needs to be decoded."""
        return not self.max_size and not self.raw


class EncodedImage(NamedTuple):
    """An image as it is stored in a shard."""

    data: bytes
    digest: int
    """Of the source's bytes, 0 if they cannot be read."""
    source_bytes: int
    encoded: bool = False
    """Whether `data` differs from the source's bytes."""
    error: str = ""
    """Why it could not be read or decoded; a damaged image is copied."""


def encode_image(dataset: ImageDataset, index: int, encoding: Encoding) -> EncodedImage:
    """Read an image and encode it; never raises for an unreadable or damaged one.

    An unreadable image has no bytes and a damaged one its own, so that shards have every image under
    its index.
    """
    try:
        data = dataset.read_bytes(index)
    except DataError as error:
        return EncodedImage(b"", 0, 0, error=str(error))
    digest = compute_digest(data)
    if _is_array(dataset):
        return EncodedImage(_to_ppm(dataset.read(index)), digest, len(data), encoded=True)
    encoded = None
    try:
        if not encoding.copies_files:
            encoded = _encode(
                decode(data, dataset.name(index), value_range=dataset.value_range), encoding
            )
    except DataError as error:
        return EncodedImage(data, digest, len(data), error=str(error))
    # a JPEG that would be larger than the file is not worth its loss
    too_large = encoded is not None and (
        len(encoded) > MAX_BYTES or (not encoding.raw and len(encoded) >= len(data))
    )
    if encoded is None or too_large:
        return EncodedImage(data, digest, len(data))
    return EncodedImage(encoded, digest, len(data), encoded=encoded != data)


def _is_array(dataset: ImageDataset) -> bool:
    """Return whether images are in no files, so that their bytes mean nothing without a shape."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, ArrayDataset)


def _encode(image: Image.Image, encoding: Encoding) -> bytes | None:
    """Encode an upright RGB image; None where it is small enough to be copied."""
    large = 0 < encoding.max_size < min(image.size)
    if large:
        image = image.resize(get_resized_size(*image.size, encoding.max_size), FILTER)
    if encoding.raw:
        return _to_ppm(image)
    if not large:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.getvalue()


def _to_ppm(image: Image.Image) -> bytes:
    """Return an RGB image as a PPM file: its size, and its pixels."""
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def encode_images(
    datasets: Sequence[ImageDataset],
    encoding: Encoding,
    workers: int,
    reporter: Reporter | None = None,
) -> Generator[EncodedImage]:
    """Yield all images of several data sets in order, the same with any number of processes.

    Closing the generator ends the processes before the last image.

    Args:
        datasets: the images.
        encoding: of each.
        workers: as for `resolve_workers`, but -1 is 0 for copying, which waits for the disk.
        reporter: gets a warning when no image comes for a minute.

    Raises:
        LoaderLost: a process ended, or cannot be started.
    """
    images = JoinedImages(datasets)
    # Copying waits for the disk, not for a core.
    count = 0 if workers < 0 and encoding.copies_files else resolve_workers(workers, len(images))
    chunks = stream_batches(
        partial(_encode_image_at, images, encoding),
        list,
        batched_range(len(images), CHUNK if count else 1),
        workers=count,
        ahead=1,  # a large image is a hundred megabytes as pixels
        reporter=reporter,
    )
    with closing(chunks):
        for chunk in chunks:
            yield from chunk


def _encode_image_at(images: JoinedImages, encoding: Encoding, number: int) -> EncodedImage:
    return encode_image(*images.locate(number), encoding)
