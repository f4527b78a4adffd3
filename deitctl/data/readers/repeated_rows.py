"""Rows of a table that name one image: joined where an image has several labels, else warned of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.config import TaskChoice
from deitctl.data.arrays import StringArray
from deitctl.data.dataset import Labels
from deitctl.data.labels import MIN_SEVERAL, encode_labels
from deitctl.data.readers.label_cells import WAY_ON
from deitctl.events import Reporter


@dataclass(frozen=True)
class JoinedRows:
    """The images that rows name, and the labels of all of their rows."""

    first: NDArray[np.int64]
    """First row of each image, in rising order, [M]."""
    labels: Labels
    """[M], or of several labels an image multi-hot, [M,K]."""
    note: str = ""
    """What was joined; empty for nothing."""


def join_repeated(
    path: Path | str,
    values: StringArray,
    labels: Labels,
    class_names: tuple[str, ...],
    parts: NDArray[np.str_],
    rows: NDArray[np.int64],
    task: TaskChoice,
    reporter: Reporter,
) -> JoinedRows:
    """Join the rows of each image of a part of the data where images have several labels.

    Rows of one label each are of several labels an image where `MIN_SEVERAL` of the images stand in
    rows of different classes; fewer may be mistakes.

    Args:
        path: the table, for messages.
        values: paths of the images, as they are written, [N].
        labels: of each row, [N] or [N,K].
        class_names: of the labels.
        parts: of the data, of each row.
        rows: that are read.
        task: what the user says that the data is.
        reporter: receives which images are in different classes or parts.
    """
    # Hashes and not a dictionary: a million strings would take 100 MB.
    hashes = np.fromiter(map(hash, values), np.int64, len(values))[rows]
    part_numbers = np.unique(parts[rows], return_inverse=True)[1]
    order = np.lexsort((part_numbers, hashes))
    is_same = hashes[order[1:]] == hashes[order[:-1]]
    is_other_part = part_numbers[order[1:]] != part_numbers[order[:-1]]
    _warn_of_rows(
        path, values, rows[order[1:][is_same & is_other_part]], "different splits", reporter
    )
    starts = np.flatnonzero(np.concatenate([[True], ~is_same | is_other_part]))
    if len(starts) == len(rows):
        return JoinedRows(rows, labels[rows])
    ordered = labels[rows][order]
    if labels.ndim == 1:
        lowest, highest = np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)
        num_several = int((lowest != highest).sum())
        if task == "classification" or num_several < MIN_SEVERAL * len(starts):
            is_other = np.concatenate([[False], ordered[1:] != ordered[:-1]])
            is_other[starts] = False
            way_on = f" {WAY_ON}" if task == "auto" else ""
            _warn_of_rows(
                path, values, rows[order[is_other]], "different classes", reporter, way_on
            )
            return JoinedRows(rows, labels[rows])
        ordered = encode_labels(ordered, len(class_names))
    first = order[starts]
    by_row = np.argsort(first)
    joined = np.logical_or.reduceat(ordered, starts, axis=0)[by_row]
    note = (
        f"{len(rows):,} rows are of {len(starts):,} images, which have the labels of all their rows"
    )
    return JoinedRows(rows[first[by_row]], joined, note)


def _warn_of_rows(
    path: Path | str,
    values: StringArray,
    twice: NDArray[np.int64],
    what: str,
    reporter: Reporter,
    way_on: str = "",
) -> None:
    if len(twice):
        reporter.warn(
            f"{path} has rows of the same image in {what}: {len(twice):,}, the first of "
            f"{values[int(twice.min())]!r}.{way_on}"
        )
