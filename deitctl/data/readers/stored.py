"""Data at an address in a store: shards there, or what to do with something else."""

from __future__ import annotations

from collections.abc import Mapping

from deitctl.data.dataset import ImageDataset
from deitctl.data.file_types import may_be_image
from deitctl.data.readers.shard_names import find_shards
from deitctl.data.readers.tar import open_tars
from deitctl.data.stores.address import get_name, hide_secrets, is_web, reveal
from deitctl.data.stores.listing import list_addresses
from deitctl.errors import DataError
from deitctl.events import Reporter

SHARDS = "Shards are read where they are: FOLDER of tars, or FOLDER/x-{000000..000146}.tar."


def open_address(ref: str, reporter: Reporter) -> tuple[str, Mapping[str, ImageDataset]]:
    """Return the name of the data at an address, without secrets, and its images by split.

    Raises:
        DataError: nothing is there, it is not read from a store, or the store does not answer.
    """
    name = hide_secrets(ref)
    try:
        shards = find_shards(reveal(ref))
    except FileNotFoundError as error:
        raise _explain(ref, name) from error
    if shards is None:
        raise DataError(f"{name} is not read from a store.", f"Copy it to a disk. {SHARDS}")
    return name, open_tars(shards, reporter)


def _explain(ref: str, name: str) -> DataError:
    """Return the error for a folder without tars, by what else is in it."""
    try:
        files = [] if is_web(ref) else list_addresses(ref)
    except FileNotFoundError:
        files = []
    if not files:
        return DataError(
            f"There is nothing at {name}.", "See whether it is spelled as it is meant."
        )
    num_images = sum(may_be_image(get_name(file.address)) for file in files)
    return DataError(
        f"{name} has no tars, but {num_images:,} images among {len(files):,} files: single files are not "
        "read from a store, a request each.",
        "Copy the folder to a disk, `deitctl pack` it into shards, and store those.",
    )
