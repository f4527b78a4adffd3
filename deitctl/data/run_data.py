"""What a run folder says about its data: which data it was, and which images were for what.

`split.csv` has a row `path,label,split,part,bytes,digest` for every image: its path below its part
of the data, its class, `train` or `val`, that part (`all` if the run has split the data, `extra` of
another source), and by what the image is recognized wherever the data lies. Names alone would not
do: cameras and tools number images from one in every folder. Of several labels an image the second
column is `labels`, of JSON lists.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import name_labels
from deitctl.data.splits import ALL, list_relative_paths
from deitctl.data.subsets import select_own
from deitctl.errors import DataError
from deitctl.paths import open_regular, write_bytes
from deitctl.settings import read_toml
from deitctl.threads import map_patiently

SPLIT_FILE = "split.csv"
EXTRA = "extra"
"""Part of the rows of training images of other sources."""
COLUMNS = ["path", "label", "split", "part", "bytes", "digest"]
SEVERAL_COLUMNS = [COLUMNS[0], "labels", *COLUMNS[2:]]
"""Where an image has several labels."""
MAX_ROWS = 200_000
"""Images of data with validation images of its own that are listed: a few seconds, and 20 MB."""
MAX_BYTES = 1 << 32
"""Of a split.csv, which has some hundred bytes an image."""
MAX_DIGESTS = 50_000
MAX_DIGEST_BYTES = 4 * 2**30
"""Data of more images or bytes has no digests: its images would be read at the start."""


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split.csv, in order: first the training images, then the validation images."""

    paths: Sequence[str]
    """Below the data, or its part, see `splits.list_relative_paths`."""
    labels: Sequence[tuple[str, ...]]
    """Class names: one, or of several labels an image none, one or more."""
    splits: Sequence[str]
    """`train` or `val`."""
    parts: Sequence[str]
    """The part of the data that the path is below: `all`, `train` or `val`; `extra`: of another source."""
    num_bytes: Sequence[int]
    digests: Sequence[int]
    """See `ImageDataset.digest`; 0 where there is none."""

    def take(self, *, extra: bool) -> SplitRows:
        """Return the rows of images of other sources, or those of the data itself."""
        numbers = [n for n, part in enumerate(self.parts) if (part == EXTRA) == extra]
        if len(numbers) == len(self.parts):
            return self
        return SplitRows(*([getattr(self, f.name)[n] for n in numbers] for f in fields(self)))

    @property
    def is_held_out(self) -> bool:
        """Whether the run has split the data, which had no validation images."""
        return ALL in self.parts[-1:]


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    folder: Path
    """Of the run."""
    ref: str
    """The data, as the run names it."""
    split_seed: int
    rows: SplitRows | None
    """None if the file is not there: the data has more images than are listed."""
    image_folder: str = ""
    """That the paths of a table are below; empty: where the table leads."""
    task: str = "classification"
    """Whether its images have one label or several, a name of `TASKS`; an older run has one."""
    uses_part: bool = False
    """Whether it uses a share of its training images: the others are not listed."""
    is_fold: bool = False
    """Whether it holds out a fold of the training images, whatever other images the data has."""


def read_run_data(folder: Path) -> RunData | None:
    """Return what a run folder says about its data; None if it is no run.

    Raises:
        ConfigError: run.toml is broken.
        DataError: split.csv is.
    """
    config_file = folder / "run.toml"
    if not config_file.is_file():
        return None
    config = read_toml(config_file)
    split_seed = config.get("split_seed", 0)
    return RunData(
        folder,
        str(config.get("data", "")),
        split_seed if isinstance(split_seed, int) else 0,
        _read_rows(folder / SPLIT_FILE),
        str(config.get("image_folder", "")),
        task=str(config.get("task", "classification")),
        uses_part=config.get("fraction", 1) != 1,
        is_fold=bool(config.get("fold", 0)),
    )


def write_split(folder: Path, train: ImageDataset, val: ImageDataset) -> None:
    """Write split.csv; raise `DiskError` if that fails.

    Not for more than `MAX_ROWS` images that the data itself has split. Images of other sources are listed
    where they leave their digests to the data's own.
    """
    count = len(train.labels) + len(val.labels)
    if count > MAX_DIGESTS and train.is_extra is not None:
        train = select_own(train)
        count = len(train.labels) + len(val.labels)
    if count > MAX_ROWS and not val.is_held_out:
        (folder / SPLIT_FILE).unlink(missing_ok=True)  # of a run that was killed at its start
        return
    sizes = [part.read_sizes().tolist() for part in (train, val)]
    has_digests = count <= MAX_DIGESTS and sum(map(sum, sizes)) <= MAX_DIGEST_BYTES
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    is_multilabel = train.is_multilabel
    rows.writerow(SEVERAL_COLUMNS if is_multilabel else COLUMNS)
    for split, dataset, bytes_ in zip(("train", "val"), (train, val), sizes, strict=True):
        labels = (
            json.dumps(names, ensure_ascii=False) if is_multilabel else names[0]
            for names in name_labels(dataset)
        )
        part, is_extra = ALL if val.is_held_out else split, dataset.is_extra
        part_of = [part] * len(bytes_) if is_extra is None else np.where(is_extra, EXTRA, part)
        digests = (
            map_patiently(dataset.digest, range(len(bytes_)), num_threads=count_cores())
            if has_digests
            else [0] * len(bytes_)
        )
        for path, label, its_part, size, digest in zip(
            list_relative_paths(dataset), labels, part_of, bytes_, digests, strict=True
        ):
            rows.writerow((path, label, split, its_part, size, f"{digest:x}"))
    write_bytes(folder / SPLIT_FILE, text.getvalue().encode("utf-8", "surrogateescape"))


def _read_rows(file: Path) -> SplitRows | None:
    try:
        with (
            open_regular(file, MAX_BYTES) as binary,
            io.TextIOWrapper(binary, "utf-8", "surrogateescape", newline="") as text,
        ):
            table = csv.reader(text)
            header = next(table, [])
            is_multilabel = header == SEVERAL_COLUMNS
            if not is_multilabel and header != COLUMNS:
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            rows = list(table)
        if not all(map(_is_row, rows)):
            raise ValueError(f"a row is not {','.join(COLUMNS)}")
        paths, labels, splits, parts, sizes, digests = (
            [row[column] for row in rows] for column in range(len(COLUMNS))
        )
        return SplitRows(
            paths,
            list(map(_read_names, labels)) if is_multilabel else [(label,) for label in labels],
            splits,
            parts,
            [int(n) for n in sizes],
            [int(d, 16) for d in digests],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Restore it, or start a new run.",
        ) from error


def _read_names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{text!r:.80} is no list of names")
    return tuple(names)


def _is_row(row: Sequence[str]) -> bool:
    return (
        len(row) == len(COLUMNS)
        and row[2] in ("train", "val")
        and row[3] in (ALL, EXTRA, "train", "val")
    )
