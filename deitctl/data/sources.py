"""Which reader opens a reference: a folder, tar, shards, table or the built-in digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deitctl.data.archives import find_old_pack, make_pack_refusal, make_refusal
from deitctl.data.dataset import ImageDataset
from deitctl.data.layout import match_split, name_some
from deitctl.data.named.names import NAMED, is_named, spell, suggest_names
from deitctl.data.named.open_named import open_named
from deitctl.data.readers.columnar_files import find_columnar_files
from deitctl.data.readers.digits import load_digits
from deitctl.data.readers.folder import open_folders
from deitctl.data.readers.hub import open_hub
from deitctl.data.readers.hub_address import HUB, is_hub
from deitctl.data.readers.mistyped import is_like_address, refuse_mistyped, suggest_repository
from deitctl.data.readers.packed_shards import is_packed, open_packed
from deitctl.data.readers.parquet_table import open_columnar_files, refuse_image_folder
from deitctl.data.readers.read_options import ReadOptions
from deitctl.data.readers.shard_names import find_shards
from deitctl.data.readers.stored import open_address
from deitctl.data.readers.table import is_table, open_table
from deitctl.data.readers.tar import open_tars
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.data.stores.address import is_remote, spell_scheme
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.paths import shorten, suggest_path

BUILT_IN = "digits"
KINDS = (
    "DATA is a folder, a .tar, shards ('x-{000..146}.tar'), a table (.csv, .tsv, .txt, .jsonl, .parquet), "
    f"an address (s3://, gs://, https://, {HUB}OWNER/NAME), or the name of a data set: "
    f"digits, {', '.join(data.name for data in NAMED)}, torchvision:CLASS."
)


def open_splits(
    ref: str, reporter: Reporter, options: ReadOptions
) -> tuple[str, Mapping[str, ImageDataset]]:
    """Return the name of a dataset and its images by split, read by the reader of what it is.

    Raises:
        DataError: nothing is there, or nothing reads it.
    """
    if ref.startswith(PREFIX):
        raise DataError(
            f"The data of this run is {ref.removeprefix(PREFIX)}, a data set of a program's.",
            "That program passes it again: deitctl.train(data, resume=RUN).",
        )
    ref = spell_scheme(ref)
    refuse_mistyped(ref)
    if is_hub(ref):
        return open_hub(
            ref, reporter, options, lambda path: open_splits(str(path), reporter, options)[1]
        )
    if is_remote(ref):
        return open_address(ref, reporter, options)
    path = expand_home(ref)
    if not is_packed(path) and (shards := find_shards(ref)):
        return shards.name, open_tars(shards, reporter)
    if options.image_folder and not is_table(path):
        refuse_image_folder(path)
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = load_digits()
        return BUILT_IN, {"train": train, "val": val}
    if is_named(ref):
        return spell(ref), open_named(
            ref, reporter, lambda address: open_splits(address, reporter, options)[1]
        )
    if not path.exists():
        name = shorten(path)
        hint = suggest_path(name, BUILT_IN) or suggest_names(name)
        hint = hint or ("" if is_table(path) else suggest_repository(name)) or KINDS
        raise DataError(f"There is no dataset {name!r}.", hint)
    if path.is_dir():
        return str(path), _open_folder(path, reporter, options)
    if not path.is_file():  # reading a pipe would block, reading a device never end
        raise DataError(
            f"{ref} is a pipe, a device or a socket, not a dataset.", "Write it to a file first."
        )
    if is_table(path):
        return str(path), open_table(path, reporter, options)
    raise make_refusal(path, KINDS)


def is_there(ref: str) -> bool:
    """Whether there is something where a reference leads, which may be no data."""
    if ref == BUILT_IN or is_named(ref) or is_remote(ref) or is_like_address(ref):
        return True  # opening an address says what is wrong with it
    try:
        return expand_home(ref).exists() or find_shards(ref) is not None
    except DataError:  # some of the shards are missing: opening them says which
        return True


def is_image_folder(path: Path) -> bool:
    """Whether a path is a folder that is read for image files, in class folders or not."""
    return path.is_dir() and not (
        is_packed(path) or find_columnar_files(path) or find_shards(str(path))
    )


def _open_folder(
    path: Path, reporter: Reporter, options: ReadOptions
) -> Mapping[str, ImageDataset]:
    """Open a folder of what `pack` wrote, of Parquet files, else of images."""
    if is_packed(path):
        return open_packed(path, reporter)
    if parts := find_columnar_files(path):
        return open_columnar_files(path, parts, reporter, options)
    try:
        return open_folders(path, reporter)
    except DataError as error:
        if old := find_old_pack(path):
            raise make_pack_refusal(old) from error
        tables = _find_tables(path)
        if not tables:
            raise
        one = len(tables) == 1
        raise DataError(
            error.message,
            f"If {name_some(str(table.relative_to(path)) for table in tables)} "
            f"{'says' if one else 'say'} which class each image has, DATA is {tables[0]}"
            f"{'' if one else ', or a table of all of them with a column split'}; --images FOLDER "
            "names the folder of its images where that is another.",
        ) from error


def _find_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder, and the hub's in its parts; that of training images first."""
    tables = [file for file in folder.glob("*.*") if file.is_file() and is_table(file)]
    # not the names of all files: those may be a million images
    parts = [part for part in folder.iterdir() if match_split(part.name)]
    hub = [part / f"metadata{suffix}" for part in parts for suffix in (".csv", ".jsonl")]
    tables += [file for file in hub if file.is_file()]
    order = {"train": 0, None: 1, "val": 2, "test": 3}

    def make_key(table: Path) -> tuple[bool, int, Path]:
        name = table.stem if table.parent == folder else table.parent.name
        return table.suffix.lower() == ".txt", order[match_split(name)], table

    return sorted(tables, key=make_key)
