"""What of each picture goes into a pack: its bytes as they are, a smaller JPEG, or bare pixels."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from deitctl.data.decode import MAX_BYTES, decode
from deitctl.data.eval_view import resized
from deitctl.data.loader import leave_signals_to_the_parent
from deitctl.data.looks import Pictures, processes
from deitctl.data.sources import ArraySource, Source, Subset
from deitctl.errors import DataError

QUALITY = 90
"""Of a JPEG, in libjpeg's scale."""
SUBSAMPLING = "4:4:4"
"""Colour is kept at full size: a quarter of it saves a fifth of the bytes, and moves the answers of a network more than
a quality of 85 does (docs/data.md)."""
FILTER = Image.Resampling.BICUBIC
"""As in evaluation, so that evaluating at the size of the pack resizes once, and in the same way."""


@dataclass(frozen=True)
class Form:
    """In which form pictures are kept; as they are, if nothing is said."""

    max_size: int = 0
    """Pixels of the short side above which a picture is made smaller; 0: none is."""
    raw: bool = False
    """Whether pixels are kept and no JPEG, so that nothing is to be decoded."""

    @property
    def as_it_is(self) -> bool:
        """Whether no picture needs to be decoded."""
        return not self.max_size and not self.raw


class Kept(NamedTuple):
    """A picture on its way into a pack."""

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


def keep(source: Source, index: int, form: Form) -> Kept:
    """Read a picture, and bring it into the form; never raises for what is wrong with it.

    What cannot be read has no bytes, and what is damaged keeps its own, so that a pack has every picture of its source
    under its number.
    """
    try:
        data = source.raw(index)
    except DataError as error:
        return Kept(b"", 0, 0, why=str(error))
    digest = digest_of(data)
    if _in_memory(source):
        return Kept(_ppm(source.read(index)), digest, len(data), encoded=True)
    try:
        other = None if form.as_it_is else _encode(decode(data, source.name(index)), form)
    except DataError as error:
        return Kept(data, digest, len(data), why=str(error))
    if other is None or len(other) > MAX_BYTES or (not form.raw and len(other) >= len(data)):
        return Kept(data, digest, len(data))
    return Kept(other, digest, len(data), encoded=other != data)


def _in_memory(source: Source) -> bool:
    """Say whether the pictures are in no files, so that their bytes say nothing without their shape."""
    while isinstance(source, Subset):
        source = source.source
    return isinstance(source, ArraySource)


def _encode(image: Image.Image, form: Form) -> bytes | None:
    """Return an upright RGB picture in a form; None where it is small enough as it is."""
    large = 0 < form.max_size < min(image.size)
    if large:
        image = image.resize(resized(*image.size, form.max_size), FILTER)
    if form.raw:
        return _ppm(image)
    if not large:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.getvalue()


def _ppm(image: Image.Image) -> bytes:
    """Return an RGB picture as the plainest file there is: its size, and its pixels."""
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


class _Kept(Dataset[Kept]):
    """The pictures of several sources under one numbering, each brought into a form."""

    def __init__(self, sources: Sequence[Source], form: Form) -> None:
        self.pictures, self.form = Pictures(sources), form

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Kept:
        return keep(*self.pictures.locate(index), self.form)


def keep_all(sources: Sequence[Source], form: Form, workers: int) -> Iterator[Kept]:
    """Yield all pictures of several sources in a form, in order, the same whatever the number of processes.

    `workers` is as in `processes`; copying needs none, as the disk is what it waits for.
    """
    pictures = _Kept(sources, form)
    count = 0 if workers < 0 and form.as_it_is else processes(workers, len(pictures))
    if not count:
        yield from (pictures[index] for index in range(len(pictures)))
        return
    yield from DataLoader(
        pictures, batch_size=None, num_workers=count, collate_fn=_itself, worker_init_fn=leave_signals_to_the_parent
    )


def _itself(kept: Any) -> Any:
    return kept
