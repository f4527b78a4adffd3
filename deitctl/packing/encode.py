"""What of each image goes into a pack: its bytes as they are, a smaller JPEG, or bare pixels."""

from __future__ import annotations

import hashlib
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
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.dataset import ImageDataset, Subset
from deitctl.data.decode import MAX_BYTES, decode
from deitctl.data.eval_transform import get_resized_size
from deitctl.data.loader import ignore_signals
from deitctl.errors import DataError

QUALITY = 90
"""Of a JPEG, in libjpeg's scale."""
SUBSAMPLING = "4:4:4"
"""Color is kept at full size: a quarter of it saves a sixth of the bytes, and moves the answers of a network more than
a quality of 85 does (docs/data.md)."""
FILTER = Image.Resampling.BICUBIC
"""As in evaluation, so that evaluating at the size of the pack resizes once, and in the same way."""

CHUNK = 8
"""Images that a process takes at a time."""
LESS = "Pack with fewer processes: --workers 0"


@dataclass(frozen=True)
class Form:
    """In which form images are kept; as they are, if nothing is said."""

    max_size: int = 0
    """Pixels of the short side above which an image is made smaller; 0: none is."""
    raw: bool = False
    """Whether pixels are kept and no JPEG, so that nothing is to be decoded."""

    @property
    def as_it_is(self) -> bool:
        """Whether no image needs to be decoded."""
        return not self.max_size and not self.raw


class Kept(NamedTuple):
    """An image on its way into a pack."""

    data: bytes
    digest: int
    """Of the bytes where it comes from; 0 if they cannot be read."""
    before: int
    """How many those are."""
    encoded: bool = False
    """Whether `data` is anything else than they are."""
    why: str = ""
    """What is wrong with it; it is kept as it is."""


def digest_of(data: bytes) -> int:
    """Return 64 bits of BLAKE2b, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def keep(dataset: ImageDataset, index: int, form: Form) -> Kept:
    """Read an image, and bring it into the form; never raises for what is wrong with it.

    What cannot be read has no bytes, and what is damaged keeps its own, so that a pack has every image of its source
    under its number.
    """
    try:
        data = dataset.read_bytes(index)
    except DataError as error:
        return Kept(b"", 0, 0, why=str(error))
    digest = digest_of(data)
    if _in_memory(dataset):
        return Kept(_ppm(dataset.read(index)), digest, len(data), encoded=True)
    try:
        other = None if form.as_it_is else _encode(decode(data, dataset.name(index)), form)
    except DataError as error:
        return Kept(data, digest, len(data), why=str(error))
    if other is None or len(other) > MAX_BYTES or (not form.raw and len(other) >= len(data)):
        return Kept(data, digest, len(data))
    return Kept(other, digest, len(data), encoded=other != data)


def _in_memory(dataset: ImageDataset) -> bool:
    """Say whether the images are in no files, so that their bytes say nothing without their shape."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, ArrayDataset)


def _encode(image: Image.Image, form: Form) -> bytes | None:
    """Return an upright RGB image in a form; None where it is small enough as it is."""
    large = 0 < form.max_size < min(image.size)
    if large:
        image = image.resize(get_resized_size(*image.size, form.max_size), FILTER)
    if form.raw:
        return _ppm(image)
    if not large:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.getvalue()


def _ppm(image: Image.Image) -> bytes:
    """Return an RGB image as the plainest file there is: its size, and its pixels."""
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def keep_all(datasets: Sequence[ImageDataset], form: Form, workers: int) -> Generator[Kept]:
    """Yield all images of several sources in a form, in order, the same whatever the number of processes.

    `workers` is as in `processes`; copying needs none, as the disk is what it waits for. Close it to end the processes
    before the last image.

    Raises:
        DataError: a process died.
    """
    images = JoinedImages(datasets)
    count = 0 if workers < 0 and form.as_it_is else resolve_workers(workers, len(images))
    if not count:
        yield from (keep(*images.locate(index), form) for index in range(len(images)))
        return
    with _working(images, form, count) as ends:
        for end, _ in zip(cycle(ends), range(0, len(images), CHUNK), strict=False):
            try:
                chunk: list[Kept] = end.recv()
            except (EOFError, OSError) as error:
                raise DataError(
                    "A process that decodes died, most often for want of memory.", LESS
                ) from error
            yield from chunk


@contextmanager
def _working(images: JoinedImages, form: Form, count: int) -> Iterator[list[Connection]]:
    """Have processes take chunks of images in turn, each with a pipe of its own, and end them at the end."""
    started, ends = [], []
    try:
        for number in range(count):
            ours, theirs = Pipe(duplex=False)
            process = Process(
                target=_work, args=(ours, theirs, images, form, number, count), daemon=True
            )
            process.start()
            theirs.close()
            started.append(process)
            ends.append(ours)
        yield ends
    finally:
        for process in started:
            process.kill()
            process.join()


def _work(
    parents: Connection, end: Connection, images: JoinedImages, form: Form, number: int, count: int
) -> None:
    """Send every `count`-th chunk from `number` on, as fast as they are taken; end when nobody takes them any more."""
    ignore_signals(number)
    parents.close()  # a copy of it, with which this process would wait for itself when the parent is gone
    for first in range(number * CHUNK, len(images), count * CHUNK):
        chunk = range(first, min(first + CHUNK, len(images)))
        try:
            end.send([keep(*images.locate(index), form) for index in chunk])
        except OSError:
            return
