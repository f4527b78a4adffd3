"""Where the images of a table lie: where its paths say, or where these lead to on this machine.

Tables name images by paths of another machine, by names alone, without an extension, with the
separators of Windows. Where images are is decided once for a table, from lists of the folders, and
never guessed image by image: what fits in two places is refused.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.file_types import get_extensions
from deitctl.data.layout import is_junk
from deitctl.errors import DataError
from deitctl.paths import shorten

NUM_SAMPLED = 1000
"""Rows by which a place is chosen."""
NUM_PARENTS = 3
"""Folders above the table that its paths may be relative to."""
MAX_DROPPED = 16
"""Folders at the beginning of a path that belong to another machine."""
IMAGE_FOLDER = re.compile(r"im(age|g)|photo|pic|jpe?g|png|train|val|test|data|file|media", re.I)
"""In the name of a folder that may hold a table's images."""
OTHER_FOLDER = re.compile(r"mask|annot|label|seg|thumb|truth|box", re.I)
"""In the name of a folder beside it that holds something else under the same names."""
ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.I)
FILE_ADDRESS = re.compile(r"\s*file:(//(localhost)?)?(?=/[^/])", re.I)
"""The beginning of a path that is written as an address, in which signs are escaped by %."""
Rewrite = Callable[[str], str | None]


@dataclass(frozen=True)
class ImagePlaces:
    """The files of a table's images."""

    names: StringArray
    """Of files; joined with `root` as they are written where there is no such file."""
    root: str
    """Folder that names are relative to, with a separator behind it."""
    is_missing: NDArray[np.bool_]
    """Whether there is no such file, [N]."""
    notes: tuple[str, ...]
    """What was decided, as parts of a sentence."""


@dataclass(frozen=True)
class _Place:
    """A way from the paths of a table to files."""

    roots: tuple[str, ...]
    """Folders; a file is in one of them."""
    rewrite: Rewrite
    """Returns a path relative to them, None for one that has none."""
    description: str
    """Behind `its paths are not there as written, but`; empty for the paths as they are written."""

    def find(
        self, value: str, lists: _FolderLists, spellings: _Spellings
    ) -> tuple[int, str] | None:
        """Return the number of the root and the path relative to it of a file that is there."""
        relative = self.rewrite(_read_file_address(value))
        if relative is None:
            return None
        files = []
        for number, root in enumerate(self.roots):
            # Blanks around a path, as `1.png ,cat` has them, are part of a name only if there is such.
            for spelling in dict.fromkeys((relative, relative.strip())):
                actual = lists.find(os.path.join(root, spelling), spellings)
                if actual is not None:
                    spellings.num_others += spelling != relative
                    folder = os.path.dirname(spelling)
                    files.append((number, os.path.join(folder, actual) if actual else spelling))
                    break
        if len(files) > 1:
            (one, name), (two, other) = files[:2]
            spellings.ambiguous = (
                value,
                os.path.join(self.roots[one], name),
                os.path.join(self.roots[two], other),
            )
        return files[0] if len(files) == 1 else None


@dataclass
class _Spellings:
    """In what the files that were found differ from the paths of the table."""

    endings: set[str] = field(default_factory=set)
    """Extensions that the paths lack."""
    num_others: int = 0
    """Names in another case, or in another form of Unicode."""
    ambiguous: tuple[str, str, str] | None = None
    """A path, and two files that it may mean."""


class _FolderLists:
    """The names of files in folders, each listed once, which is cheaper than to ask for every file."""

    def __init__(self) -> None:
        self._lists: dict[str, _FolderList | None] = {}

    def find(self, path: str, spellings: _Spellings) -> str | None:
        """Return the name of the file that a path means, empty if it is the path's; None for no file."""
        folder, name = os.path.split(path)
        listed = self._list(folder)
        if listed is None:  # cannot be listed, though files in it may be opened
            return "" if os.path.lexists(path) and not os.path.isdir(path) else None
        if name in listed.names:
            return ""
        choices = listed.find_spellings(name)
        if len(choices) > 1:
            one, two = (os.path.join(folder, choice) for choice in choices[:2])
            spellings.ambiguous = (name, one, two)
        if len(choices) != 1:
            return None
        stem, ending = os.path.splitext(choices[0])
        if _fold(stem) == _fold(name):
            spellings.endings.add(ending)
        spellings.num_others += name not in (stem, choices[0])
        return choices[0]

    def _list(self, folder: str) -> _FolderList | None:
        if folder not in self._lists:
            try:
                with os.scandir(folder or os.curdir) as entries:
                    files = frozenset(entry.name for entry in entries if not entry.is_dir())
                self._lists[folder] = _FolderList(files)
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in it
                self._lists[folder] = _FolderList(frozenset())
            except OSError:
                self._lists[folder] = None
        return self._lists[folder]


@dataclass(frozen=True)
class _FolderList:
    names: frozenset[str]

    def find_spellings(self, name: str) -> list[str]:
        """Return the names that one without its extension, or in another case or form, may mean."""
        choices = self._by_folded.get(_fold(name), []) if name else []
        same_case = [choice for choice in choices if os.path.splitext(choice)[0] == name]
        return sorted(same_case or choices)

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        """Names by their form without case, those of images also without their extension."""
        by_folded: dict[str, list[str]] = {}
        endings = get_extensions()
        for name in self.names:
            by_folded.setdefault(_fold(name), []).append(name)
            stem, ending = os.path.splitext(name)
            if ending.lower() in endings:
                by_folded.setdefault(_fold(stem), []).append(name)
        return by_folded


def find_images(table: Path, values: StringArray, image_folder: str) -> ImagePlaces:
    """Find the files of a table's images.

    Args:
        table: the table.
        values: paths of its rows.
        image_folder: the folder that paths are below, as the user names it; empty: that of the table.

    Raises:
        DataError: two places have them, or two files fit one path.
    """
    lists = _FolderLists()
    place = _choose_place(table, values, image_folder, lists)
    spellings, missing, used = _Spellings(), bytearray(), set()
    owners: dict[str, str] = {}  # paths by the file that they lead to
    written = place.roots[0] if len(place.roots) == 1 else _get_base(table, image_folder)

    def iterate_names() -> Iterator[str]:
        for value in values:
            file = place.find(value, lists, spellings)
            missing.append(file is None)
            if file is None:
                yield os.path.join(written, value)
                continue
            used.add(file[0])
            name = os.path.join(place.roots[file[0]], file[1])
            if file[1] != value and owners.setdefault(name, value) != value:
                spellings.ambiguous = (name, owners[name], value)
            yield name

    names = StringArray.from_strings(iterate_names())
    if spellings.ambiguous:
        _refuse_both(table, *spellings.ambiguous)
    root = place.roots[used.pop()] if len(used) == 1 else written
    is_missing = np.frombuffer(bytes(missing), np.bool_)
    return ImagePlaces(names, root, is_missing, tuple(_describe(place, spellings)))


def _refuse_both(table: Path, name: str, first: str, second: str) -> NoReturn:
    raise DataError(
        f"{table}: {shorten(name)!r} may be {shorten(first)!r} or {shorten(second)!r}.",
        "Write whole paths into the table, or name the folder that they are below by --images FOLDER.",
    )


def _describe(place: _Place, spellings: _Spellings) -> Iterator[str]:
    if place.description:
        yield f"its paths are not there as written, but {place.description}"
    if spellings.endings:
        yield f"{' or '.join(sorted(spellings.endings))} is added to its names"
    if spellings.num_others:
        yield f"{spellings.num_others:,} of its names are spelled otherwise than the files"


def _get_base(table: Path, image_folder: str) -> str:
    return os.path.join(image_folder or table.parent, "")


def _choose_place(
    table: Path, values: StringArray, image_folder: str, lists: _FolderLists
) -> _Place:
    """Return the place where most of a sample of rows have a file; the first of several that is the same.

    Raises:
        DataError: two places have equally many, and other files.
    """
    sample = [values[at] for at in np.linspace(0, len(values) - 1, NUM_SAMPLED).astype(int)]
    sample = list(dict.fromkeys(sample))
    base = _get_base(table, image_folder)
    # With --images, absolute paths are of another machine: their ends are looked for.
    as_written = _Place((base,), _refuse_absolute if image_folder else str, "")
    counts = [_count_found(as_written, sample, lists)]
    if counts[0] == len(sample):
        return as_written
    places = [as_written, *_list_places(table, sample, image_folder, lists)]
    counts += [_count_found(place, sample, lists) for place in places[1:]]
    if not any(counts):  # images that were converted: only where not one is called as it is written
        bare = list(dict.fromkeys(map(_drop_extension, sample)))
        places = [as_written, *_list_places(table, bare, image_folder, lists)]
        places = [as_written, *map(_ignore_extensions, places)]
        counts = [_count_found(place, sample, lists) for place in places]
    best = [place for place, count in zip(places, counts, strict=True) if count == max(counts)]
    if best[0] is as_written:
        return as_written
    for other in best[1:]:
        for value in sample:
            first, second = (_find_file(place, value, lists) for place in (best[0], other))
            if first and second and os.path.realpath(first) != os.path.realpath(second):
                _refuse_both(table, value, first, second)
    return best[0]


def _count_found(place: _Place, sample: Sequence[str], lists: _FolderLists) -> int:
    """Return how many paths lead to a file; an ambiguous one counts, and is refused once chosen."""
    files: set[tuple[int, str] | str] = set()
    for value in sample:
        spellings = _Spellings()
        file = place.find(value, lists, spellings)
        if file is not None or spellings.ambiguous:
            files.add(file or value)
    # Paths that lead to one file have lost what tells them apart.
    return len(files)


def _find_file(place: _Place, value: str, lists: _FolderLists) -> str | None:
    file = place.find(value, lists, _Spellings())
    return None if file is None else os.path.join(place.roots[file[0]], file[1])


def _list_places(
    table: Path, sample: Sequence[str], image_folder: str, lists: _FolderLists
) -> Iterator[_Place]:
    """Yield the places other than the paths as they are written, likely ones first."""
    base = _get_base(table, image_folder)
    rewrite = _to_relative if image_folder else _use_slashes
    if any("\\" in value for value in sample):
        yield _Place((base,), rewrite, "with / for \\")
    folders = _list_image_folders(base)
    used = [
        folder
        for folder in folders
        if _count_found(_Place((os.path.join(base, folder, ""),), rewrite, ""), sample, lists)
    ]
    if used:
        roots = tuple(os.path.join(base, folder, "") for folder in used)
        yield _Place(roots, rewrite, f"in {' and '.join(map(shorten, roots))}")
    if image_folder:
        depth = max(value.replace("\\", "/").count("/") for value in sample)
        for count in range(1, min(depth, MAX_DROPPED) + 1):
            yield _Place((base,), _drop_folders(count), f"by their last parts in {shorten(base)}")
        return
    for parent in list(Path(os.path.abspath(table)).parents)[1 : NUM_PARENTS + 1]:
        yield _Place((os.path.join(parent, ""),), rewrite, f"below {parent}")


def _list_image_folders(base: str) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return sorted(
                entry.name
                for entry in entries
                if IMAGE_FOLDER.search(entry.name)
                and not OTHER_FOLDER.search(entry.name)
                and not is_junk(entry.name)
                and entry.is_dir()
            )
    except OSError:
        return []


def _ignore_extensions(place: _Place) -> _Place:
    """Return a place with files of the same names that may have other extensions of images."""
    where = f"{place.description} and " if place.description else ""
    return _Place(
        place.roots,
        lambda value: place.rewrite(_drop_extension(value)),
        f"{where}without their extensions",
    )


def _drop_extension(value: str) -> str:
    stem, ending = os.path.splitext(value.strip())
    return stem if ending.lower() in get_extensions() else value


def _read_file_address(value: str) -> str:
    start = FILE_ADDRESS.match(value)
    return value if start is None else unquote(value[start.end() :].strip())


def _refuse_absolute(value: str) -> str | None:
    return None if os.path.isabs(value) else value


def _use_slashes(value: str) -> str:
    return value.replace("\\", "/")


def _to_relative(value: str) -> str | None:
    return _refuse_absolute(_use_slashes(value))


def _drop_folders(count: int) -> Rewrite:
    def rewrite(value: str) -> str | None:
        parts = _use_slashes(value).split("/")
        return "/".join(parts[count:]) if len(parts) > count else None

    return rewrite


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
