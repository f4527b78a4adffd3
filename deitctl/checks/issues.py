"""Issues that `deitctl check` reports (severity, message, fix), and their remedies as CSV."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from deitctl.paths import write_bytes
from deitctl.records import hidden

T = TypeVar("T")
ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
NUM_EXAMPLES = 10
FORMULA_STARTS = tuple("=+-@")
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: controls, formats, surrogates, private, unassigned, separators."""


class IssueType(NamedTuple):
    """How bad it is, what is wrong, and what to do about it."""

    severity: str
    message: str
    fix: str


ISSUES = {
    # layout
    "changed_shard": IssueType(
        ERROR,
        "Shards whose bytes are not those that `pack` wrote, by the SHA-256 in _info.json.",
        "Copy or download them again, or pack the data again.",
    ),
    "no_images": IssueType(
        ERROR, "No images.", "Put each class's images into a folder of its name."
    ),
    "flat_split": IssueType(
        ERROR,
        "Images without class folders, so without labels.",
        "Pass --ground-truth FILE: then --fix-list sorts them into class folders, and --write-manifest OUT.csv labels "
        "them where they are.",
    ),
    "not_in_ground_truth": IssueType(
        ERROR,
        "Images without a label in the ground truth.",
        "Complete the ground truth, or delete them.",
    ),
    "nested_split": IssueType(
        NOTE,
        "Folders around the data, which are entered; other tools read them as classes.",
        "Nothing to do, or move the inner ones up.",
    ),
    "loose_images": IssueType(
        ERROR,
        "Images beside the class folders are not read.",
        "Move them into the folder of their class.",
    ),
    "unread_images": IssueType(
        ERROR,
        "Images whose file names have an extension that is not read.",
        "Convert them to .jpg, .png or another that is; .heic is read after pip install 'deitctl[heif]'.",
    ),
    "unreadable_folder": IssueType(
        ERROR, "Folders that cannot be listed.", "Change their permissions."
    ),
    "missing_split": IssueType(
        WARNING,
        "No training images, which is enough for `eval` and not for `train`.",
        "Add train/, or pass the folder of a split as DATA.",
    ),
    "subfolders": IssueType(
        NOTE,
        "Folders inside class folders; their images belong to the outer class.",
        "Pass the folder that holds the class folders as DATA.",
    ),
    "unused_folder": IssueType(
        NOTE,
        "Folders beside or in the splits, which are not read.",
        "Check them as DATA of their own.",
    ),
    "ignored_files": IssueType(
        NOTE, "Files that are not images, which are ignored.", "Nothing to do."
    ),
    "no_stated_range": IssueType(
        WARNING,
        "Images of more than 8 bits whose files do not state which value is white.",
        "Compare the depth with that of the camera or scanner.",
    ),
    "mixed_values": IssueType(
        ERROR,
        "Images of integers and of floating-point values, whose files state no range.",
        "Say which values are black and white: --value-range LOW,HIGH.",
    ),
    "mixed_depths": IssueType(
        NOTE,
        "Images of 8 bits and of more in one data set.",
        "If depth depends on the class or the source, store all alike: a model could tell by it.",
    ),
    "outside_range": IssueType(
        ERROR,
        "Images with values outside of the range, which training leaves out.",
        "Set a range that holds them, or that clips on purpose: --value-range LOW,HIGH.",
    ),
    # classes
    "too_few_classes": IssueType(
        ERROR, "Fewer than two classes.", "Pass the folder that holds the class folders."
    ),
    "class_only_in_val": IssueType(
        ERROR,
        "Classes of validation that training lacks.",
        "Use the same class names in both; `train` refuses such data.",
    ),
    "class_only_in_train": IssueType(
        WARNING,
        "Classes of training that validation lacks.",
        "Move some of their images to validation.",
    ),
    "similar_class_names": IssueType(
        ERROR,
        "Class names that differ only in case, spaces, underscores, hyphens or Unicode form.",
        "Use one spelling.",
    ),
    "empty_class": IssueType(
        WARNING,
        "Class folders without an image; other tools count them, which shifts every label after them.",
        "Delete them, or add images.",
    ),
    "numbered_imagenet": IssueType(
        WARNING,
        "A thousand classes named by number, of an unknown numbering.",
        "Rename them to WordNet ids, by which published weights are matched.",
    ),
    "folder_order": IssueType(
        NOTE,
        "Classes that timm and torchvision number differently (natural and lexicographic order).",
        "Compare the class lists before using other tools; deitctl matches by name.",
    ),
    "imbalance": IssueType(
        NOTE,
        "The largest class has more than 20 times as many images as the smallest.",
        "Read accuracies per class.",
    ),
    "no_label": IssueType(
        NOTE,
        "Images without a label, which teach that they have none of the classes.",
        "Nothing to do if that is so; else label them.",
    ),
    "class_of_all": IssueType(
        WARNING,
        "Classes that every image has: there is nothing to tell them from.",
        "Add images without them, or leave them out.",
    ),
    "inseparable_classes": IssueType(
        WARNING,
        "Classes that always stand together: a model cannot tell them apart.",
        "Make them one class, or add images that have only one of them.",
    ),
    "few_images": IssueType(
        WARNING,
        "Classes with fewer than 5 images.",
        "Collect more, or do not rely on their accuracies.",
    ),
    "small_split": IssueType(
        NOTE,
        "Fewer than 50 images: the accuracy of ten held-out ones says little.",
        "Add images.",
    ),
    # files
    "unreadable": IssueType(
        ERROR, "Files that are missing or cannot be read.", "Correct paths or permissions."
    ),
    "empty_file": IssueType(ERROR, "Empty files.", "Replace or delete them."),
    "not_an_image": IssueType(
        ERROR,
        "Files named like images that are none.",
        "Get the images that they stand for: `git lfs pull`, or download them again.",
    ),
    "other_format": IssueType(
        ERROR,
        "Images of formats that are not read, under another's name.",
        "Convert them to JPEG or PNG; a HEIC image is read after pip install 'deitctl[heif]'.",
    ),
    "truncated": IssueType(ERROR, "Truncated images.", "Replace or delete them."),
    "damaged": IssueType(ERROR, "Images that cannot be decoded.", "Replace them."),
    "wrong_extension": IssueType(
        NOTE,
        "Images with another format than their extension says; they are read all the same.",
        "Rename them.",
    ),
    # images
    "duplicate_across_splits": IssueType(
        ERROR,
        "Validation images that are training images too, which makes accuracies too high.",
        "Delete them from training.",
    ),
    "duplicate_across_classes": IssueType(
        ERROR, "The same image under different labels.", "Keep the right one."
    ),
    "images_of_several_classes": IssueType(
        ERROR,
        "Images under different labels, so many that each may have several.",
        "If so, pass --task multilabel, to `train` too; else keep the right one.",
    ),
    "duplicate_in_class": IssueType(
        WARNING, "The same image more than once in a class.", "Delete all but one."
    ),
    "near_duplicate_across_splits": IssueType(
        WARNING,
        "Validation images that resemble a training image.",
        "Review them; delete the training copy if it is one.",
    ),
    "near_duplicate_across_classes": IssueType(
        WARNING, "Images that resemble one of another class.", "Review them; keep the right one."
    ),
    "near_duplicate_in_class": IssueType(
        NOTE, "Images that resemble another of their class.", "Review them."
    ),
    "blank": IssueType(WARNING, "Images of one color.", "Review them; delete placeholders."),
    "small_side": IssueType(
        WARNING, "Images with a side below 32 pixels.", "Replace thumbnails by their originals."
    ),
    "many_pixels": IssueType(
        NOTE,
        "Images of more than 20 megapixels, which are slow to decode.",
        "Store them smaller: `deitctl pack --max-size`.",
    ),
    "long_shape": IssueType(
        WARNING,
        "Images more than 4 times as long as wide; a center crop shows a quarter or less.",
        "Review them.",
    ),
    "color_modes": IssueType(
        NOTE, "Images stored in other modes than RGB; they are converted.", "Nothing to do."
    ),
    "bands": IssueType(
        NOTE,
        "TIFFs whose bands are neither gray nor RGB, by their number.",
        "--in-chans N checks and trains on images of N bands.",
    ),
    "uneven_bands": IssueType(
        WARNING,
        "TIFFs of different numbers of bands; those of the rarest number.",
        "A model takes images of one number: store all alike, or remove these.",
    ),
    "other_bands": IssueType(
        ERROR,
        "Images of another number of bands than --in-chans names, which training leaves out.",
        "Store all alike, or remove these.",
    ),
    "animated": IssueType(
        NOTE,
        "Images of several frames; the first is read.",
        "Nothing to do if the first shows the class.",
    ),
    "rotated": IssueType(
        NOTE,
        "Images with an EXIF rotation, which deitctl applies and some tools ignore.",
        "Nothing to do.",
    ),
}


FOLDER_ISSUES = ("empty_class", "similar_class_names")
"""Remedies that rename folders, inner ones first, come last, so that paths of files stay valid."""


class Remedy(NamedTuple):
    """One row of a fix list; `target` is the new place, or the other image of two to review."""

    file: str
    issue: str
    action: str
    """delete, move, rename, merge (a folder into another) or review (by a person)."""
    target: str = ""


Remedies = Callable[[], Iterable[Remedy]]


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One kind of issue in a data set."""

    code: str
    """Such as `duplicate_across_splits`."""
    severity: str
    """`error` (images go unread or results are wrong), `warning` or `note`."""
    count: int
    """Files, classes or folders concerned."""
    examples: tuple[str, ...]
    """The first 10 of them."""
    message: str
    """What is wrong."""
    fix: str
    """What to do about it."""
    details: tuple[str, ...] = hidden()
    remedies: Remedies = hidden()
    """Makes the rows of the fix list when it is written: there may be as many as images."""


def report(
    code: str,
    count: int,
    examples: Iterable[str] = (),
    *,
    details: Iterable[str] = (),
    severity: str = "",
    remedies: Remedies = tuple,
) -> Iterator[Issue]:
    """Yield an issue of a kind if its count is not 0; `details` are appended to its message."""
    if count:
        kind, details = ISSUES[code], tuple(filter(None, details))
        yield Issue(
            code=code,
            severity=severity or kind.severity,
            count=count,
            examples=tuple(islice(examples, NUM_EXAMPLES)),
            message=" ".join((kind.message, *details)),
            fix=kind.fix,
            details=details,
            remedies=remedies,
        )


def merge_issues(issues: Iterable[Issue]) -> tuple[Issue, ...]:
    """Merge issues of one kind, and sort: errors first, then in the order of `ISSUES`."""
    by_code: dict[str, list[Issue]] = {}
    for issue in issues:
        by_code.setdefault(issue.code, []).append(issue)
    # train and val report for themselves
    merged = [_merge(code, by_code[code]) for code in ISSUES if code in by_code]
    return tuple(sorted(merged, key=lambda issue: SEVERITIES.index(issue.severity)))


def _merge(code: str, issues: list[Issue]) -> Issue:
    (merged,) = report(
        code,
        sum(issue.count for issue in issues),
        chain.from_iterable(issue.examples for issue in issues),
        details=chain.from_iterable(issue.details for issue in issues),
        severity=min((issue.severity for issue in issues), key=SEVERITIES.index),
        remedies=lambda: chain.from_iterable(issue.remedies() for issue in issues),
    )
    return merged


def make_remedies(items: Iterable[T], remedy: Callable[[T], Remedy]) -> Remedies:
    """Return a maker of one remedy for each item."""
    return lambda: map(remedy, items)


def write_fix_list(path: Path, issues: Iterable[Issue]) -> int:
    """Write the remedies as CSV; return how many there are."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(Remedy._fields)
    count = 0
    for remedy in resolve_conflicts(issues):
        rows.writerow(map(escape, remedy))
        count += 1
    write_bytes(path, text.getvalue().encode())
    return count


def resolve_conflicts(issues: Iterable[Issue]) -> Iterator[Remedy]:
    """Yield remedies without contradictions, in an order in which they can be carried out.

    A file that is deleted is not renamed too. What would be moved onto another file is to be
    reviewed by a person.
    """
    ordered = sorted(
        issues, key=lambda i: FOLDER_ISSUES.index(i.code) if i.code in FOLDER_ISSUES else -1
    )
    # known before the first row, because a file may be moved by an earlier issue
    deleted = {r.file for issue in ordered for r in issue.remedies() if r.action == "delete"}
    handled: set[str] = set()
    targets: set[str] = set()
    for remedy in (r for issue in ordered for r in issue.remedies()):
        if remedy.action in ("move", "rename"):
            if remedy.file in deleted or remedy.file in handled:
                continue
            if remedy.target in targets or _is_taken(remedy.file, remedy.target):
                remedy = remedy._replace(action="review")
            targets.add(remedy.target)
        elif remedy.action == "delete" and remedy.file in handled:
            continue
        if remedy.action != "review":
            handled.add(remedy.file)
        yield remedy


def _is_taken(file: str, target: str) -> bool:
    """Return whether another file has the target's name; letter case may not tell files apart."""
    return os.path.exists(target) and not (os.path.exists(file) and os.path.samefile(file, target))


def escape(field: str) -> str:
    """Escape a name so that it stays in its cell and is no formula of a spreadsheet.

    Backslashes and invisible characters are written as in a Python string; a leading = + - @ gets
    `./` before it, which names the same path.
    """
    escaped = "".join(c if _is_visible(c) else c.encode("unicode_escape").decode() for c in field)
    return f"./{escaped}" if escaped.startswith(FORMULA_STARTS) else escaped


def _is_visible(character: str) -> bool:
    return character != "\\" and unicodedata.category(character) not in INVISIBLE
