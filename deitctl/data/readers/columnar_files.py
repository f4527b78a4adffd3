"""Which Parquet or Arrow files of a folder are a data set, and which part of it each is, by their names.

The hub has `data/train-00000-of-00002.parquet`, with a hash behind it in older data sets, or
`default/train/0000.parquet`, and one folder for each configuration of a data set. `datasets` saves
`train/data-00000-of-00002.arrow`, and names the files in `train/state.json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from deitctl.data.layout import is_junk, match_split, match_splits
from deitctl.data.trees import is_image_file
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.paths import read_json

PARQUET, ARROW = ".parquet", ".arrow"
STATE = "state.json"
"""In a folder of Arrow files: which of them are the data; others are caches."""
SHARD = re.compile(r"[-_.]?(\d+)-of-(\d+)(-[0-9a-f]+)?$")
"""The end of a name: which of how many files it is, and a hash."""
NUMBER = re.compile(r"[-_.]?\d+(-[0-9a-f-]{36}\S*)?$")
"""The end of a name that is numbered alone, as Spark and Dask write it."""
MAX_DEPTH = 4
"""Folders below which a data set's files are not looked for."""


def find_columnar_files(folder: Path) -> dict[str, list[Path]]:
    """Return the columnar files of a folder by part of the data; empty for none, or beside class folders.

    The part is what the name begins with, or that of the file's folder.

    Raises:
        DataError: files are of several configurations, kinds or data sets, or only some are named as parts.
    """
    return sort_columnar_files(str(folder), _list_files(folder))


def sort_columnar_files(folder: str, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return files by part of the data, see `find_columnar_files`; those without a part under "".

    Args:
        folder: for messages.
        files: below it.
    """
    kind = "Arrow" if files and files[0].suffix.lower() == ARROW else "Parquet"
    if other := next(
        (file for file in files if file.suffix.lower() != files[0].suffix.lower()), None
    ):
        raise DataError(
            f"{folder} has Parquet and Arrow files: {files[0]} and {other}.",
            "Take one of their folders as DATA, or move the others away.",
        )
    configurations = {find_configuration(file) for file in files}
    if len(configurations) > 1:
        first, second, *_ = sorted(configurations)
        raise DataError(
            f"{folder} has {kind} files in {first} and in {second}, which may be different data.",
            f"Take one of them as DATA: {first}.",
        )
    named = match_splits({_reduce(file) for file in files})
    parts: dict[str, list[Path]] = {}
    words: dict[str, str] = {}
    for file in files:
        name = _reduce(file)
        part = named.get(name) or match_split(re.split(r"[\W_\d]", name, maxsplit=1)[0])
        if part is None and (part := match_split(file.parent.name)):
            name = file.parent.name
        parts.setdefault(part or "", []).append(file)
        if part and words.setdefault(part, name) != name:
            raise DataError(
                f"{folder} has {kind} files of {words[part]} and of {name}, which both mean {part}.",
                "Move one of them away, or rename the one that is something else.",
            )
    unnamed = parts.get("", [])
    if unnamed and len(parts) > 1:
        raise DataError(
            f"{folder} has {unnamed[0].name} beside files of splits.",
            f"Name its files after the splits, such as train-00000-of-00001{unnamed[0].suffix}, or move it away.",
        )
    if len({_reduce(file) for file in unnamed}) > 1:
        names = " and ".join(file.name for file in unnamed[:2])
        raise DataError(
            f"{folder} has {len(unnamed)} {kind} files, such as {names}, and their names do not say "
            "which part of the data they are.",
            "Name them train.parquet, validation.parquet and test.parquet, or take one as DATA: "
            f"{unnamed[0]}.",
        )
    return parts


def require_all_files(parts: Mapping[str, Sequence[Path]], reporter: Reporter) -> None:
    """Warn of parts whose names say that there are more files of them.

    Raises:
        DataError: files are the same one of a part, or of different numbers of files.
    """
    for part, files in parts.items():
        numbered = [(match, file) for file in files if (match := SHARD.search(file.stem))]
        seen: dict[int, Path] = {}
        total = int(numbered[0][0][2]) if numbered else 0
        if 0 < len(numbered) < len(files):
            _refuse_versions(numbered[0][1], next(f for f in files if not SHARD.search(f.stem)))
        for match, file in numbered:
            other = seen.setdefault(int(match[1]), file)
            if other != file or int(match[2]) != total:
                _refuse_versions(files[0] if other == file else other, file)
        if len(seen) < total:
            missing = min(set(range(total)) - set(seen))
            reporter.warn(
                f"{len(seen):,} of the {total:,} files of {part or 'the data'} are in "
                f"{files[0].parent}: the first that is missing is number {missing} ({missing:05}-of-"
                f"{total:05})."
            )


def _refuse_versions(one: Path, other: Path) -> NoReturn:
    raise DataError(
        f"{one} and {other} are of two versions of the same data.",
        "Move the files of the older one away.",
    )


def _list_files(folder: Path) -> list[Path]:
    """Return the columnar files below a folder; none if two of the folders in it have images."""
    files, num_with_images = list[Path](), 0
    for path, names, file_names in os.walk(folder, followlinks=True):
        depth = len(Path(path).relative_to(folder).parts)
        # In order, and no deeper: links may lead in a circle.
        names[:] = sorted(n for n in names if not is_junk(n)) if depth < MAX_DEPTH else []
        has_images, saved = False, _read_state(path) if STATE in file_names else None
        for name in sorted(n for n in file_names if not is_junk(n)):
            if name.lower().endswith((PARQUET, ARROW)):
                if saved is not None and name not in saved and name.lower().endswith(ARROW):
                    continue
                files.append(Path(path, name))
            elif depth and not has_images:
                has_images = is_image_file(os.path.join(path, name))
        num_with_images += has_images
        if num_with_images > 1:
            return []
    return sorted(files)


def _read_state(folder: str) -> set[str] | None:
    """Return the names of the files that a saved data set consists of; None if that is not known."""
    try:
        files = read_json(Path(folder, STATE))["_data_files"]
        return {str(file["filename"]) for file in files}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def find_configuration(file: Path) -> str:
    """Return the folder of a file, or the one around it if that is called as a part."""
    return str(file.parent.parent if match_split(file.parent.name) else file.parent)


def _reduce(file: Path) -> str:
    """Return a file's name without its number, empty if it is a number alone."""
    name = SHARD.sub("", file.stem)
    return name if name != file.stem else NUMBER.sub("", name)
