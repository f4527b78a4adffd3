"""Data sets on the hub, `hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION]`, by its client's own cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.data.dataset import ImageDataset
from deitctl.data.layout import name_some
from deitctl.data.named.names import find_named, is_named
from deitctl.data.readers.columnar_files import sort_columnar_files
from deitctl.data.readers.hub_address import HubAddress, is_hub, parse_address
from deitctl.data.readers.hub_client import MAIN, HubListing, download, list_hub_files, read_commit
from deitctl.data.readers.hub_files import (
    README,
    HubSelection,
    select_converted,
    select_files,
)
from deitctl.data.readers.parquet_table import open_columnar_files
from deitctl.data.readers.read_options import ReadOptions
from deitctl.data.stores.address import spell_scheme
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter

CONVERTED = "refs/convert/parquet"
"""The branch in which the hub has a data set as Parquet that is in another form."""
_opened: dict[str, str] = {}
"""What this process has opened by an address, with the commit."""
OpenFolder = Callable[[Path], Mapping[str, ImageDataset]]


def open_hub(
    ref: str, reporter: Reporter, options: ReadOptions, open_folder: OpenFolder
) -> tuple[str, Mapping[str, ImageDataset]]:
    """Download a data set of the hub, unless it is here, and open its parts.

    Args:
        ref: its address.
        reporter: receives what is downloaded.
        options: how it is read.
        open_folder: opens a folder of images or shards.

    Returns:
        The address with the commit, which names the same data for ever, and the images by part.

    Raises:
        DataError: it is not there, not open to this user, or of a form that is not read.
    """
    listing, selection = _select(parse_address(ref), reporter)
    if selection.left_out:
        reporter.note(
            f"{listing.address.short}: not read, because their names say no training, validation or test "
            f"part: {name_some(selection.left_out)}."
        )
    download(listing, selection.files, reporter)
    name = _opened[ref] = str(listing.address)
    if not selection.is_columnar:
        configuration = listing.address.configuration
        return name, open_folder(listing.folder / configuration)
    paths = [Path(file.path) for file in selection.files]
    parts = selection.parts or sort_columnar_files(listing.address.short, paths)
    placed = {part: [listing.folder / path for path in parts[part]] for part in parts}
    return name, open_columnar_files(listing.address.short, placed, reporter, options)


def pin_reference(ref: str) -> str:
    """Return the address with its commit of data that this process has opened; any other as it is."""
    return _opened.get(_find_address(ref), ref)


def is_pin_of(pinned: str, ref: str) -> bool:
    """Whether an address with a commit is of the data set that another names without one."""
    ref = _find_address(ref)
    if not (is_hub(pinned) and is_hub(ref)):
        return False
    one, other = parse_address(pinned), parse_address(ref)
    is_same = one.is_pinned and one.short == other.short
    return is_same and (other.revision in ("", MAIN) or read_commit(other) == one.revision)


def _find_address(ref: str) -> str:
    """Return the address on the hub of data that is named: `imagenet-1k`; of other references themselves."""
    data = find_named(ref) if is_named(ref) else None
    return spell_scheme((data.hub if data else "") or ref)


def _select(address: HubAddress, reporter: Reporter) -> tuple[HubListing, HubSelection]:
    """Return the files of a data set; of one in a form that is not read, the hub's own Parquet of it."""
    listing = list_hub_files(address, reporter)
    selection = select_files(listing, _read_metadata(listing))
    if selection is not None:
        return listing, selection
    kinds = {Path(file.path).suffix or file.path for file in listing.files}
    try:
        converted = list_hub_files(replace(address, revision=CONVERTED), reporter)
    except DataError as error:
        raise DataError(
            f"{address.short} has no Parquet, Arrow, image or tar files, but {name_some(sorted(kinds))}, "
            "and the hub has no Parquet of it.",
            "Download it, and unpack it into class folders.",
        ) from error
    return converted, select_converted(converted)


def _read_metadata(listing: HubListing) -> Mapping[str, Any]:
    """Return what the README of a repository begins with: its configurations and their files."""
    readme = next((file for file in listing.files if file.path == README), None)
    if readme is None:
        return {}
    download(listing, [readme], SilentReporter())
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(listing.folder / README)
    except (OSError, ValueError):  # YAML's errors are of neither kind in some versions
        return {}
    return metadata if isinstance(metadata, dict) else {}
