"""What `deitctl check` can find: every check with its severity, words and remedy, and one finding of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
EXAMPLES = 10


class Check(NamedTuple):
    """How bad it is, what was found, and what to do about it."""

    severity: str
    message: str
    fix: str


CHECKS = {
    # the layout
    "no_images": Check(
        ERROR, "There is no image in it.", "Put each class's images into a folder of its name."
    ),
    "flat_part": Check(
        ERROR,
        "Images without class folders: nothing says what they show.",
        "Sort them into class folders; --ground-truth FILE says how, --write-table OUT.csv lists them as they are.",
    ),
    "not_in_ground_truth": Check(
        ERROR,
        "The ground truth does not name these images.",
        "Complete the ground truth, or delete them.",
    ),
    "misnamed_part": Check(
        ERROR,
        "Folders named like a part, but not as deitctl spells it: they are taken for classes.",
        "Rename them to train and val.",
    ),
    "nested_part": Check(
        ERROR,
        "A folder around the data is taken for a class.",
        "Name the inner folder as DATA, or move it up.",
    ),
    "loose_images": Check(
        ERROR,
        "Images beside the class folders are not read.",
        "Move them into the folder of their class.",
    ),
    "unread_images": Check(
        ERROR,
        "Images under file names that are not read.",
        "Convert or rename them to .jpg, .png or another extension that is.",
    ),
    "unreadable_folder": Check(ERROR, "Folders that cannot be listed.", "Mend their permissions."),
    "part_missing": Check(
        WARNING,
        "One part alone: enough for `eval`, not for `train`.",
        "Add the other, or name this part as DATA.",
    ),
    "subfolders": Check(
        NOTE,
        "Folders inside class folders: their images count for the outer class.",
        "Name the level that holds the classes as DATA.",
    ),
    "unused_folder": Check(
        NOTE,
        "Folders that are no part of the data are not read.",
        "Check them as DATA of their own.",
    ),
    "ignored_files": Check(
        NOTE, "Files that are not images are ignored.", "Nothing to do, if they are not meant."
    ),
    # the classes
    "too_few_classes": Check(
        ERROR, "Fewer than two classes.", "Name the folder that holds the class folders."
    ),
    "class_only_in_val": Check(
        ERROR,
        "Classes that validation has and training lacks.",
        "Give both parts the same class names; `train` refuses.",
    ),
    "class_only_in_train": Check(
        WARNING,
        "Classes that are trained and never validated.",
        "Move some of their images to validation.",
    ),
    "similar_class_names": Check(
        ERROR,
        "Class names that differ only in case, spaces, underscores or Unicode form.",
        "Spell them the same way everywhere.",
    ),
    "empty_class": Check(
        WARNING,
        "Class folders without an image; deitctl leaves them out, other tools count them and shift every label after them.",
        "Delete them, or fill them.",
    ),
    "numbered_imagenet": Check(
        WARNING,
        "A thousand classes named by number: nothing says whose numbering it is.",
        "Rename them to WordNet ids, by which deitctl matches published weights.",
    ),
    "folder_order": Check(
        NOTE,
        "timm and torchvision number these classes differently (natural and lexicographic order).",
        "Nothing for deitctl, which matches by name; with other tools compare the class list.",
    ),
    "imbalance": Check(
        NOTE,
        "The largest class has more than 20 times as many images as the smallest.",
        "Read top-1 by class.",
    ),
    "few_images": Check(
        WARNING, "Classes with fewer than 5 images.", "Collect more, or trust no figure of theirs."
    ),
    "small_part": Check(NOTE, "Fewer training images than a batch has.", "Lower --batch-size."),
    # the files
    "unreadable": Check(
        ERROR, "Files that are not there or cannot be read.", "Mend paths or permissions."
    ),
    "empty_file": Check(ERROR, "Files of zero bytes.", "Get them again, or delete them."),
    "not_an_image": Check(
        ERROR, "Files that are not images, whatever their name says.", "Delete them."
    ),
    "truncated": Check(ERROR, "Images that end too soon.", "Get them again, or delete them."),
    "damaged": Check(ERROR, "Images that cannot be decoded.", "Get them again, or delete them."),
    "wrong_extension": Check(
        NOTE,
        "Names that promise another format than the content's; read all the same.",
        "Rename them.",
    ),
    # the images
    "duplicate_across_parts": Check(
        ERROR,
        "Validation images that are training images too: they make accuracies too good.",
        "Delete them from training.",
    ),
    "duplicate_across_classes": Check(
        ERROR, "The same image under two labels.", "Keep the right one."
    ),
    "duplicate_in_class": Check(
        WARNING, "The same image more than once in a class.", "Delete all but one."
    ),
    "near_duplicate_across_parts": Check(
        WARNING,
        "Validation images that look like a training image.",
        "Look at them; delete the training copy if they are one.",
    ),
    "near_duplicate_across_classes": Check(
        WARNING, "Images that look like one of another class.", "Look at them; keep the right one."
    ),
    "near_duplicate_in_class": Check(
        NOTE, "Images that look like another of their class.", "Look at them."
    ),
    "blank": Check(WARNING, "Images of one color.", "Look at them; placeholders teach nothing."),
    "small_side": Check(
        WARNING, "Images with a side below 32 pixels.", "Make sure that they are no thumbnails."
    ),
    "many_pixels": Check(
        NOTE,
        "Images of more than 20 megapixels: decoding them is most of the time.",
        "Store them smaller.",
    ),
    "long_shape": Check(
        WARNING,
        "Images more than 4 times as long as wide: a center crop shows a quarter of them or less.",
        "Look at them.",
    ),
    "color_modes": Check(
        NOTE, "Images stored in other modes than RGB; they are converted.", "Nothing to do."
    ),
    "animated": Check(
        NOTE,
        "Images of several frames; the first is used.",
        "Nothing to do, if the first shows the class.",
    ),
    "rotated": Check(
        NOTE,
        "Images that EXIF rotates; deitctl turns them upright, some tools do not.",
        "Nothing to do.",
    ),
}


class Remedy(NamedTuple):
    """One row of a fix list; `target` is the new place, or the other image of two to review."""

    file: str
    problem: str
    action: str
    """delete, move, rename, merge (a folder into another) or review (by a person)."""
    target: str = ""


Remedies = Callable[[], Iterable[Remedy]]


@dataclass(frozen=True)
class Finding:
    """One check that found something."""

    check: str
    severity: str
    count: int
    examples: tuple[str, ...]
    detail: str = ""
    remedies: Remedies = tuple
    """Makes the rows of the fix list when they are asked for: there may be as many as images."""

    @property
    def message(self) -> str:
        """What was found."""
        return f"{CHECKS[self.check].message} {self.detail}".rstrip()

    @property
    def fix(self) -> str:
        """What to do about it."""
        return CHECKS[self.check].fix

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as `--format json` prints it."""
        return {
            "check": self.check,
            "severity": self.severity,
            "count": self.count,
            "examples": list(self.examples),
            "message": self.message,
            "fix": self.fix,
        }


def found(
    check: str,
    count: int,
    examples: Iterable[str] = (),
    *,
    detail: str = "",
    severity: str = "",
    remedies: Remedies = tuple,
) -> Iterator[Finding]:
    """Yield a finding of `check` if there is anything to report; `detail` is appended to its message."""
    if count:
        shown = tuple(islice(examples, EXAMPLES))
        yield Finding(check, severity or CHECKS[check].severity, count, shown, detail, remedies)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Make one finding of all of a check, and sort them: errors first, then in the order of `CHECKS`."""
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    joined = [_joined(by_check[check]) for check in CHECKS if check in by_check]
    return tuple(sorted(joined, key=lambda f: SEVERITIES.index(f.severity)))


def _joined(same: list[Finding]) -> Finding:
    return Finding(
        same[0].check,
        min((f.severity for f in same), key=SEVERITIES.index),
        sum(f.count for f in same),
        tuple(chain.from_iterable(f.examples for f in same))[:EXAMPLES],
        " ".join(f.detail for f in same if f.detail),
        lambda: chain.from_iterable(f.remedies() for f in same),
    )


def listed(names: Iterable[T], remedy: Callable[[T], Remedy]) -> Remedies:
    """Return a maker of one remedy for each of some things, which are kept."""
    return lambda: map(remedy, names)
