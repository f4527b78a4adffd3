"""Encoding of images for a pack: the file as it is, a smaller JPEG, or bare pixels."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from typing import NamedTuple

from PIL import Image

from deitctl.checks.image_info import JoinedImages, resolve_workers
from deitctl.data.dataset import ImageDataset, Subset, compute_digest
from deitctl.data.decode import MAX_BYTES, decode
from deitctl.data.eval_transform import get_resized_size
from deitctl.data.loader import ignore_signals
from deitctl.data.readers.digits import ArrayDataset
from deitctl.errors import DataError

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
    """An image as it is stored in a pack."""

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

    An unreadable image has no bytes and a damaged one its own, so that a pack has every image under
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
            encoded = _encode(decode(data, dataset.name(index)), encoding)
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
    datasets: Sequence[ImageDataset], encoding: Encoding, workers: int
) -> Generator[EncodedImage]:
    """Yield all images of several data sets in order, the same with any number of processes.

    Closing the generator ends the processes before the last image.

    Args:
        datasets: the images.
        encoding: of each.
        workers: as for `resolve_workers`, but -1 is 0 for copying, which waits for the disk.

    Raises:
        DataError: a process died.
    """
    images = JoinedImages(datasets)
    # Copying waits for the disk, not for a core.
    count = 0 if workers < 0 and encoding.copies_files else resolve_workers(workers, len(images))
    if not count:
        yield from (encode_image(*images.locate(n), encoding) for n in range(len(images)))
        return
    # A pipe each instead of a shared queue: read in turn, the order is the data's, and a full pipe
    # stops a process that is ahead, which bounds the memory.
    with _start_processes(images, encoding, count) as ends:
        # in the order of the chunks, whichever process is ahead
        for end, _ in zip(cycle(ends), range(0, len(images), CHUNK), strict=False):
            try:
                chunk: list[EncodedImage] = end.recv()
            except (EOFError, OSError) as error:
                raise DataError(
                    "A decoding process died, most often because memory ran out.",
                    "Use fewer processes: --workers 0",
                ) from error
            yield from chunk


@contextmanager
def _start_processes(
    images: JoinedImages, encoding: Encoding, count: int
) -> Iterator[list[Connection]]:
    """Have processes encode chunks of images in turn, each into its own pipe; kill them at exit."""
    processes, ends = [], []
    try:
        for number in range(count):
            ours, theirs = Pipe(duplex=False)
            arguments = (ours, theirs, images, encoding, number, count)
            # daemon: it does not keep this process from ending
            process = Process(target=_send_chunks, args=arguments, daemon=True)
            process.start()
            # Else the pipe has a writer in this process too, and recv() would wait for ever after a
            # child's death.
            theirs.close()
            processes.append(process)
            ends.append(ours)
        yield ends
    finally:
        for process in processes:
            # not terminate(): they ignore SIGTERM
            process.kill()
            process.join()


def _send_chunks(
    parents: Connection,
    end: Connection,
    images: JoinedImages,
    encoding: Encoding,
    number: int,
    count: int,
) -> None:
    """Send every `count`-th chunk from `number` on, as fast as they are received."""
    ignore_signals(number)
    # with a copy of the parent's end, this process would wait for itself when the parent is gone
    parents.close()
    for first in range(number * CHUNK, len(images), count * CHUNK):
        chunk = range(first, min(first + CHUNK, len(images)))
        try:
            end.send([encode_image(*images.locate(index), encoding) for index in chunk])
        except OSError:  # nobody receives any more
            return
