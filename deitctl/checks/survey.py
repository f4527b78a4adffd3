"""What lies in a data set, sound or not: its parts, and whatever opening it would refuse or leave out."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from deitctl.checks.findings import EXAMPLES, Finding, Remedy, found, listed
from deitctl.checks.image_info import is_image
from deitctl.data.dataset import FileSource, Source, is_hidden
from deitctl.data.decode import EXTENSIONS
from deitctl.data.open import BUILT_IN, open_data
from deitctl.data.readers.folder import scan_classes
from deitctl.data.splits import TRAIN_NAMES, VAL_NAMES
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter, Task

WHOLE = "all"
UNREAD = frozenset(
    [
        ".heic",
        ".heif",
        ".jxl",
        ".tga",
        ".psd",
        ".svg",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
    ]
)
"""Images that deitctl does not read, by extension."""
SNIFFED = 3  # files of an unknown extension whose first bytes are looked at


@dataclass(frozen=True)
class Split:
    """Training, validation, or a data set without parts."""

    name: str
    """train, val or all."""
    source: Source
    empty: tuple[str, ...] = ()
    """Class folders without an image."""
    root: str = ""
    """Its folder, where it is one."""
    flat: bool = False
    """No class folders; the images of `source` have no class, or that of a ground truth."""

    @property
    def labeled(self) -> bool:
        """Whether its images have classes."""
        return bool(self.source.class_names)


@dataclass
class Survey:
    """The parts of a data set, and what was found on the way to them."""

    name: str
    parts: list[Split] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def survey(ref: str, reporter: Reporter) -> Survey:
    """Open a data set as far as it can be opened.

    Raises:
        DataError: nothing there, a folder that cannot be listed, or a tar or table that cannot be read.
    """
    path = Path(ref or BUILT_IN).expanduser()
    quiet = _TasksAlone(reporter)  # what opening warns of becomes a finding
    try:
        if path.is_dir():
            return _survey_folder(path, quiet)
        findings = list(_strays_of_tar(path)) if path.suffix == ".tar" and path.is_file() else []
    except OSError as error:
        raise DataError(f"{error.filename or ref} cannot be read: {error.strerror}.") from error
    try:
        data = open_data(ref, quiet)
    except DataError:
        if any(f.check == "flat_part" for f in findings):
            return Survey(ref, [], findings)
        raise
    named = (("train", data.train), ("val", data.val), (WHOLE, data.whole))
    parts = [
        Split(name, source) for name, source in named if source is not None and len(source.labels)
    ]
    return Survey(data.name, parts, findings)


class _TasksAlone(SilentReporter):
    """Passes progress on, and no words."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with self.reporter.task(label, total, unit) as task:
            yield task


def _survey_folder(path: Path, reporter: Reporter) -> Survey:
    result = Survey(str(path))
    while inner := _only_folder_around_parts(path):
        result.findings += found("nested_part", 1, [str(inner)])
        path = inner
    parts = _part_folders(path)
    train, val = (
        next((n for n in names if n in parts), None) for names in (TRAIN_NAMES, VAL_NAMES)
    )
    if not parts:
        _add_part(result, WHOLE, path, reporter)
        return result
    odd = sorted(str(parts[n]) for n in parts if parts[n].name != n)
    rename = listed(
        odd,
        lambda f: Remedy(
            f, "misnamed_part", "rename", str(Path(f).with_name(Path(f).name.casefold()))
        ),
    )
    result.findings += found("misnamed_part", len(odd), odd, remedies=rename)
    used = [parts[n] for n in (train, val) if n]
    unused = [str(path / f) for f in _folders(path) if path / f not in used]
    result.findings += found("unused_folder", len(unused), unused)
    for name, part in (("train", train), ("val", val)):
        if part:
            _add_part(result, name, parts[part], reporter)
    return result


def _part_folders(path: Path) -> dict[str, Path]:
    """Find the folders that are parts: they hold folders, or images where everything beside them is a part too.

    Folders with class folders come before flat ones, and names spelled as deitctl reads them before others.
    """
    known = {f: f.casefold() for f in _folders(path) if f.casefold() in (*TRAIN_NAMES, *VAL_NAMES)}
    deep = [f for f in known if _folders(path / f)]
    flat = [f for f in known if f not in deep and _images(path / f)]
    chosen = [*deep, *flat] if deep or len(known) == len(_folders(path)) else []
    parts: dict[str, Path] = {}
    for folder in sorted(chosen, key=lambda f: (f in flat, f != known[f])):
        if not (folder in flat and _rival(known[folder], parts)):
            parts.setdefault(known[folder], path / folder)
    return parts


def _rival(name: str, parts: Iterable[str]) -> bool:
    """Say whether another folder is already the same part: `test` beside `val` is not needed."""
    kind = TRAIN_NAMES if name in TRAIN_NAMES else VAL_NAMES
    return any(p in kind for p in parts)


def _only_folder_around_parts(path: Path) -> Path | None:
    folders = _folders(path)
    alone = len(folders) == 1 and not _images(path) and not _part_folders(path)
    return path / folders[0] if alone and _part_folders(path / folders[0]) else None


def _add_part(result: Survey, name: str, root: Path, reporter: Reporter) -> None:
    while inner := _same_part_again(root):
        result.findings += found("nested_part", 1, [str(inner)])
        root = inner
    folders = _folders(root)
    if not folders:
        paths = tuple(sorted(str(root / f) for f in _images(root)))
        if paths:
            result.parts.append(
                Split(
                    name, FileSource(paths, np.zeros(len(paths), np.int64), ()), (), str(root), True
                )
            )
        result.findings += found("no_images", not paths, [str(root)])
        return
    result.findings += _strays(root, folders)
    try:
        source = scan_classes(root, reporter)
    except DataError:  # class folders without a single image
        result.findings += found("no_images", 1, [str(root)])
        return
    empty = tuple(sorted(set(folders) - set(source.class_names)))
    result.parts.append(Split(name, source, empty, str(root)))


def _same_part_again(root: Path) -> Path | None:
    """Find train/train, which unpacking makes easily."""
    folders = _folders(root)
    inner = _part_folders(root) if folders and len(folders) <= 2 else {}
    return next(iter(inner.values())) if len(inner) == len(folders) and inner else None


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))


def _images(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [
            e.name
            for e in entries
            if e.is_file() and _is_named_like_an_image(e.name) and not is_hidden(e.name)
        ]


def _is_named_like_an_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


@dataclass
class _Tally:
    """How many, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)


def _strays(root: Path, folders: Iterable[str]) -> Iterator[Finding]:
    """Find what a part holds besides images in class folders."""
    others: dict[str, _Tally] = {}
    subfolders, closed = _Tally(), _Tally()
    for folder in folders:
        for current, files in _walk(root / folder, closed):
            if current != str(root / folder) and any(map(_is_named_like_an_image, files)):
                subfolders.add(current)
            for file in files:
                if not _is_named_like_an_image(file):
                    others.setdefault(os.path.splitext(file)[1].lower(), _Tally()).add(
                        os.path.join(current, file)
                    )
    loose = sorted(_images(root))
    yield from found("loose_images", len(loose), (str(root / f) for f in loose))
    yield from found("subfolders", subfolders.count, subfolders.examples)
    yield from found("unreadable_folder", closed.count, closed.examples)
    yield from _others(others)


def _walk(folder: Path, closed: _Tally) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below and its visible files; links are followed, but no folder is entered twice."""
    above = os.stat(folder.parent)
    seen = {(above.st_dev, above.st_ino)}
    for current, folders, files in os.walk(
        folder, onerror=lambda e: closed.add(str(e.filename)), followlinks=True
    ):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not is_hidden(f))
        yield current, sorted(f for f in files if not is_hidden(f))


def _others(by_extension: dict[str, _Tally]) -> Iterator[Finding]:
    """Tell ignored files from images that are not read, by extension, or by the first bytes of the first files."""
    unread = {
        e
        for e, t in by_extension.items()
        if e in UNREAD or any(map(is_image, t.examples[:SNIFFED]))
    }
    for check, chosen in (
        ("unread_images", unread),
        ("ignored_files", by_extension.keys() - unread),
    ):
        tallies = {
            e or "no extension": by_extension[e]
            for e in sorted(chosen, key=lambda e: -by_extension[e].count)
        }
        detail = ", ".join(f"{e}: {t.count}" for e, t in list(tallies.items())[:EXAMPLES])
        examples = (name for t in tallies.values() for name in t.examples)
        yield from found(
            check, sum(t.count for t in tallies.values()), examples, detail=f"({detail})"
        )


def _strays_of_tar(path: Path) -> Iterator[Finding]:
    """Find what opening a tar leaves out: files of other kinds, and images outside class folders."""
    others: dict[str, _Tally] = {}
    images: dict[tuple[str, ...], _Tally] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name.removeprefix("./"))
                if not member.isfile() or any(map(is_hidden, name.parts)):
                    continue
                if _is_named_like_an_image(name.name):
                    images.setdefault(name.parts[:-1], _Tally()).add(f"{path}:{name}")
                else:
                    others.setdefault(name.suffix.lower(), _Tally()).add(f"{path}:{name}")
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is not a readable, uncompressed tar: {error}.", "Unpack a .tar.gz first."
        ) from error
    while images and len({f[:1] for f in images}) == 1 and min(map(len, images)) > 1:
        images = {
            folder[1:]: tally for folder, tally in images.items()
        }  # one folder around everything
    parted = {folder[0] for folder in images if folder} & {*TRAIN_NAMES, *VAL_NAMES}
    for part in parted or {""}:
        below = {
            f[1:] if parted else f: t for f, t in images.items() if not parted or f[:1] == (part,)
        }
        loose = below.get((), _Tally())
        yield from found(
            "flat_part" if len(below) == 1 else "loose_images", loose.count, loose.examples
        )
    yield from _others(others)
