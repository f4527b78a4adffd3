"""The folder that `pack` writes: complete or absent, and never in place of what is somebody else's."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deitctl.data.stores.address import is_remote
from deitctl.errors import ConfigError, DataError
from deitctl.home import expand_home
from deitctl.packing.manifest import is_packed_folder
from deitctl.paths import DISK_ERRNOS, DiskError, require_writable, sync_folder

OPTION = "OUT"
FILE_SUFFIXES = (".pack", ".tar", ".parquet")
"""Of names that are no folder's, as earlier versions took them."""


def choose_folder(out: str, data: str) -> Path:
    """Return the folder to write.

    Args:
        out: the user's name of it.
        data: what is packed, which must not be in it.

    Raises:
        ConfigError: it is an address, or called as a file.
        DataError: something else is there, or the data itself.
        DiskError: it cannot be written.
    """
    if is_remote(str(out)):
        raise ConfigError(
            f"{out} is in a store, and `deitctl pack` writes to a disk.",
            "Name a folder as OUT, and copy it there.",
        )
    path = expand_home(out)
    # lexists: a dangling link is something too.
    if os.path.lexists(path) and not (
        path.is_dir() and not path.is_symlink() and is_packed_folder(path)
    ):
        raise DataError(
            f"{path} exists and is not a folder that `deitctl pack` wrote.", "Name another OUT."
        )
    if path.suffix in FILE_SUFFIXES and not path.exists():
        raise ConfigError(
            f"OUT {str(out)!r} is called like a file, and shards are a folder.",
            f"Name it {path.with_suffix('').name!r} for example.",
        )
    source = expand_home(data)
    if path.exists() and source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{path} cannot be packed into itself.", "Name another OUT.")
    require_writable(path.with_name(f".{path.name}"), OPTION)
    return path


def require_space(path: Path, num_bytes: int) -> None:
    """Raise `DiskError` unless so many bytes are free where a folder will be."""
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise DiskError(
            f"{path} needs {num_bytes:,} bytes, and {free:,} are free there.",
            f"Free some space, or name another {OPTION}.",
        )


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to write, which takes its name at the end.

    An interruption leaves what was there. A folder cannot be replaced in one step: a kill between the
    two renames at the end leaves the earlier one, complete, under its hidden name.

    Raises:
        DiskError: the disk is full, or the folder is not writable.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    earlier = draft.with_name(f"{draft.name}.earlier")
    in_block = False
    try:
        draft.mkdir(parents=True)
        in_block = True
        yield draft
        in_block = False
        sync_folder(draft)
        if path.exists():
            os.rename(path, earlier)
        os.rename(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        if in_block and error.errno not in DISK_ERRNOS:
            raise
        raise DiskError.from_os_error(path, error, OPTION) from error
    finally:
        if earlier.exists() and not path.exists():
            os.rename(earlier, path)
        for folder in (draft, earlier):
            shutil.rmtree(folder, ignore_errors=True)
