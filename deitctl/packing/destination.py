"""The folder that `pack` writes: complete or absent, and never in place of what is somebody else's."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deitctl.data.dataset import ImageDataset
from deitctl.data.layout import name_some
from deitctl.data.readers.columnar_dataset import ColumnarDataset
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.data.stores.address import is_remote
from deitctl.data.subsets import JoinedDataset, Subset
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.packing.manifest import list_foreign_files
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
    if os.path.lexists(path):  # a dangling link is something too
        _require_packed(path)
    if path.suffix in FILE_SUFFIXES and not path.exists():
        raise ConfigError(
            f"OUT {str(out)!r} is called like a file, and shards are a folder.",
            f"Name it {path.with_suffix('').name!r} for example.",
        )
    source = expand_home(data)
    if path.exists() and source.exists() and source.resolve().is_relative_to(path.resolve()):
        raise _refuse_itself(path)
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{path} is in {source}, which is packed: it would become a part of that data.",
            "Name an OUT beside it.",
        )
    require_writable(path.with_name(f".{path.name}"), OPTION)
    return path


def require_apart(path: Path, datasets: Iterable[ImageDataset]) -> None:
    """Raise `DataError` if images are read from files in a folder that is to be replaced.

    The data's name does not say so: it may be a pattern, a list, or a folder of links.
    """
    if not path.exists():
        return
    folder = path.resolve()
    for file in {Path(file) for part in datasets for file in _list_files(part)}:
        # a link in the folder is lost with it too, wherever it leads
        for place in (file.resolve(), file.parent.resolve() / file.name):
            if place.is_relative_to(folder):
                raise _refuse_itself(path)


def _list_files(dataset: ImageDataset) -> list[str]:
    """Return the files of many images each that a dataset reads on a disk: `pack` writes no others."""
    if isinstance(dataset, Subset):
        return _list_files(dataset.dataset)
    if isinstance(dataset, JoinedDataset):
        return [file for part in dataset.datasets for file in _list_files(part)]
    if isinstance(dataset, TarDataset):
        return [file for file in dataset.files.paths if not is_remote(file)]
    if isinstance(dataset, ColumnarDataset):
        places = dataset.images.places
        files = [place[0] if isinstance(place, tuple) else place.path for place in places]
        return [file for file in files if not is_remote(file)]
    return []


def _refuse_itself(path: Path) -> DataError:
    return DataError(f"{path} cannot be packed into itself.", "Name another OUT.")


def _require_packed(path: Path) -> None:
    """Raise `DataError` unless a path is a folder of nothing but what `pack` wrote."""
    foreign = list_foreign_files(path) if path.is_dir() and not path.is_symlink() else None
    if foreign is None:
        raise DataError(
            f"{path} exists and is not a folder that `deitctl pack` wrote.", "Name another OUT."
        )
    if foreign:
        raise DataError(
            f"{path} holds {name_some(foreign)}, which `deitctl pack` did not write.",
            "Move that away, or name another OUT.",
        )


def warn_of_leftovers(path: Path, reporter: Reporter) -> None:
    """Warn of the hidden folders of processes that were killed while they wrote a folder.

    They are not removed: one may be that of a process that is still writing, or the earlier folder.
    """
    draft = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}(\.earlier)?")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    if left := sorted(name for name in names if draft.fullmatch(name)):
        reporter.warn(
            f"{path.parent} holds {name_some(left)}, which `deitctl pack` did not finish: remove that, "
            "unless another process is writing it."
        )


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
