"""`deitctl check`: images that would go unread, and whatever makes accuracies wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deitctl.checks.classes import check_classes, count_by_class
from deitctl.checks.depth import check_depth
from deitctl.checks.ground_truth import label_flat_split, read_ground_truth
from deitctl.checks.images import check_images
from deitctl.checks.issues import ERROR, Issue, merge_issues, write_fix_list
from deitctl.checks.labels import LabelCounts, count_labels
from deitctl.checks.shards import check_shards
from deitctl.checks.survey import ALL, Split, survey
from deitctl.data.labels import name_labels
from deitctl.data.stores.store_settings import reading_stores
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.paths import write_bytes


@dataclass(frozen=True, kw_only=True)
class SplitSize:
    """The size of a split."""

    num_images: int
    """Readable or not."""
    num_classes: int
    """That have an image."""
    labels: LabelCounts | None = None
    """Of images of several labels; None where each has one."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The issues of a data set."""

    data: str
    """What was checked."""
    splits: dict[str, SplitSize]
    """By name: train, val, or all of a data set without splits."""
    issues: tuple[Issue, ...]
    """Errors first."""
    num_errors: int
    """Issues that are errors: images go unread, or results are wrong."""
    seconds: float
    """Of the check."""


def check(
    data: str = "",
    *,
    ground_truth: str = "",
    fix_list: str = "",
    write_manifest: str = "",
    image_folder: str = "",
    task: str = "auto",
    value_range: str = "auto",
    in_chans: int = 0,
    workers: int = -1,
    cache_dir: str = "",
    cache_size: str = "",
    reporter: Reporter | None = None,
) -> CheckResult:
    """Read every image of a data set and report its issues; nothing in it is changed.

    Args:
        data: a folder, tar, table or `digits`, also one that training refuses.
        ground_truth: labels of images that lie in no class folders, see `read_ground_truth`.
        fix_list: CSV file to write the remedies to.
        write_manifest: CSV file to write, a `path,label,split` table that training accepts.
        image_folder: folder that the paths of a table are below; empty: where the table leads.
        task: whether an image has one label or several; auto: as the data has them.
        value_range: of images of more than 8 bits, see `settle_range`.
        in_chans: channels of the model that is to be trained: images are read by their bands where
            these are neither 1 nor 3.
        workers: decoding processes, 0 for none, -1 for one a core.
        cache_dir: folder of what is read from stores, see `reading_stores`.
        cache_size: of that folder.
        reporter: shows progress.

    Raises:
        DataError: data set or ground truth cannot be opened, or have no manifest.
        ConfigError: `write_manifest` is no .csv file.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    if write_manifest and Path(write_manifest).suffix != ".csv":
        raise ConfigError(
            f"The manifest {write_manifest!r} must end in .csv.",
            "Its extension is how DATA is recognized as a table.",
        )
    for output in filter(None, (fix_list, write_manifest)):
        _require_writable(Path(output))
    labels = read_ground_truth(expand_home(ground_truth)) if ground_truth else {}
    with reading_stores(cache_dir, cache_size, reporter):
        surveyed = survey(data, reporter, image_folder, task, in_chans)
    issues = surveyed.issues
    if ground_truth and not any(split.flat for split in surveyed.splits):
        in_a_tar = any(issue.code == "flat_split" for issue in issues)
        why = "tars are not labeled: unpack it" if in_a_tar else "all images lie in class folders"
        reporter.warn(f"The ground truth is not used: {why}.")
    class_names = {name for split in surveyed.splits for name in split.dataset.class_names}
    splits = []
    for split in surveyed.splits:
        if split.flat:
            split, flat_issues = label_flat_split(split, labels, class_names)
            issues += flat_issues
        splits.append(split)
    # before the images are read, so that it fails early
    manifest = _build_manifest(splits, Path(write_manifest)) if write_manifest else b""
    splits, depth_issues = check_depth(splits, value_range)
    issues += [*check_classes(splits), *depth_issues, *check_images(splits, workers, reporter)]
    issues += check_shards(data, reporter)
    merged = merge_issues(issues)
    if fix_list:
        count = write_fix_list(Path(fix_list), merged)
        reporter.note(f"{fix_list}: {count} row(s).")
    if write_manifest:
        write_bytes(Path(write_manifest), manifest)
        reporter.note(f"{write_manifest}: pass it as DATA.")
    return CheckResult(
        data=surveyed.name,
        splits={split.name: _measure(split) for split in splits},
        issues=merged,
        num_errors=sum(issue.severity == ERROR for issue in merged),
        seconds=time.perf_counter() - start,
    )


def _require_writable(path: Path) -> None:
    """Raise before the images are read, not after."""
    # parents that do not exist are made when it is written
    folder = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"Cannot write {path}.", "Name a file in a writable folder.")


def _measure(split: Split) -> SplitSize:
    counts = count_by_class(split).values() if split.labeled else ()
    return SplitSize(
        num_images=len(split.dataset.labels),
        num_classes=sum(n > 0 for n in counts),
        labels=count_labels(split.dataset) if split.labeled else None,
    )


def _build_manifest(splits: Sequence[Split], path: Path) -> bytes:
    """Return a row for every image: path (relative to the manifest if below it), label, split."""
    if not splits:
        raise DataError("There are no images to write into a manifest.")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    folder = path.absolute().parent
    for split in splits:
        if not split.labeled:
            raise DataError(
                f"{split.root} has no classes to write into a manifest.", "Pass --ground-truth."
            )
        is_multilabel = split.dataset.is_multilabel
        for index, names in enumerate(name_labels(split.dataset)):
            # not resolved: links keep the names that the user gave them
            file = Path(os.path.abspath(split.dataset.name(index)))
            if not index and not split.root and not file.is_file():
                raise DataError("A manifest lists files, and these images are no files.")
            relative = file.relative_to(folder) if file.is_relative_to(folder) else file
            name = "" if split.name == ALL else split.name
            label = json.dumps(names, ensure_ascii=False) if is_multilabel else names[0]
            rows.writerow((relative, label, name))
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "A file's name is not UTF-8, so that no table can list it.", "Rename it."
        ) from error
