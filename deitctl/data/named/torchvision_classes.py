"""torchvision's data sets at work for us: which files they need, how they unpack them, what their parts are.

A class is run with `download=True` and functions of its modules replaced: that which downloads, so that files come
with our progress and resumption, that which unpacks, and `pickle`, which reads arrays alone.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from deitctl.data.named import array_pickles
from deitctl.data.named.downloads import MANUAL, Download
from deitctl.data.named.names import OWN, TORCHVISION, NamedData, Split
from deitctl.errors import DataError, did_you_mean
from deitctl.events import Task

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
SPLITS = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid"),
    "test": ("test",),
}
"""What torchvision's classes call our parts, in order of preference."""


def load_class(torch_class: str | type) -> type:
    """Return a class by its name: of `torchvision.datasets`, in any case, or `MODULE:CLASS`.

    Raises:
        DataError: there is none.
    """
    if isinstance(torch_class, type):
        return torch_class
    if torch_class.startswith(OWN):
        module, _, name = torch_class.partition(":")
        own: type = getattr(importlib.import_module(module), name)
        return own
    import torchvision.datasets

    names = {name.lower(): name for name in torchvision.datasets.__all__}
    if torch_class.lower() not in names:
        hint = did_you_mean(torch_class, names.values())
        raise DataError(f"torchvision has no data set {torch_class!r}.", hint)
    chosen: type = getattr(torchvision.datasets, names[torch_class.lower()])
    return chosen


def describe_class(ref: str) -> NamedData:
    """Return the description of `torchvision:CLASS`, whose parts are those that the class has.

    Raises:
        DataError: there is no such class, or it does not open by a folder and a part alone.
    """
    torch_class = load_class(ref.removeprefix(TORCHVISION))
    name = TORCHVISION + torch_class.__name__
    parameters = inspect.signature(torch_class).parameters
    if "split" in parameters:
        choices = {
            part: next((v for v in values if _accepts(torch_class, {"split": v})), None)
            for part, values in SPLITS.items()
        }
        splits = {part: Split({"split": v}, 0) for part, v in choices.items() if v is not None}
    elif "train" in parameters:
        splits = {"train": Split({"train": True}, 0), "test": Split({"train": False}, 0)}
    else:
        splits = {"": Split({}, 0)}
    if "root" not in parameters or not all(
        _accepts(torch_class, s.arguments) for s in splits.values()
    ):
        splits = {}
    if not splits:
        raise DataError(
            f"{name} does not open by its name alone.",
            "A program passes it: deitctl.train(data_set), see docs/extend.md.",
        )
    return NamedData(name, torch_class, splits, 0)


def _accepts(torch_class: type, arguments: Mapping[str, Any]) -> bool:
    """Return whether a class takes arguments, whatever else it lacks."""
    try:
        _run_without_files(torch_class, arguments, lambda *_: None)
    except (TypeError, ValueError):
        return False
    except Exception:  # it has no files yet
        return True
    return True


def list_downloads(data: NamedData) -> list[Download]:
    """Return the files that a data set is made of, as its class requests them."""
    torch_class = load_class(data.torch_class)
    requested: dict[str, Download] = {}

    def record(url: str, folder: str, name: str, md5: str) -> None:
        requested.setdefault(name, Download(url, name, md5))

    for split in data.splits.values():
        with suppress(Exception):  # of the files that it does not find then
            _run_without_files(torch_class, split.arguments, record)
    return list(requested.values())


def _run_without_files(
    torch_class: type, arguments: Mapping[str, Any], record: Callable[[str, str, str, str], None]
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        _replacing(torch_class, record, lambda *_, **__: folder),
    ):
        torch_class(folder, **arguments, download=True)


@contextmanager
def unpacking(
    torch_class: type, archives: Path, task: Task, fetch: Callable[[Download], None]
) -> Iterator[None]:
    """Let a class find its files in a folder, and unpack them with progress.

    Args:
        torch_class: the class.
        archives: where its files lie, verified.
        task: counts the files that come out of them.
        fetch: called with a file that is not there, to put it there.
    """
    from torchvision.datasets import utils

    unpack_other = utils.extract_archive
    links: list[Path] = []

    def place(url: str, folder: str, name: str, md5: str) -> None:
        if not (archives / name).exists():  # a class may request it when it has read another
            fetch(Download(url, name, md5))
        os.makedirs(folder, exist_ok=True)
        links.append(Path(folder, name))
        if not links[-1].exists():
            try:
                links[-1].symlink_to((archives / name).resolve())
            except OSError:  # Windows gives links to few
                shutil.copyfile(archives / name, links[-1])

    def unpack(
        from_path: str | Path, to_path: str | Path | None = None, remove_finished: bool = False
    ) -> str:
        path = os.fspath(from_path)
        folder = os.path.dirname(path) if to_path is None else os.fspath(to_path)
        if path.lower().endswith(TARS):
            _unpack_tar(path, folder, task)
        elif path.lower().endswith(".zip"):
            _unpack_zip(path, folder, task)
        else:
            return str(unpack_other(path, folder, remove_finished))
        if remove_finished:
            os.remove(path)
        return folder

    try:
        with _replacing(torch_class, place, unpack):
            yield
    finally:
        for link in links:
            link.unlink(missing_ok=True)


@contextmanager
def _replacing(
    torch_class: type, download: Callable[[str, str, str, str], None], unpack: Callable[..., str]
) -> Iterator[None]:
    """Replace what a class's modules download and unpack with, and their `pickle`."""
    from torchvision.datasets import utils

    def download_url(
        url: str, root: str | Path, filename: str | None = None, md5: str | None = None, *_: Any
    ) -> None:
        download(url, os.fspath(root), os.fspath(filename or os.path.basename(url)), md5 or "")

    def download_from_drive(
        file_id: str, root: str | Path, filename: str | None = None, md5: str | None = None
    ) -> None:
        name = os.fspath(filename or file_id)
        download(f"{MANUAL}file/d/{file_id}", os.fspath(root), name, md5 or "")

    replacements = {
        "download_url": download_url,
        "download_file_from_google_drive": download_from_drive,
        "extract_archive": unpack,
        "pickle": array_pickles,
    }
    modules: set[ModuleType] = {utils}
    for base in torch_class.__mro__:
        if base.__module__.startswith("torchvision.datasets."):
            modules.add(sys.modules[base.__module__])
    replaced = [
        (module, name, getattr(module, name))
        for module in modules
        for name in replacements
        if hasattr(module, name)
    ]
    for module, name, _ in replaced:
        setattr(module, name, replacements[name])
    try:
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)


def _unpack_tar(path: str, folder: str, task: Task) -> None:
    with tarfile.open(path) as archive:
        # Nothing outside the folder, no devices; Pythons before 3.11.4 have no such filter.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in archive:
            archive.extract(member, folder)
            task.advance(1)


def _unpack_zip(path: str, folder: str, task: Task) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            archive.extract(member, folder)
            task.advance(1)
