"""How shards are named: braces, patterns, lists of tars, folders of tars; and which split each is of."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from deitctl.data.layout import is_junk, match_split, match_splits, name_some
from deitctl.data.readers.beside_shards import INFO_FILES, read_classes, read_info, read_small
from deitctl.data.readers.braces import BRACES, expand_braces
from deitctl.data.stores.address import (
    get_folder,
    get_name,
    get_suffix,
    is_remote,
    is_web,
    join_address,
    redact,
    reveal,
    spell_scheme,
)
from deitctl.data.stores.listing import list_addresses
from deitctl.data.stores.stores import StoredPath
from deitctl.data.trees import FolderTree, has_images, is_folder
from deitctl.errors import DataError
from deitctl.home import expand_home
from deitctl.names import canonicalize_name
from deitctl.paths import shorten

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LISTS = (".txt", ".list", ".lst")
NUMBER = re.compile(r"[-_.]?\d+$")
"""At the end of a shard's name."""


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
        return tuple(
            map(canonicalize_name, _list_info_classes(self.info, self.name) or self.class_names)
        )

    def list_lengths(self) -> dict[str, int]:
        """Return the number of samples of each shard that `_info.json` has one for, by its name."""
        lengths = dict[str, int]()
        for split in self.info.get("splits", {}).values():
            names, numbers = _list_files(split), split.get("shard_lengths")
            if isinstance(numbers, list) and len(names) == len(numbers):
                lengths |= zip(names, numbers, strict=True)
        return lengths


def _list_info_classes(info: Mapping[str, Any], data: str) -> Sequence[str]:
    """Return the names of classes in `_info.json`: a list, or an object by number; empty for none.

    Raises:
        DataError: they are something else.
    """
    names = info.get("class_names") or []
    if isinstance(names, dict) and set(names) == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{data}: class_names in {INFO_FILES[0]} is no list of names.",
            'Write ["rose", "tulip"] there, in the order of the labels.',
        )
    return names


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
        return _find_remote(reveal(spell_scheme(ref)))
    path = expand_home(ref)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file() and path.suffix.lower() == TAR:
        return ShardSet(
            str(path), {"": (str(path),)}, read_info(path.parent), read_classes(path.parent)
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
        return _make_complete_set(name, shards, path.parent)
    return None


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
            if not _is_tar(first):
                return None
            file.seek(0)
            shards = _place_lines(file, lambda name: str(path.parent / expand_home(name)))
    except (OSError, ValueError):
        return None
    _require_all([shard for shard in shards if not is_remote(shard)], f"of {path}")
    return _make_set(str(path), shards, path.parent)


def _is_tar(line: str) -> bool:
    return redact(line).lower().endswith((TAR, *COMPRESSED))


def _place_lines(lines: Iterable[str], place: Callable[[str], str]) -> list[str]:
    """Return the tars that lines name, each in its place."""
    shards = list[str]()
    for name in (line.strip() for line in lines):
        if not name or name.startswith("#"):
            continue
        if name.startswith("pipe:"):
            find_shards(name)  # refuses it
        placed = spell_scheme(name) if is_remote(name) else place(name)
        shards += expand_braces(placed) if BRACES.search(name) else [placed]
    return shards


def _find_in_folder(folder: Path) -> ShardSet | None:
    """Return the tars in a folder, or in its `train/`, `val/` and `test/`; None if it has none, or has images."""
    tars = _list_tars(folder)
    inside = {
        entry.name: _list_tars(Path(entry))
        for entry in sorted(_scan(folder), key=lambda entry: entry.name)
        if is_folder(entry) and match_split(entry.name)
    }
    inside = {name: shards for name, shards in inside.items() if shards}
    if not tars and not inside:
        return None
    tree = FolderTree(folder)
    with_images = [name for name in tree.list("").folders if has_images(tree, name)]
    only_tars = sorted(inside.keys() - set(with_images))
    if (with_images and only_tars) or (tars and inside and not with_images):
        others = [f"{name}/" for name in with_images] or [os.path.basename(tars[0])]
        raise DataError(
            f"{folder} has shards in {only_tars[0]}/, and other images in {name_some(others)}.",
            "Name the shards of all splits by braces, or lay all splits out in one way.",
        )
    if with_images:
        _require_train_folder(folder, tars, with_images)
        return None
    if tars:
        return _make_complete_set(str(folder), tars, folder)
    parts = {str(match_split(name)): tuple(shards) for name, shards in inside.items()}
    if len(parts) < len(inside):
        raise DataError(
            f"{folder} has two folders of shards for one split: {name_some(inside)}.",
            "Rename one, or name the shards of one as DATA.",
        )
    _require_tars(parts)
    info = read_info(folder)
    _require_listed([shard for part in parts.values() for shard in part], info, str(folder))
    return ShardSet(str(folder), _order(parts), info, read_classes(folder))


def _require_train_folder(folder: Path, tars: Sequence[str], with_images: Sequence[str]) -> None:
    """Raise `DataError` if images to train on are in tars, and those of other splits in folders."""
    # Others may be archives that were unpacked, as an ImageNet's, or that nobody needs.
    of_folders = {match_split(name) for name in with_images}
    stem_of = {NUMBER.sub("", get_name(tar).removesuffix(TAR)): get_name(tar) for tar in tars}
    splits = match_splits(stem_of)
    first = next((name for stem, name in stem_of.items() if splits.get(stem) == "train"), "")
    if first and "train" not in of_folders and of_folders & {"val", "test"}:
        raise DataError(
            f"{folder} has shards of its train split ({first}) beside folders of images: "
            f"{name_some(with_images)}.",
            "Name the shards of all splits by braces, or lay all splits out in one way.",
        )


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
    if name.endswith(LISTS) and not is_pattern:
        return _read_remote_list(ref)
    if is_web(ref) or name in INFO_FILES:
        return _find_by_info(ref, get_folder(ref) if name in INFO_FILES else ref)
    if get_suffix(ref) and not is_pattern:
        return None
    files: list[StoredPath] = list_addresses(ref, (TAR, *COMPRESSED))
    folder = get_folder(files[0].address) if is_pattern else ref.rstrip("/")
    return _make_complete_set(ref, [file.address for file in files], folder)


def _read_remote_list(ref: str) -> ShardSet | None:
    """Return the tars that a text in a store lists, those without an address beside it; None for other text."""
    folder = get_folder(ref)
    text = (read_small(ref, ref) or b"").decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not _is_tar(next((line for line in lines if line[0] != "#"), "")):
        return None
    return _make_set(ref, _place_lines(lines, lambda name: join_address(folder, name)), folder)


def _find_by_info(ref: str, folder: str) -> ShardSet | None:
    """Return the tars beside `_info.json` in a folder, by what that lists; None where it lists none."""
    info = read_info(folder, ref)
    names = (name for split in info.get("splits", {}).values() for name in _list_files(split))
    shards = [join_address(folder, name) for name in names]
    return _make_set(ref, shards, folder) if shards and all(map(_is_tar, shards)) else None


def _make_complete_set(name: str, shards: Sequence[str], folder: Path | str) -> ShardSet:
    """Return the shards in a folder by split; raise `DataError` if it lacks some that `_info.json` names."""
    shard_set = _make_set(name, shards, folder)
    _require_listed(shards, shard_set.info, name)
    return shard_set


def _make_set(name: str, shards: Sequence[str], folder: Path | str) -> ShardSet:
    """Return shards by split: as `_info.json` says, else by their names."""
    if len(set(shards)) < len(shards):
        twice = next(shard for at, shard in enumerate(shards) if shard in shards[:at])
        raise DataError(f"{name} names {get_name(twice)} twice.", "Name each shard once.")
    name = redact(name)
    info = read_info(folder, name)
    parts = _split_by_info(shards, info) or _split_by_names(shards, name)
    _require_tars(parts)
    return ShardSet(name, _order(parts), info, read_classes(folder, name))


def _order(parts: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(parts[split]) for split in ("train", "val", "test", "") if split in parts}


def _require_tars(parts: Mapping[str, Sequence[str]]) -> None:
    for shard in (shard for part in parts.values() for shard in part):
        if shard.lower().endswith(COMPRESSED):
            raise DataError(
                f"{shard} is compressed, and its images cannot be read in place.",
                "Decompress the shards: gunzip *.tar.gz, or the like.",
            )


def _list_files(split: Mapping[str, Any]) -> list[str]:
    """Return the names of the shards of a split of `_info.json`."""
    files = split.get("filenames")
    return [get_name(str(file)) for file in files] if isinstance(files, list) else []


def _require_listed(shards: Sequence[str], info: Mapping[str, Any], name: str) -> None:
    """Raise `DataError` if a folder or pattern lacks shards of a split that `_info.json` names."""
    pattern, present = get_name(name), set(map(get_name, shards))
    for split in info.get("splits", {}).values():
        files = _list_files(split)
        if glob.has_magic(pattern):
            files = [file for file in files if fnmatch(file, pattern)]
        missing = [file for file in files if file not in present]
        if missing and len(missing) < len(files):
            raise DataError(
                f"{len(missing):,} of the {len(files):,} shards that {INFO_FILES[0]} beside {name} "
                f"names are missing: {name_some(missing)}.",
                "Download them, or name those that are there by braces: 'train-{0000..0009}.tar'.",
            )


def _split_by_info(shards: Sequence[str], info: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return shards by the splits of `_info.json`; empty if it does not name them all."""
    split_of = dict[str, str]()
    for split, content in info.get("splits", {}).items():
        split_of |= dict.fromkeys(_list_files(content), match_split(str(split)) or "")
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
