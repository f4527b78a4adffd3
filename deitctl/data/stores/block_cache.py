"""A bounded folder of blocks of data that processes and hosts share; each block is written once.

A block is a file: its bytes, a CRC-32 of each 64 KiB of them, and a footer. It is never changed: written
beside its place and renamed, deleted when it is the least recently used. Who has it open reads on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from deitctl.data.open_file import OpenFile, get_identity
from deitctl.data.stores.cache_room import BoundedFile, CacheFailed, CacheRoom
from deitctl.home import choose_cache_path
from deitctl.lock import UNSUPPORTED

DEFAULT_GIB = 8
FOLDER = "blocks-1"
"""Below the folder of the cache, which may have other files: all that is written, by the form of a block."""
CHUNK = 2**16
"""Bytes that have a checksum of their own: a read verifies those that it touches."""
FOOTER = struct.Struct("<8sQI")  # magic, bytes, CRC-32 of the checksums
MAGIC = b"deitblk1"
TOUCH_S = 60.0
"""Between two notes of a block's use."""
NUM_STRIPES = 4096
"""Locks of keys. Their files stay: deleting one that another process opens would let two have it."""
_held: dict[tuple[int, str, str], threading.Lock] = {}


class DamagedBlock(OSError):
    """A block is not what was written."""


class CachedBlock(OpenFile):
    """A block of a cache, open. Its checksums are verified by each read."""

    def __init__(self, path: str) -> None:
        """Open a block.

        Args:
            path: of its file.

        Raises:
            FileNotFoundError: it is not there.
            DamagedBlock: it is cut short, or its checksums are damaged.
        """
        super().__init__(path)
        end = self.identity[1]
        footer = super().read(max(end - FOOTER.size, 0), FOOTER.size)
        try:
            magic, self._size, checksum = FOOTER.unpack(footer)
        except struct.error as error:
            raise self._report_damage() from error
        num_chunks = -(-self._size // CHUNK)
        if magic != MAGIC or self._size + 4 * num_chunks + FOOTER.size != end:
            raise self._report_damage()
        table = super().read(self._size, 4 * num_chunks)
        if zlib.crc32(table) != checksum:
            raise self._report_damage()
        self._checksums = table

    def __reduce__(self) -> Any:
        return CachedBlock, (self.path,)

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self._size)

    @property
    def is_deleted(self) -> bool:
        """Whether the file has no name any more: its bytes are the disk's again when it is closed."""
        return os.fstat(self.handle).st_nlink == 0

    def require_unchanged(self) -> None:
        """Raise `DamagedBlock` if the block was written to since it was opened."""
        if get_identity(os.fstat(self.handle)) != self.identity:
            raise self._report_damage()

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; raise `DamagedBlock` if they are not what was written."""
        end = min(offset + size, self._size)
        if end <= offset:
            return b""
        first, last = offset // CHUNK, -(-end // CHUNK)
        start = first * CHUNK
        data = memoryview(super().read(start, min(last * CHUNK, self._size) - start))
        for number in range(first, last):
            chunk = data[number * CHUNK - start : (number + 1) * CHUNK - start]
            checksum = int.from_bytes(self._checksums[4 * number : 4 * number + 4], "little")
            if zlib.crc32(chunk) != checksum:
                raise self._report_damage()
        return bytes(data[offset - start : end - start])

    def _report_damage(self) -> DamagedBlock:
        with suppress(OSError):
            os.unlink(self.path)
        return DamagedBlock(errno.EIO, f"the cached block {self.path} was damaged, and is deleted")


@dataclass(frozen=True)
class BlockCache:
    """Blocks of bytes by key, in files of a folder. Nothing is read or written until one is needed."""

    folder: str = ""
    """Empty: `data/` below `$DEITCTL_CACHE`."""
    max_bytes: int | None = None
    """Of all files in it; None: 8 GiB, and not more than half of what the disk has for it; 0: none."""

    @cached_property
    def room(self) -> CacheRoom:
        """The folder and its bound, settled when it is first needed."""
        folder = Path(self.folder or choose_cache_path("data")) / FOLDER
        if self.max_bytes is not None:
            return CacheRoom(folder, self.max_bytes)
        return CacheRoom.by_free_space(folder, DEFAULT_GIB * 2**30)

    def fits(self, num_bytes: int) -> bool:
        """Return whether so many bytes can be in the cache at once."""
        return num_bytes + num_bytes // 1000 <= self.room.max_bytes  # with checksums

    def has(self, key: str) -> bool:
        """Return whether the block of a key seems to be there, by a look at its name alone."""
        return self._find_path(key).exists()

    def find(self, key: str) -> CachedBlock | None:
        """Return the block of a key if it is there and whole."""
        path = self._find_path(key)
        try:
            block = CachedBlock(str(path))
        except OSError:
            return None
        _note_use(block)
        return block

    def get(
        self, key: str, write: Callable[[BinaryIO], object], *, reads_blocks: bool = False
    ) -> CachedBlock:
        """Return the block of a key, which is written if it is not there.

        Processes that want the same block wait for the one that writes it.

        Args:
            key: names the content: the same key must always mean the same bytes.
            write: called with a file, seekable, to write the block to. What it raises is raised.
            reads_blocks: whether `write` itself gets blocks of the cache, which do not: so that nobody
                waits for a lock that waits for his.

        Raises:
            CacheFailed: the folder cannot be written, the disk is full, or the block has no room in
                the cache. An `OSError`; the data itself may be readable.
        """
        if (block := self.find(key)) is not None:
            return block
        path = self._find_path(key)
        with self._locked(path.name[:3], "reading-locks" if reads_blocks else "locks"):
            if (block := self.find(key)) is None:
                self._write(path, write)
                with explain_failures():
                    block = CachedBlock(str(path))
        return block

    def _find_path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()[:40]
        return self.room.folder / digest[3:5] / digest

    @contextmanager
    def _locked(self, stripe: str, folder: str) -> Iterator[None]:
        """Hold the lock of a key against other threads, processes and hosts."""
        from filelock import FileLock

        # Of this process too: on a network file system a file's lock is the process's, not the thread's.
        with _held.setdefault((os.getpid(), folder, stripe), threading.Lock()):
            path = self.room.folder / folder / stripe
            lock = FileLock(path, fallback_to_soft=False)
            with explain_failures():
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(poll_interval=0.01)
                except OSError as error:
                    if (
                        error.errno not in UNSUPPORTED
                    ):  # two may write it then, each beside its place
                        raise
            try:
                yield
            finally:
                lock.release()

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        with explain_failures():
            path.parent.mkdir(parents=True, exist_ok=True)
            target = BoundedFile(path.parent, self.room)
        try:
            write(cast(BinaryIO, target))
            with explain_failures():
                _write_checksums(target)
                target.finish(path)
        except BaseException:
            with suppress(OSError):
                target.discard()
            raise


def _write_checksums(target: BoundedFile) -> None:
    size, checksums = target.seek(0, os.SEEK_END), bytearray()
    for start in range(0, size, CHUNK):
        target.seek(start)
        chunk = bytearray()
        # A network file system may return less than was requested.
        while more := target.read(min(CHUNK, size - start) - len(chunk)):
            chunk += more
        checksums += zlib.crc32(chunk).to_bytes(4, "little")
    target.seek(size)
    target.write(checksums + FOOTER.pack(MAGIC, size, zlib.crc32(checksums)))


def _note_use(block: CachedBlock) -> None:
    """Note that a block was used, by its time of access, which mounts often leave as it is."""
    now_s = time.time()
    with suppress(OSError):
        status = os.fstat(block.handle)
        if abs(now_s - status.st_atime) > TOUCH_S:
            # by the handle, where that can be: another may have been put in its place
            place = block.handle if os.utime in os.supports_fd else block.path
            os.utime(place, ns=(int(now_s * 1e9), status.st_mtime_ns))


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn what a folder or disk fails with into `CacheFailed`."""
    try:
        yield
    except CacheFailed:
        raise
    except OSError as error:
        raise CacheFailed(error.errno, error.strerror or str(error)) from error
