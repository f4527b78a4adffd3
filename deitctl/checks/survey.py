"""Survey of a data set: its splits, and whatever opening it would refuse or leave out."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from deitctl.checks.image_info import is_image
from deitctl.checks.issues import NUM_EXAMPLES, Issue, Remedy, make_remedies, report
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.decode import EXTENSIONS
from deitctl.data.layout import is_junk
from deitctl.data.open import BUILT_IN, open_dataset
from deitctl.data.readers.folder import open_folder
from deitctl.data.splits import SPLIT_NAMES, find_splits
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter, Task
from deitctl.home import expand_home

ALL = "all"
"""Name of the one split of a data set without splits."""
UNREAD = frozenset(
    ".heic .heif .jxl .tga .psd .svg .dng .cr2 .cr3 .nef .arw .orf".split()  # noqa: SIM905
)
"""Extensions of images that deitctl does not read."""
ALL_NAMES = frozenset(name for names in SPLIT_NAMES.values() for name in names)
NUM_SNIFFED = 3
"""Files of an unknown extension whose first bytes are read."""


@dataclass(frozen=True)
class Split:
    """Training, validation, test, or all of a data set without splits."""

    name: str
    """train, val, test or all."""
    dataset: ImageDataset
    empty: tuple[str, ...] = ()
    """Class folders without an image."""
    root: str = ""
    """Its folder; empty where it is none."""
    flat: bool = False
    """No class folders; the images of `dataset` have no class, or that of a ground truth."""

    @property
    def labeled(self) -> bool:
        """Whether its images have classes."""
        return bool(self.dataset.class_names)


@dataclass
class Survey:
    """The splits of a data set, and the issues of its layout."""

    name: str
    splits: list[Split] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)


def survey(ref: str, reporter: Reporter) -> Survey:
    """Open a data set as far as it can be opened.

    Raises:
        DataError: nothing there, or a folder, tar or table that cannot be read.
    """
    path = expand_home(ref or BUILT_IN)
    quiet = _ProgressReporter(reporter)  # warnings of opening become issues
    try:
        if path.is_dir():
            return _survey_folder(path, quiet)
        issues = list(_check_tar(path)) if path.suffix == ".tar" and path.is_file() else []
    except OSError as error:
        raise DataError(f"{error.filename or ref} cannot be read: {error.strerror}.") from error
    try:
        data = open_dataset(ref, quiet)
    except DataError:
        # the issue says how to label the images, the error does not
        if any(issue.code == "flat_split" for issue in issues):
            return Survey(ref, [], issues)
        raise
    splits = [Split(name or ALL, dataset) for name, dataset in data.list_parts().items()]
    return Survey(data.name, splits, issues)


class _ProgressReporter(SilentReporter):
    """Passes progress on, and no messages."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with self.reporter.task(label, total, unit) as task:
            yield task


def _survey_folder(path: Path, reporter: Reporter) -> Survey:
    result = Survey(str(path))
    # unpacking may nest folders several times
    while inner := _find_nested_data(path):
        result.issues += report("nested_split", 1, [str(inner)])
        path = inner
    folders = _find_split_folders(path)
    chosen = find_splits(folders, str(path))
    if not folders:
        _add_split(result, ALL, path, reporter)
        return result
    misnamed = sorted(str(folder) for name, folder in folders.items() if folder.name != name)
    result.issues += report(
        "misnamed_split",
        len(misnamed),
        misnamed,
        remedies=make_remedies(misnamed, _rename_to_lower_case),
    )
    used = [folders[name] for name in chosen.values()]
    unused = [str(path / f) for f in _list_folders(path) if path / f not in used]
    result.issues += report("unused_folder", len(unused), unused)
    for name, folder_name in chosen.items():
        _add_split(result, name, folders[folder_name], reporter)
    return result


def _rename_to_lower_case(folder: str) -> Remedy:
    path = Path(folder)
    return Remedy(folder, "misnamed_split", "rename", str(path.with_name(path.name.casefold())))


def _find_split_folders(path: Path) -> dict[str, Path]:
    """Return folders that are splits: they hold folders, or images beside nothing but splits.

    Folders with class folders come before flat ones, and names spelled as deitctl reads them before
    others.
    """
    folders = _list_folders(path)
    names = {f: f.casefold() for f in folders if f.casefold() in ALL_NAMES}
    deep = [f for f in names if _list_folders(path / f)]
    flat = [f for f in names if f not in deep and _list_images(path / f)]
    # a class may be called train, too
    candidates = [*deep, *flat] if deep or len(names) == len(folders) else []
    splits: dict[str, Path] = {}
    for folder in sorted(candidates, key=lambda f: (f in flat, f != names[f])):
        if not (folder in flat and _has_rival(names[folder], splits)):
            splits.setdefault(names[folder], path / folder)
    return splits


def _has_rival(name: str, others: Iterable[str]) -> bool:
    """Return whether another folder is already the same split, such as `val` beside `valid`."""
    kind = next(names for names in SPLIT_NAMES.values() if name in names)
    return any(other in kind for other in others)


def _find_nested_data(path: Path) -> Path | None:
    """Return the only folder of `path` if the splits are in it."""
    folders = _list_folders(path)
    alone = len(folders) == 1 and not _list_images(path) and not _find_split_folders(path)
    return path / folders[0] if alone and _find_split_folders(path / folders[0]) else None


def _add_split(result: Survey, name: str, root: Path, reporter: Reporter) -> None:
    while inner := _find_repeated_split(root):
        result.issues += report("nested_split", 1, [str(inner)])
        root = inner
    folders = _list_folders(root)
    if not folders:
        paths = tuple(sorted(str(root / f) for f in _list_images(root)))
        if paths:
            dataset = FileDataset(paths, np.zeros(len(paths), np.int64), ())
            result.splits.append(Split(name, dataset, root=str(root), flat=True))
        result.issues += report("no_images", not paths, [str(root)])
        return
    result.issues += _check_strays(root, folders)
    try:
        dataset = open_folder(root, reporter)
    except DataError:  # class folders without a single image
        result.issues += report("no_images", 1, [str(root)])
        return
    empty = tuple(sorted(set(folders) - set(dataset.class_names)))
    result.splits.append(Split(name, dataset, empty, str(root)))


def _find_repeated_split(root: Path) -> Path | None:
    """Find train/train, which unpacking an archive easily makes."""
    folders = _list_folders(root)
    inner = _find_split_folders(root) if folders and len(folders) <= 2 else {}
    return next(iter(inner.values())) if len(inner) == len(folders) and inner else None


def _list_folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_junk(e.name))


def _list_images(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [
            e.name
            for e in entries
            if e.is_file() and _has_image_extension(e.name) and not is_junk(e.name)
        ]


def _has_image_extension(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


@dataclass
class _Names:
    """A count of names, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(name)


def _check_strays(root: Path, folders: Iterable[str]) -> Iterator[Issue]:
    """Report what a split holds besides images in class folders."""
    others: dict[str, _Names] = {}
    subfolders, unreadable = _Names(), _Names()
    for folder in folders:
        for current, files in _walk(root / folder, unreadable):
            if current != str(root / folder) and any(map(_has_image_extension, files)):
                subfolders.add(current)
            for file in files:
                if not _has_image_extension(file):
                    extension = os.path.splitext(file)[1].lower()
                    others.setdefault(extension, _Names()).add(os.path.join(current, file))
    loose = sorted(_list_images(root))
    yield from report("loose_images", len(loose), (str(root / f) for f in loose))
    yield from report("subfolders", subfolders.count, subfolders.examples)
    yield from report("unreadable_folder", unreadable.count, unreadable.examples)
    yield from _report_other_files(others)


def _walk(folder: Path, unreadable: _Names) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below and its visible files; follow links, but enter no folder twice."""
    above = os.stat(folder.parent)
    # by device and inode, because a link to a parent would have no end
    seen = {(above.st_dev, above.st_ino)}
    for current, folders, files in os.walk(
        folder, onerror=lambda e: unreadable.add(str(e.filename)), followlinks=True
    ):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not is_junk(f))
        yield current, sorted(f for f in files if not is_junk(f))


def _report_other_files(by_extension: dict[str, _Names]) -> Iterator[Issue]:
    """Tell ignored files from unread images, by extension or the first files' first bytes."""
    unread = {
        extension
        for extension, names in by_extension.items()
        # of an unknown extension the first files stand for all
        if extension in UNREAD or any(map(is_image, names.examples[:NUM_SNIFFED]))
    }
    for code, extensions in (
        ("unread_images", unread),
        ("ignored_files", by_extension.keys() - unread),
    ):
        ordered = sorted(extensions, key=lambda e: -by_extension[e].count)
        counts = [f"{e or 'no extension'}: {by_extension[e].count}" for e in ordered]
        yield from report(
            code,
            sum(by_extension[e].count for e in ordered),
            (name for e in ordered for name in by_extension[e].examples),
            details=[f"({', '.join(counts[:NUM_EXAMPLES])})"],
        )


def _check_tar(path: Path) -> Iterator[Issue]:
    """Report what opening a tar leaves out: other files, and images outside class folders."""
    others: dict[str, _Names] = {}
    images: dict[tuple[str, ...], _Names] = {}  # by folder
    try:
        # uncompressed only, as training reads it: images are at offsets
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name.removeprefix("./"))
                if not member.isfile() or any(map(is_junk, name.parts)):
                    continue
                if _has_image_extension(name.name):
                    images.setdefault(name.parts[:-1], _Names()).add(f"{path}:{name}")
                else:
                    others.setdefault(name.suffix.lower(), _Names()).add(f"{path}:{name}")
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is not a readable, uncompressed tar: {error}.", "Unpack a .tar.gz first."
        ) from error
    while images and len({f[:1] for f in images}) == 1 and min(map(len, images)) > 1:
        images = {f[1:]: names for f, names in images.items()}  # one folder around everything
    splits = {folder[0] for folder in images if folder} & ALL_NAMES
    for split in splits or {""}:
        below = images
        if splits:
            below = {f[1:]: names for f, names in images.items() if f[:1] == (split,)}
        loose = below.get((), _Names())
        # beside class folders they are left out, alone they are the split
        code = "flat_split" if len(below) == 1 else "loose_images"
        yield from report(code, loose.count, loose.examples)
    yield from _report_other_files(others)
