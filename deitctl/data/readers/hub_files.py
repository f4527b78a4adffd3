"""Which files of a repository on the hub are its data, and which part of it each is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.data.file_types import get_extensions
from deitctl.data.layout import match_split, name_some
from deitctl.data.readers.columnar_files import ARROW, PARQUET, find_configuration
from deitctl.data.readers.hub_client import HubFile, HubListing
from deitctl.errors import DataError

README = "README.md"
TAR = ".tar"
TEXTS = (".csv", ".tsv", ".txt", ".json", ".jsonl")
"""Files beside images and shards that may say what their classes are."""
PARTIAL = "partial-"
"""What folders of the hub's own Parquet are called that hold the first 5 GB alone."""


@dataclass(frozen=True)
class HubSelection:
    """The files of a repository that are one configuration of its data."""

    files: tuple[HubFile, ...]
    parts: Mapping[str, Sequence[str]] | None = None
    """Paths of each part of the data; None: their names say it."""
    is_columnar: bool = True
    """Whether they are Parquet or Arrow files, not images or shards."""
    left_out: tuple[str, ...] = ()
    """Splits of the README that are none of the data's parts."""


def select_files(listing: HubListing, metadata: Mapping[str, Any]) -> HubSelection | None:
    """Choose the files of the configuration that an address names.

    Args:
        listing: of the repository.
        metadata: that its README begins with.

    Raises:
        DataError: there are several and none is named, or none is called so.

    Returns:
        None if no file is of a form that is read.
    """
    address = listing.address
    configurations = _read_configurations(metadata)
    if configurations:
        name = _choose(listing, list(configurations), _find_default(metadata))
        selection = _match_patterns(listing, configurations[name])
        if selection is not None:
            return selection
    for suffix in (PARQUET, ARROW):
        files = [file for file in listing.files if file.path.lower().endswith(suffix)]
        if files:
            named = {_name_configuration(file.path): file for file in files}
            name = _choose(listing, sorted(named), "") if len(named) > 1 else next(iter(named))
            if address.configuration not in ("", name):
                _refuse_name(listing, list(named))
            return HubSelection(
                tuple(file for file in files if _name_configuration(file.path) == name)
            )
    for suffixes in ((TAR,), tuple(get_extensions())):
        files = [file for file in listing.files if file.path.lower().endswith(suffixes)]
        if files:
            inside = f"{address.configuration}/" if address.configuration else ""
            texts = [file for file in listing.files if file.path.lower().endswith(TEXTS)]
            taken = [file for file in (*files, *texts) if file.path.startswith(inside)]
            if not any(file in files for file in taken):
                _refuse_name(listing, sorted({file.path.split("/")[0] for file in files}))
            return HubSelection(tuple(taken), is_columnar=False)
    return None


def select_converted(listing: HubListing) -> HubSelection:
    """Choose files of the Parquet that the hub has made of a repository, in its branch for that.

    Raises:
        DataError: see `select_files`; or the hub has converted the first 5 GB alone.
    """
    selection = select_files(listing, {})
    if selection is None:
        raise DataError(f"{listing.address} has no Parquet files.")
    if any(part.startswith(PARTIAL) for file in selection.files for part in file.path.split("/")):
        raise DataError(
            f"Of {listing.address.short} the hub has no more than the first 5 GB as Parquet, and its own "
            "files are of a form that is not read.",
            "Download it, and unpack it into class folders.",
        )
    return selection


def _read_configurations(metadata: Mapping[str, Any]) -> dict[str, list[tuple[str, list[str]]]]:
    """Return of each configuration the split and the patterns of its files."""
    configurations = {}
    for entry in _as_list(metadata.get("configs")):
        if not isinstance(entry, dict) or "data_files" not in entry:
            continue
        folder = str(entry.get("data_dir") or "").strip("/")
        splits = []
        for files in _as_list(entry["data_files"]):
            is_split = isinstance(files, dict)
            patterns = _as_list(files.get("path") if is_split else files)
            split = str(files.get("split", "")) if is_split else ""
            prefix = f"{folder}/" if folder else ""
            splits.append((split, [prefix + str(pattern) for pattern in patterns]))
        configurations[str(entry.get("config_name", "default"))] = splits
    return configurations


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _find_default(metadata: Mapping[str, Any]) -> str:
    """Return the configuration that is meant where none is named; empty for none."""
    entries = [entry for entry in _as_list(metadata.get("configs")) if isinstance(entry, dict)]
    names = [str(entry.get("config_name", "default")) for entry in entries if entry.get("default")]
    return names[0] if len(names) == 1 else ""


def _choose(listing: HubListing, names: Sequence[str], default: str) -> str:
    named = listing.address.configuration
    if named in names:
        return named
    if named:
        _refuse_name(listing, names)
    if len(names) == 1 or default:
        return default or names[0]
    raise DataError(
        f"{listing.address.short} has the configurations {name_some(names)}.",
        f"Name one: {listing.address.short}/{names[0]}",
    )


def _refuse_name(listing: HubListing, names: Sequence[str]) -> None:
    address = listing.address
    raise DataError(
        f"{address.short.rpartition('/')[0]} has no configuration {address.configuration!r}.",
        f"It has: {name_some(list(names))}.",
    )


def _name_configuration(path: str) -> str:
    """Return the configuration of a file by its folders: empty for the usual `data/`, and for none."""
    folder = find_configuration(Path(path)).removeprefix(".")
    return "" if folder in ("data", "default") else folder


def _match_patterns(
    listing: HubListing, splits: Sequence[tuple[str, list[str]]]
) -> HubSelection | None:
    """Return the columnar files that patterns name, by part of the data; None if they name others."""
    from fsspec.utils import glob_translate

    files_of: dict[str, list[HubFile]] = {}
    missing: list[str] = []
    for split, patterns in splits:
        matches = [re.compile(glob_translate(pattern)).match for pattern in patterns]
        files = [file for file in listing.files if any(match(file.path) for match in matches)]
        columnar = [file for file in files if file.path.lower().endswith((PARQUET, ARROW))]
        if files and not columnar:
            return None
        if files:
            files_of.setdefault(split, []).extend(columnar)
        else:
            missing.append(f"{' and '.join(patterns)} for the split {split!r}")
    if not files_of:
        return None
    if missing:
        raise DataError(
            f"The README of {listing.address.short} names {missing[0]}, and there is no such file.",
            "Download the repository, and take the files that are there.",
        )
    part_of = _sort_splits(listing, list(files_of))
    return HubSelection(
        tuple(dict.fromkeys(file for split in part_of for file in files_of[split])),
        {
            part: list(dict.fromkeys(file.path for file in files_of[split]))
            for split, part in part_of.items()
        },
        left_out=tuple(split or "files of no split" for split in files_of if split not in part_of),
    )


def _sort_splits(listing: HubListing, splits: Sequence[str]) -> dict[str, str]:
    """Return which part of the data each split is, without those that are none beside others that are.

    Raises:
        DataError: two are one part, or there are several and none is a part.
    """
    part_of: dict[str, str] = {}
    for split in splits:
        part = match_split(split)
        if part in part_of.values():
            first = next(name for name in part_of if part_of[name] == part)
            raise DataError(
                f"{listing.address.short} has the splits {first!r} and {split!r}, which both "
                f"mean {part}.",
                "Download it, and take the files of one.",
            )
        if part:
            part_of[split] = part
    if not part_of and len(splits) > 1:
        raise DataError(
            f"{listing.address.short} has the splits {name_some(splits)}, and none of them is called as "
            "the training, validation or test part.",
            "Download it, and take the files of one.",
        )
    return part_of or dict.fromkeys(splits, "")
