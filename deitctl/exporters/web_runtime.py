"""onnxruntime-web, which computes networks in a browser: fetched once from npm's registry, checked, kept in the cache."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from pathlib import Path

from deitctl.errors import DataError, ExportError
from deitctl.events import Reporter
from deitctl.inference.download import fetch
from deitctl.paths import cache_root, read_regular, write_bytes

VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/{ARCHIVE}"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the archive, as the registry states it for this version."""
VARIABLE = "DEITCTL_ORT_WEB"
MAX_BYTES = 64 * 2**20
MINUTES = 10
"""To fetch 33 MB in; half a megabit a second is enough."""
SCRIPT, BINARY = "onnxruntime.js", "onnxruntime.wasm"
PARTS = {
    SCRIPT: "package/dist/ort.wasm.bundle.min.mjs",  # .js: some servers do not know .mjs and say it is no script
    BINARY: "package/dist/ort-wasm-simd-threaded.wasm",  # runs in one thread where threads are not allowed
}
"""What the page loads, and where the archive has it: two of its two hundred files, 14 of 180 MB."""


def provide(given: str, reporter: Reporter) -> None:
    """Make sure that the cache has the archive, before any work.

    Args:
        given: a downloaded archive; empty: `$DEITCTL_ORT_WEB`, else the cache, else npm's registry.
        reporter: told of the download.

    Raises:
        ExportError: it cannot be had, or is another file than the one that is pinned.
    """
    given = given or os.environ.get(VARIABLE, "")
    kept = _kept()
    if given:
        path = Path(given).expanduser()
        data = _read(path)
        _require_pinned(data, str(path))
    elif kept.exists():
        _require_pinned(_read(kept), str(kept))
        return
    else:
        with reporter.task(f"fetch onnxruntime-web {VERSION}", None, "bytes"):
            data = _fetch()
    write_bytes(kept, data)


def runtime_files() -> dict[str, bytes]:
    """Return the contents of `PARTS`, from the archive in the cache; raise `ExportError` as `provide` does."""
    data = _read(_kept())
    _require_pinned(data, str(_kept()))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        return {name: _member(archive, inside) for name, inside in PARTS.items()}


def _kept() -> Path:
    return cache_root() / ARCHIVE


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ExportError(
            f"{path} cannot be read: {getattr(error, 'strerror', error)}.", _how()
        ) from error


def _fetch() -> bytes:
    try:
        data = fetch(ADDRESS, seconds=60 * MINUTES)
    except DataError as error:
        why = error.message.removeprefix(f"{ADDRESS} ")
        raise ExportError(
            f"The page needs onnxruntime-web {VERSION}, which {why}", _how()
        ) from error
    _require_pinned(data, ADDRESS)
    return data


def _require_pinned(data: bytes, where: str) -> None:
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise ExportError(
            f"{where} is not the onnxruntime-web {VERSION} that was tried: its sha512 is another.",
            _how(),
        )


def _how() -> str:
    return f"Download {ADDRESS} and name it with --runtime or ${VARIABLE}, or put it at {_kept()}."


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"the archive whose sum is right has {name}"
    return file.read()
