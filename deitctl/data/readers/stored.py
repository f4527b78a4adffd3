"""Data at an address in a store: shards or columnar files there, or what to do with something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import has_magic
from pathlib import Path

from deitctl.data.dataset import ImageDataset
from deitctl.data.file_types import get_extensions
from deitctl.data.readers.braces import BRACES, expand_braces
from deitctl.data.readers.columnar_files import ARROW, PARQUET, sort_columnar_files
from deitctl.data.readers.packed_shards import INDEX, INFO, open_packed
from deitctl.data.readers.parquet_table import open_columnar_files
from deitctl.data.readers.read_options import ReadOptions
from deitctl.data.readers.shard_names import find_shards
from deitctl.data.readers.tar import open_tars
from deitctl.data.shard_files import find_identities
from deitctl.data.stores.address import (
    get_folder,
    get_name,
    get_suffix,
    hide_secrets,
    is_web,
    redact,
    require_no_pattern,
    reveal,
)
from deitctl.data.stores.listing import list_addresses
from deitctl.errors import DataError
from deitctl.events import Reporter

COLUMNAR = (PARQUET, ".pq", ARROW)
SHARDS = "Shards are read where they are: FOLDER of tars, or FOLDER/x-{000000..000146}.tar."


def open_address(
    ref: str, reporter: Reporter, options: ReadOptions
) -> tuple[str, Mapping[str, ImageDataset]]:
    """Return the name of the data at an address, without secrets, and its images by split.

    Raises:
        DataError: nothing is there, it is not read from a store, or the store does not answer.
    """
    name = hide_secrets(ref)
    address = reveal(name)
    require_no_pattern(address)
    if redact(name).lower().endswith(COLUMNAR):
        return name, _open_columnar(name, _list_files(address), reporter, options)
    is_beside = get_name(name) in (INDEX, INFO)  # what stands for the data of its folder
    if is_beside or not get_suffix(redact(name)):
        with suppress(OSError):  # there is no index, or the store does not say so
            return name, open_packed(get_folder(address) if is_beside else address)
    try:
        shards = find_shards(address)
    except FileNotFoundError as error:
        if files := _list_columnar(address):
            return name, _open_columnar(name, files, reporter, options)
        raise _explain(address, name, error) from error
    if shards is None:
        raise _refuse(name)
    return name, open_tars(shards, reporter)


def _refuse(name: str) -> DataError:
    """Return the error for an address of something that is read from no store."""
    if is_web(name) and not get_suffix(redact(name)):
        folder = redact(name).rstrip("/")
        return DataError(
            f"{name} has no {INDEX} or {INFO}, and a web server lists no files.",
            f"Name them by braces: {folder}/x-{{000000..000146}}.tar, or "
            f"{folder}/train-{{00000..00003}}-of-00004.parquet; or by a text file that lists tars.",
        )
    return DataError(f"{name} is not read from a store.", f"Copy it to a disk. {SHARDS}")


def _list_files(address: str) -> list[str]:
    """Return the addresses that one in braces, or a pattern, means."""
    if BRACES.search(address):
        return expand_braces(address)
    if is_web(address) or not has_magic(address):
        return [address]
    try:
        return [file.address for file in list_addresses(address)]
    except FileNotFoundError as error:
        raise DataError(f"Nothing matches {redact(address)}.") from error


def _list_columnar(folder: str) -> list[str]:
    try:
        if is_web(folder):
            return []
        return [file.address for file in list_addresses(folder, COLUMNAR)]
    except FileNotFoundError:
        return []


def _open_columnar(
    name: str, files: Sequence[str], reporter: Reporter, options: ReadOptions
) -> Mapping[str, ImageDataset]:
    """Open Parquet or Arrow files in a store: their footers, labels and names are read, no images."""
    addresses: dict[Path, list[str]] = {}
    for file in files:  # what follows the path of a URL may tell files apart
        addresses.setdefault(Path(redact(file)), []).append(file)
    parts = sort_columnar_files(name, list(addresses))
    try:
        return open_columnar_files(name, parts, reporter, options, addresses)
    except DataError:
        find_identities(files, redact(name))  # says how many of them are missing
        raise


def _explain(address: str, name: str, error: FileNotFoundError) -> DataError:
    """Return the error for a folder without tars, by what else is in it."""
    try:
        files = [] if is_web(address) else list_addresses(address)
    except FileNotFoundError as nothing:
        files, error = [], nothing
    if not files and "bucket" in str(error).lower().replace(address.lower(), ""):
        bucket = name.split("/")[2]
        return DataError(
            f"There is no bucket {bucket!r} for {name}.",
            "See whether it is spelled as it is meant, and of the account that is meant.",
        )
    if not files:
        return DataError(
            f"There is nothing at {name}.", "See whether it is spelled as it is meant."
        )
    num_images = sum(file.address.lower().endswith(tuple(get_extensions())) for file in files)
    return DataError(
        f"{name} has no tars, but {num_images:,} images among {len(files):,} files: single files are not "
        "read from a store, a request each.",
        "Copy the folder to a disk, `deitctl pack` it into shards, and store those.",
    )
