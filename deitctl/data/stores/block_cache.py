"""A bounded folder of blocks of data, which processes and hosts share; each block is written once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deitctl.data.open_file import OpenFile
from deitctl.home import choose_cache_path

DEFAULT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class BlockCache:
    """Blocks of bytes by key, in files of a folder."""

    folder: str = ""
    """Empty: `data/` below `$DEITCTL_CACHE`."""
    max_bytes: int = DEFAULT_BYTES

    def get(self, key: str, write: Callable[[BinaryIO], None]) -> OpenFile:
        """Return the block of a key, which `write` writes if it is not there.

        Args:
            key: names the content: the same key must always mean the same bytes.
            write: called with a file to write the block to.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()
        folder = Path(self.folder or choose_cache_path("data"))
        path = folder / digest[:2] / digest[2:34]
        with suppress(FileNotFoundError):
            return OpenFile(str(path))
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", fallback_to_soft=False):
            with suppress(FileNotFoundError):
                return OpenFile(str(path))
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                write(file.file)  # type: ignore[arg-type]
            os.replace(file.name, path)
            return OpenFile(str(path))


_cache = BlockCache()


def get_cache() -> BlockCache:
    """Return the cache that this process reads data through."""
    return _cache
