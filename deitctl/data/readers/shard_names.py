"""How shards are named: braces, patterns, lists of tars, folders of tars; and which split each is of."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deitctl.data.layout import is_junk, match_split, match_splits, name_some
from deitctl.data.stores.address import get_folder, get_name, is_remote, is_web, join_address
from deitctl.data.stores.listing import describe_file, list_addresses
from deitctl.data.stores.stored_file import open_stored
from deitctl.data.stores.stores import StoredPath
from deitctl.data.trees import FolderTree, has_images, is_folder
from deitctl.errors import DataError
from deitctl.home import expand_home
from deitctl.names import canonicalize_name
from deitctl.paths import shorten

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LISTS = (".txt", ".list", ".lst")
MAX_SHARDS = 1_000_000
"""Of a reference in braces: a typing mistake may mean more."""
MAX_BRACES = 50
MAX_INFO_BYTES = 64 * 2**20
INFO_FILES = ("_info.json", "info.json")
"""Of timm's shards: splits, numbers of samples, names of classes."""
CLASS_FILES = ("classes.txt", "classnames.txt", "class_names.txt")
"""Beside shards: the name of each class in a line."""
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBER = re.compile(r"[-_.]?\d+$")
"""At the end of a shard's name."""
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")


@dataclass(frozen=True)
class ShardSet:
    """The tars of a data set, by split, and what lies beside them."""

    name: str
    """Of the data, as the user names it."""
    parts: Mapping[str, tuple[str, ...]]
    """Paths or addresses of the tars of each split; those of unsplit data under ""."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Content of timm's `_info.json`; empty where there is none."""
    class_names: tuple[str, ...] = ()
    """Of a list of classes beside the shards."""

    def list_shards(self) -> list[str]:
        """Return the tars of all splits, one after the other."""
        return [shard for part in self.parts.values() for shard in part]

    def list_class_names(self) -> tuple[str, ...]:
        """Return the names of the classes by number, empty if nothing beside the shards has them."""
        names = self.info.get("class_names")
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(map(canonicalize_name, names))
        return tuple(map(canonicalize_name, self.class_names))

    def list_lengths(self) -> dict[str, int]:
        """Return the number of samples of each shard that `_info.json` has one for, by its name."""
        lengths = dict[str, int]()
        for split in self.info.get("splits", {}).values():
            names, numbers = split.get("filenames"), split.get("shard_lengths")
            if isinstance(names, list) and isinstance(numbers, list) and len(names) == len(numbers):
                lengths |= zip(map(get_name, map(str, names)), numbers, strict=True)
        return lengths


def find_shards(ref: str) -> ShardSet | None:
    """Return the tars that a reference means, None if it means something else.

    Args:
        ref: the user's: `x-{000000..000146}.tar`, `x-*.tar`, a folder of tars, a `.txt` that lists tars, or
            their addresses in a store.

    Raises:
        DataError: tars are missing, are compressed, or come from a program.
    """
    # a run's data are named by an absolute path
    if "pipe:" in ref and re.search(r"(^|/)pipe:", ref) and not os.path.exists(ref):
        raise DataError(
            f"{ref[ref.index('pipe:') :]:.80} would run a program, which deitctl does not.",
            "Name the shards by their address: s3://..., gs://..., https://..., or a path.",
        )
    if is_remote(ref):
        return _find_remote(ref)
    path = expand_home(ref)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file() and path.suffix.lower() == TAR:
        return ShardSet(
            str(path), {"": (str(path),)}, _read_info(path.parent), _read_classes(path.parent)
        )
    if path.exists():
        return _read_list(path) if path.suffix.lower() in LISTS else None
    name = shorten(path)
    if "{" in ref and BRACES.search(ref) and ref.endswith(("}", TAR, *COMPRESSED)):
        return _make_set(name, _require_all(expand_braces(str(path)), name), path.parent)
    if glob.has_magic(ref) and ref.endswith((TAR, *COMPRESSED)):
        shards = sorted(glob.glob(str(path), recursive=True))
        if not shards:
            raise DataError(f"No file matches {name!r}.", "Is the folder right?")
        return _make_set(name, shards, path.parent)
    return None


def expand_braces(pattern: str) -> list[str]:
    """Return the names that braces mean, as in bash: `{000..146}`, `{a,b}`, several, one in another.

    Raises:
        DataError: they mean more than `MAX_SHARDS`, or nothing.
    """
    if pattern.count("{") > MAX_BRACES:
        raise _refuse_braces(pattern)
    return _expand(pattern, pattern)


def _expand(text: str, pattern: str) -> list[str]:
    """Return the names that a part of a pattern means."""
    start = text.find("{")
    end = _find_end(text, start)
    if start < 0 or end < 0:
        return [text]
    values = _list_values(text[start + 1 : end], pattern)
    tails = _expand(text[end + 1 :], pattern)
    if len(values) * len(tails) > MAX_SHARDS:
        raise _refuse_braces(pattern)
    return [text[:start] + value + tail for value in values for tail in tails]


def _find_end(text: str, start: int) -> int:
    """Return where the brace that opens at `start` closes, -1 if it does not."""
    depth = 0
    for at in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return at
    return -1


def _list_values(text: str, pattern: str) -> list[str]:
    """Return what the inside of braces means: numbers, or what stands between commas."""
    span = RANGE.fullmatch(text)
    if span is None:
        alternatives = _split_commas(text)
        if len(alternatives) < 2:
            raise DataError(
                f"{pattern!r:.200} has {{{text:.40}}}, which means no numbers.",
                "Shards are named as in a shell: x-{000000..000146}.tar or x-{a,b}.tar.",
            )
        return [value for part in alternatives for value in _expand(part, pattern)]
    first, last, step = int(span[1]), int(span[2]), abs(int(span[3] or 1)) or 1
    if abs(last - first) // step >= MAX_SHARDS:
        raise _refuse_braces(pattern)
    is_padded = any(re.match(r"-?0\d", end) for end in (span[1], span[2]))
    width = max(len(span[1]), len(span[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if last >= first else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _split_commas(text: str) -> list[str]:
    """Return what stands between commas that are in no inner braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _refuse_braces(pattern: str) -> DataError:
    return DataError(f"{pattern!r:.200} means more than {MAX_SHARDS:,} shards.", "Name fewer.")


def _require_all(shards: Sequence[str], name: str) -> Sequence[str]:
    """Raise `DataError` if some of the shards that braces mean are missing."""
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(shards):,} shards {name} are missing: "
            f"{name_some(map(os.path.basename, missing))}.",
            "Download them, or name those that are there.",
        )
    return shards


def _read_list(path: Path) -> ShardSet | None:
    """Return the tars of a file that lists one a line, None for one that lists something else."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line.strip() for line in file if line.strip() and line[0] != "#"), "")
            if not first.lower().endswith((TAR, *COMPRESSED)):
                return None
            file.seek(0)
            lines = [line.strip() for line in file]
    except (OSError, ValueError):
        return None
    names = [line for line in lines if line and not line.startswith("#")]
    shards = list[str]()
    for name in names:
        if name.startswith("pipe:"):
            find_shards(name)  # refuses it
        place = name if is_remote(name) else str(path.parent / expand_home(name))
        shards += expand_braces(place) if BRACES.search(name) else [place]
    _require_all([shard for shard in shards if not is_remote(shard)], f"of {path}")
    return _make_set(str(path), shards, path.parent)


def _find_in_folder(folder: Path) -> ShardSet | None:
    """Return the tars in a folder, or in its `train/`, `val/` and `test/`; None if it has none, or has images."""
    tars = _list_tars(folder)
    inside = {
        entry.name: _list_tars(Path(entry))
        for entry in (() if tars else sorted(_scan(folder), key=lambda entry: entry.name))
        if is_folder(entry) and match_split(entry.name)
    }
    inside = {name: shards for name, shards in inside.items() if shards}
    if not tars and not inside:
        return None
    tree = FolderTree(folder)
    if any(has_images(tree, name) for name in tree.list("").folders):
        return None
    if tars:
        return _make_set(str(folder), tars, folder)
    parts = {str(match_split(name)): tuple(shards) for name, shards in inside.items()}
    if len(parts) < len(inside):
        raise DataError(
            f"{folder} has two folders of shards for one split: {name_some(inside)}.",
            "Rename one, or name the shards of one as DATA.",
        )
    _require_tars(parts)
    return ShardSet(str(folder), _order(parts), _read_info(folder), _read_classes(folder))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_junk(entry.name)]
    except OSError:
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _list_tars(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in _scan(folder) if _is_file(entry))
    return [str(folder / name) for name in names if name.lower().endswith((TAR, *COMPRESSED))]


def _find_remote(ref: str) -> ShardSet | None:
    """Return the tars at an address, in braces, a pattern or a folder; None for another file."""
    if BRACES.search(ref):
        shards = expand_braces(ref)
        return _make_set(ref, shards, get_folder(shards[0]))
    name = get_name(ref).lower()
    is_pattern = not is_web(ref) and glob.has_magic(ref)
    if name.endswith((TAR, *COMPRESSED)) and not is_pattern:
        return _make_set(ref, [ref], get_folder(ref))
    if is_web(ref) or (posixpath.splitext(name)[1] and not is_pattern):
        return None
    files: list[StoredPath] = list_addresses(ref, (TAR, *COMPRESSED))
    folder = get_folder(files[0].address) if is_pattern else ref.rstrip("/")
    return _make_set(ref, [file.address for file in files], folder)


def _make_set(name: str, shards: Sequence[str], folder: Path | str) -> ShardSet:
    """Return shards by split: as `_info.json` says, else by their names."""
    if len(set(shards)) < len(shards):
        twice = next(shard for at, shard in enumerate(shards) if shard in shards[:at])
        raise DataError(f"{name} names {get_name(twice)} twice.", "Name each shard once.")
    info = _read_info(folder, name)
    parts = _split_by_info(shards, info) or _split_by_names(shards, name)
    _require_tars(parts)
    return ShardSet(name, _order(parts), info, _read_classes(folder, name))


def _order(parts: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(parts[split]) for split in ("train", "val", "test", "") if split in parts}


def _require_tars(parts: Mapping[str, Sequence[str]]) -> None:
    for shard in (shard for part in parts.values() for shard in part):
        if shard.lower().endswith(COMPRESSED):
            raise DataError(
                f"{shard} is compressed, and its images cannot be read in place.",
                "Decompress the shards: gunzip *.tar.gz, or the like.",
            )


def _split_by_info(shards: Sequence[str], info: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return shards by the splits of `_info.json`; empty if it does not name them all."""
    split_of = dict[str, str]()
    for split, content in info.get("splits", {}).items():
        for file in content.get("filenames", ()):
            split_of[get_name(str(file))] = match_split(str(split)) or ""
    names = [get_name(shard) for shard in shards]
    if not names or not all(name in split_of for name in names):
        return {}
    parts = dict[str, list[str]]()
    for shard, name in zip(shards, names, strict=True):
        parts.setdefault(split_of[name], []).append(shard)
    return parts if "" not in parts or len(parts) == 1 else {}


def _split_by_names(shards: Sequence[str], name: str) -> dict[str, list[str]]:
    """Return shards by the splits in their names, `imagenet1k-train-0000.tar`, else in their folders'."""
    stems = [NUMBER.sub("", get_name(shard).removesuffix(TAR)) for shard in shards]
    folders = [get_name(posixpath.dirname(shard.replace(os.sep, "/"))) for shard in shards]
    for words in (stems, folders):
        splits = match_splits(dict.fromkeys(words))
        if not splits or (words is folders and len(set(words)) == 1):
            continue
        others = [
            get_name(shard) for shard, word in zip(shards, words, strict=True) if word not in splits
        ]
        if others:
            raise DataError(
                f"{name} has shards of a split by their names ({name_some(splits)}) and "
                f"{len(others):,} of none: {name_some(others)}.",
                "Name those that belong together, by braces or a pattern: 'train-*.tar'.",
            )
        parts = dict[str, list[str]]()
        for shard, word in zip(shards, words, strict=True):
            parts.setdefault(splits[word], []).append(shard)
        return parts
    return {"": list(shards)}


def _read_info(folder: Path | str, named: str = "") -> dict[str, Any]:
    """Return the content of `_info.json` beside shards; empty where there is none."""
    for name in INFO_FILES:
        data = _read_beside(folder, name, named)
        if data is None:
            continue
        try:
            info = json.loads(data)
            splits = info.get("splits", {})
            if all(isinstance(split, dict) for split in splits.values()):
                return dict(info)
        except (ValueError, AttributeError, RecursionError):
            continue  # another program's
    return {}


def _read_classes(folder: Path | str, named: str = "") -> tuple[str, ...]:
    for name in CLASS_FILES:
        data = _read_beside(folder, name, named)
        if data is not None:
            lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
            if all(lines) and lines:
                return tuple(lines)
    return ()


def _read_beside(folder: Path | str, name: str, named: str) -> bytes | None:
    """Return a small file beside shards that the user named, None where there is none."""
    place = str(folder)
    if not is_remote(place):
        path = Path(place) / name
        if not path.is_file() or path.stat().st_size > MAX_INFO_BYTES:
            return None
        return path.read_bytes()
    try:
        address = join_address(place, name)
        file = open_stored(address, describe_file(address, named).identity)
        return file.read(0, file.size) if file.size <= MAX_INFO_BYTES else None
    except (OSError, DataError):
        return None
