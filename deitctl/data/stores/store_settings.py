"""How this process reads from stores: the cache, and who is warned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from deitctl.byte_sizes import parse_bytes
from deitctl.data.stores.block_cache import BlockCache
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home

_cache = BlockCache()
_reporter: tuple[int, Reporter] = (0, SilentReporter())


@contextmanager
def reading_stores(cache_dir: str, cache_size: str, reporter: Reporter) -> Iterator[None]:
    """Read from stores by these settings in a block; data sets that are opened in it keep the cache.

    Args:
        cache_dir: folder of the cache; empty: `data/` below `$DEITCTL_CACHE`.
        cache_size: of the cache, as 20GB; 0: no cache; empty: 8 GiB, and at most half of the free disk.
        reporter: receives a line when this process waits for a store; loaders' waiting is their
            parent's to report.

    Raises:
        ConfigError: `cache_size` is no number of bytes.
    """
    global _cache, _reporter
    before = _cache, _reporter
    size = parse_cache_size(cache_size)
    _cache = BlockCache(str(expand_home(cache_dir)) if cache_dir else "", size)
    _reporter = os.getpid(), reporter
    try:
        yield
    finally:
        _cache, _reporter = before


def parse_cache_size(text: str) -> int | None:
    """Return the bytes of a cache, None for the default; raise `ConfigError` for what is none."""
    if text.strip() in ("", "0"):
        return 0 if text.strip() else None
    return parse_bytes(text, "cache_size")


def get_cache() -> BlockCache:
    """Return the cache that data sets of this process are opened with."""
    return _cache


def warn(message: str) -> None:
    """Warn the reporter of `reading_stores`, in the process that called it; loaders have none."""
    pid, reporter = _reporter
    if pid == os.getpid():
        reporter.warn(message)
