"""Survey of a data set: its splits, and whatever opening it would refuse or leave out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from deitctl.checks.image_info import is_image
from deitctl.checks.issues import NUM_EXAMPLES, WARNING, Issue, Remedy, report
from deitctl.config import TaskChoice
from deitctl.data.band_image import has_bands
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.file_types import KIND_OF_EXTENSION, get_extensions, is_image_kind, reading_arrays
from deitctl.data.find_layout import find_layout
from deitctl.data.layout import Layout, is_junk
from deitctl.data.open import open_dataset
from deitctl.data.open_file import OpenFile
from deitctl.data.readers.folder import open_folder, open_folders
from deitctl.data.readers.parquet_table import refuse_image_folder
from deitctl.data.readers.shard_contents import iterate_files, scan_tar
from deitctl.data.readers.tar_headers import DamagedTar
from deitctl.data.readers.webdataset import has_samples
from deitctl.data.several_labels import settle_labels
from deitctl.data.sources import BUILT_IN, is_image_folder
from deitctl.data.trees import FolderTree, NameTree, is_image_file
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter, Task
from deitctl.home import expand_home
from deitctl.names import canonicalize_name
from deitctl.settings import convert

ALL = "all"
"""Name of the one split of a data set without splits."""
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


def survey(
    ref: str, reporter: Reporter, image_folder: str = "", task: str = "auto", in_chans: int = 0
) -> Survey:
    """Open a data set as far as it can be opened.

    Args:
        ref: the data.
        reporter: receives progress, and how a table was read.
        image_folder: that the paths of a table are below.
        task: whether an image has one label or several; auto: as the data has them.
        in_chans: channels of the model, see `open_dataset`.

    Raises:
        DataError: nothing there, or a folder, tar or table that cannot be read.
    """
    path = expand_home(ref or BUILT_IN)
    quiet = _ProgressReporter(reporter)  # warnings of opening become issues
    try:
        if image_folder and path.is_dir():
            refuse_image_folder(path)
        if is_image_folder(path):
            bands = in_chans if has_bands(in_chans) else 0
            with reading_arrays(bool(bands)):
                surveyed = _survey_folder(path, quiet)
            if bands:
                surveyed.splits = [
                    replace(split, dataset=split.dataset.with_bands(bands))
                    for split in surveyed.splits
                ]
            return _settle(surveyed, convert(task, TaskChoice, "task"), reporter)
        is_tar = path.suffix.lower() == ".tar" and path.is_file() and _is_of_folders(path)
        issues = list(_check_tar(path)) if is_tar else []
    except OSError as error:
        raise DataError(f"{error.filename or ref} cannot be read: {error.strerror}.") from error
    try:
        # How tables, Parquet files and shards were read is no issue of their images.
        messages = quiet if is_tar else reporter
        data = open_dataset(
            ref, messages, image_folder, task=task, with_missing=True, in_chans=in_chans
        )
    except DataError:
        # the issue says how to label the images, the error does not
        if any(issue.code == "flat_split" for issue in issues):
            return Survey(ref, [], issues)
        raise
    splits = [Split(name or ALL, dataset) for name, dataset in data.list_parts().items()]
    return Survey(data.name, splits, issues)


def _settle(surveyed: Survey, task: TaskChoice, reporter: Reporter) -> Survey:
    """Return a folder's images with the labels of all class folders that each is in, as they are trained on."""
    labeled = {split.name: split.dataset for split in surveyed.splits if split.labeled}
    settled = settle_labels(surveyed.name, labeled, task, reporter, is_tree=True)
    surveyed.splits = [
        replace(split, dataset=settled.get(split.name, split.dataset)) for split in surveyed.splits
    ]
    return surveyed


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
    layout = find_layout(FolderTree(path), str(path))
    entered = [layout.root] if layout.root else []
    result.issues += _report_layout(layout, entered, str(path) + os.sep)
    loose = sum(layout.loose.values())
    result.issues += report("loose_images", loose, [str(path / layout.root)])
    if layout.in_classes:
        root = path / layout.root
        # their sub-folders are the parts
        strays = _check_strays(root, _list_folders(root))
        result.issues += (issue for issue in strays if issue.code != "subfolders")
        for name, dataset in open_folders(path, reporter).items():
            result.splits.append(Split(name, dataset))
        return result
    for name in ("train", "val", "test", ""):
        for folders in (layout.parts, layout.unlabeled):
            if name in folders:
                not_read = layout.list_not_read(name) if name in layout.parts else frozenset()
                _add_split(result, name or ALL, path / folders[name], reporter, not_read)
    return result


def _report_layout(layout: Layout, entered: list[str], prefix: str) -> Iterator[Issue]:
    """Report folders that are entered on the way to the data, and those that are not."""
    parts = [p for name, p in (*layout.parts.items(), *layout.unlabeled.items()) if name]
    depth = layout.root.count("/") + 2 if layout.root else 1
    entered = entered + [part for part in parts if part.count("/") + 1 > depth]
    yield from report("nested_split", len(entered), [f"{prefix}{p}" for p in entered])
    unused = (*layout.left_out, *layout.copies, *layout.masks)
    yield from report("unused_folder", len(unused), [f"{prefix}{p}" for p in unused])


def _add_split(
    result: Survey, name: str, root: Path, reporter: Reporter, not_read: Collection[str]
) -> None:
    folders = [folder for folder in _list_folders(root) if folder not in not_read]
    if not folders:
        paths = tuple(sorted(str(root / f) for f in _list_images(root)))
        if paths:
            dataset = FileDataset(paths, np.zeros(len(paths), np.int64), ())
            result.splits.append(Split(name, dataset, root=str(root), flat=True))
        result.issues += report("no_images", not paths, [str(root)])
        return
    result.issues += _check_strays(root, folders, not_read)
    try:
        dataset = open_folder(root, reporter, not_read)
    except DataError:  # class folders without a single image
        result.issues += report("no_images", 1, [str(root)])
        return
    result.issues += _find_merged_classes(root, folders)
    used = set(dataset.class_names)
    empty = tuple(sorted(name for name in folders if canonicalize_name(name) not in used))
    result.splits.append(Split(name, dataset, empty, str(root)))


def _find_merged_classes(root: Path, folders: Iterable[str]) -> Iterator[Issue]:
    """Report class folders that are read as one class, by their names in canonical form."""
    by_name: dict[str, list[str]] = {}
    for folder in folders:
        by_name.setdefault(canonicalize_name(folder), []).append(folder)
    merged = [same for same in by_name.values() if len(same) > 1]
    yield from report(
        "similar_class_names",
        len(merged),
        (" / ".join(map(ascii, same)) for same in merged),
        details=["They are read as one class."],
        severity=WARNING,
        remedies=lambda: (
            Remedy(str(root / other), "similar_class_names", "merge", str(root / same[0]))
            for same in merged
            for other in same[1:]
        ),
    )


def _list_folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_junk(e.name))


def _list_images(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [
            e.name for e in entries if e.is_file() and not is_junk(e.name) and is_image_file(e.path)
        ]


@dataclass
class _Names:
    """A count of names, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(name)


def _check_strays(
    root: Path, folders: Iterable[str], not_read: Collection[str] = ()
) -> Iterator[Issue]:
    """Report what a split holds besides images in class folders."""
    others: dict[str, _Names] = {}
    subfolders, unreadable = _Names(), _Names()
    for folder in folders:
        for current, files in _walk(root / folder, unreadable):
            if Path(current).relative_to(root).as_posix() in not_read:
                continue
            paths = [os.path.join(current, file) for file in files]
            passed_over = [path for path in paths if not is_image_file(path)]
            if current != str(root / folder) and len(passed_over) < len(files):
                subfolders.add(current)
            for path in passed_over:
                others.setdefault(os.path.splitext(path)[1].lower(), _Names()).add(path)
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
        if is_image_kind(KIND_OF_EXTENSION.get(extension, ""))
        or any(map(is_image, names.examples[:NUM_SNIFFED]))
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


def _is_of_folders(path: Path) -> bool:
    """Whether a tar holds images as a folder does: no samples of WebDataset and no class tars."""
    try:
        contents = scan_tar(OpenFile(str(path)), get_extensions())
    except (DamagedTar, OSError):  # opening it says so
        return True
    return not (contents.num_nested or has_samples([contents]))


def _check_tar(path: Path) -> Iterator[Issue]:
    """Report what opening a tar leaves out: other files, and images outside class folders."""
    others: dict[str, _Names] = {}
    images: dict[str, _Names] = {}  # by folder
    for member, is_read in iterate_files(path):
        name = PurePosixPath(member)
        if is_read:
            names = images.setdefault(str(name.parent).removeprefix("."), _Names())
        else:
            names = others.setdefault(name.suffix.lower(), _Names())
        names.add(f"{path}:{name}")
    tree = NameTree(f"{folder}/.".lstrip("/") for folder in images)
    layout = find_layout(tree, str(path))
    yield from _report_layout(layout, [], f"{path}:")  # one folder around all is usual
    flat = [folder for folder in layout.parts.values() if not tree.list(folder).folders]
    flat += layout.unlabeled.values()
    for folder, names in images.items():
        # beside class folders they are left out, alone they are the split
        if folder in flat:
            yield from report("flat_split", names.count, names.examples)
        elif folder in layout.parts.values() or is_above(folder, layout.parts.values()):
            yield from report("loose_images", names.count, names.examples)
    yield from _report_other_files(others)


def is_above(folder: str, others: Iterable[str]) -> bool:
    """Whether a folder holds one of some others, by their paths."""
    return any(other and (not folder or other.startswith(f"{folder}/")) for other in others)
