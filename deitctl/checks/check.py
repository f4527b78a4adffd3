"""Is a data set sound? What would go unread, and what would make results wrong."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.checks.classes import check_classes, images_by_class
from deitctl.checks.findings import ERROR, Finding, Remedy, found, in_order, listed
from deitctl.checks.fix_list import write_fix_list
from deitctl.checks.ground_truth import label_of, read_ground_truth
from deitctl.checks.images import check_images
from deitctl.checks.survey import WHOLE, Split, survey
from deitctl.data.dataset import FileSource
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter, SilentReporter
from deitctl.paths import write_bytes
from deitctl.training.launch import loaders_may_die


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What was found in a data set."""

    data: str
    parts: Mapping[str, Mapping[str, int]]
    """Images and classes of each part: train, val or all."""
    findings: tuple[Finding, ...]
    """Errors first."""
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing would go unread or make results wrong: no finding is an error."""
        return all(f.severity != ERROR for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "data": self.data,
            "parts": {name: dict(counts) for name, counts in self.parts.items()},
            "findings": [f.to_dict() for f in self.findings],
            "sound": self.sound,
            "seconds": round(self.seconds, 2),
        }


def check(
    data: str = "",
    *,
    ground_truth: str = "",
    fix_list: str = "",
    write_table: str = "",
    workers: int = -1,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Look at every image of a data set and report what is wrong with it; nothing in it is changed.

    Args:
        data: a folder, tar, table or `digits`, also one that training refuses.
        ground_truth: labels of images that lie in no class folders, see `read_ground_truth`.
        fix_list: CSV file to write the remedies to.
        write_table: CSV file to write a `path,label,split` table of the data set to, which training accepts.
        workers: decoding processes, 0 for none, -1 for one a core.
        reporter: told of progress.

    Raises:
        DataError: the data set or the ground truth cannot be opened, or a table of it cannot be made.
        ConfigError: `write_table` is no .csv file.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    if write_table and Path(write_table).suffix != ".csv":
        raise ConfigError(
            f"The table {write_table!r} must end in .csv.", "That is how it is known for one."
        )
    for output in filter(None, (fix_list, write_table)):
        _require_writable(Path(output))
    truth = read_ground_truth(Path(ground_truth).expanduser()) if ground_truth else {}
    laid_out = survey(data, reporter)
    findings = laid_out.findings
    if ground_truth and not any(part.flat for part in laid_out.parts):
        in_a_tar = any(f.check == "flat_part" for f in findings)
        why = (
            "not used inside a tar: unpack it"
            if in_a_tar
            else "not needed: no images lie without class folders"
        )
        reporter.warn(f"The ground truth is {why}.")
    parts = _label_flat_parts(laid_out.parts, truth, findings)
    table = _table(parts, Path(write_table)) if write_table else b""
    with loaders_may_die("Go on with fewer: --workers 0"):
        findings += [*check_classes(parts), *check_images(parts, workers, reporter)]
    result = CheckResult(
        data=laid_out.name,
        parts={p.name: {"images": len(p.source.labels), "classes": _classes(p)} for p in parts},
        findings=in_order(findings),
        seconds=time.perf_counter() - start,
    )
    if fix_list:
        count = write_fix_list(Path(fix_list), result.findings)
        reporter.note(f"{fix_list}: {count} row(s) of what to do.")
    if write_table:
        write_bytes(Path(write_table), table)
        reporter.note(
            f"{write_table}: a table that `deitctl train` and `deitctl eval` accept as DATA."
        )
    return result


def _require_writable(path: Path) -> None:
    """Raise before the images are looked at, not after."""
    home = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not home.is_dir() or not os.access(home, os.W_OK):
        raise DataError(f"Cannot write {path}.", "Name a file in a folder that may be written.")


def _classes(part: Split) -> int:
    return sum(n > 0 for n in images_by_class(part).values()) if part.labeled else 0


def _label_flat_parts(
    parts: Sequence[Split], truth: Mapping[str, str], findings: list[Finding]
) -> list[Split]:
    """Give images without class folders their classes, and report how they would be sorted."""
    known = {name for part in parts for name in part.source.class_names}
    labeled = []
    for part in parts:
        if part.flat:
            part = _label_flat(part, truth, known, findings)
        labeled.append(part)
    return labeled


def _label_flat(
    part: Split, truth: Mapping[str, str], known: set[str], findings: list[Finding]
) -> Split:
    paths = [part.source.name(i) for i in range(len(part.source.labels))]
    labels = {path: label for path in paths if (label := label_of(path, truth))}
    if truth and not labels:
        raise DataError(
            f"The ground truth names none of the images in {part.root}, such as {Path(paths[0]).name}."
        )
    if (
        labels
        and known
        and all(n.isdecimal() for n in labels.values())
        and not known.issuperset(labels.values())
    ):
        raise DataError(
            f"The ground truth's labels are numbers such as {min(labels.values())}, and the classes are not.",
            "Name a ground truth with class names or WordNet ids.",
        )
    moves = listed(
        labels,
        lambda p: Remedy(p, "flat_part", "move", str(Path(part.root) / labels[p] / Path(p).name)),
    )
    detail = f"(The ground truth names {len(labels)} of them.)" if truth else ""
    findings += found("flat_part", len(paths), paths, detail=detail, remedies=moves)
    if not labels:
        return part
    unnamed = [p for p in paths if p not in labels]
    findings += found("not_in_ground_truth", len(unnamed), unnamed)
    names = tuple(sorted(set(labels.values())))
    number = {name: i for i, name in enumerate(names)}
    source = FileSource(
        tuple(labels), np.array([number[n] for n in labels.values()], dtype=np.int64), names
    )
    return replace(part, source=source)


def _table(parts: Sequence[Split], path: Path) -> bytes:
    """Write every image's path, relative to the table where it lies below it, label and split."""
    if not parts:
        raise DataError("There are no images to write into a table.")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    home = path.absolute().parent
    for part in parts:
        if not part.labeled:
            raise DataError(
                f"{part.root} has no classes to write into a table.", "Name a --ground-truth."
            )
        for index, label in enumerate(part.source.labels.tolist()):
            file = Path(os.path.abspath(part.source.name(index)))
            if not index and not part.root and not file.is_file():
                raise DataError("A table lists files, and these images are in none of their own.")
            shown = file.relative_to(home) if file.is_relative_to(home) else file
            rows.writerow(
                (shown, part.source.class_names[label], "" if part.name == WHOLE else part.name)
            )
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "A file's name is not UTF-8, so that no table can list it.", "Rename it."
        ) from error
