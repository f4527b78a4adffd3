"""A million names as two arrays: no Python object each, so that worker processes share their memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Names made into strings at a time when all are gone through."""


@dataclass(frozen=True, eq=False)
class StringArray(Sequence[str]):
    """Names that do not change, kept end to end as bytes; each becomes a string when it is asked for.

    A tuple of strings costs thrice as much, and a forked worker that looks at one counts a reference in its page, which
    the system then copies: in the end every worker has a tuple of its own.
    """

    blob: NDArray[np.uint8]
    """The file system's bytes of all names, so that names that are no UTF-8 survive."""
    ends: NDArray[np.int64]
    """Where each ends in the blob, [N+1]; the first is where the first begins."""
    prefix: str = ""
    """What stands before every name, once for all."""

    @classmethod
    def of(cls, names: Iterable[str]) -> StringArray:
        """Take names one by one, so that they need never be in memory together."""
        blob, ends = bytearray(), array("q", [0])
        for name in names:
            blob += os.fsencode(name)
            ends.append(len(blob))
        return cls(np.frombuffer(blob, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        at = range(len(self))[place]  # negative places, and an IndexError for what is outside
        return self.prefix + os.fsdecode(self.blob[self.ends[at] : self.ends[at + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            first, *ends = self.ends[start : start + CHUNK + 1].tolist()
            text = self.blob[first : ends[-1]].tobytes()
            for begin, end in pairwise([first, *ends]):
                yield self.prefix + os.fsdecode(text[begin - first : end - first])

    def below(self, prefix: str) -> StringArray:
        """Return the same names, and the same memory, with another prefix."""
        return StringArray(self.blob, self.ends, prefix)

    def take(self, places: Iterable[int]) -> StringArray:
        """Return some of the names, in the order of `places`, as their own; the prefix is part of them."""
        return StringArray.of(self[i] for i in places)

    @property
    def sound(self) -> bool:
        """Whether the ends lie in order within the blob, which those of a damaged file need not."""
        ends = self.ends
        return (
            len(ends) > 0
            and ends[0] >= 0
            and ends[-1] <= len(self.blob)
            and bool((ends[1:] >= ends[:-1]).all())
        )
