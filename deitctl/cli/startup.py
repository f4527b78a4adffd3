"""A command should not spend half a second on looking for garbage among what it imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage() -> Iterator[None]:
    """Import and load in the block without the collector, and have it leave alone for good what is there at the end.

    Importing torch makes a million objects that all stay: the collector looks through them dozens of times on the way,
    and once more when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
