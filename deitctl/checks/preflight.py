"""The part of `deitctl check` that costs nothing, for a training: of names and counts of opened data.

What opening data refuses or passes over is reported there; files are neither listed again nor read.
"""

from __future__ import annotations

from deitctl.checks.classes import check_classes
from deitctl.checks.issues import Issue, merge_issues
from deitctl.checks.survey import Split
from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import find_used_classes
from deitctl.data.subsets import renumber
from deitctl.events import Reporter

CODES = ("class_only_in_train", "similar_class_names", "numbered_imagenet", "few_images")
"""Issues of classes that make results wrong or worth little; the rest is for `deitctl check`."""
NUM_NAMED = 3


def warn_about_classes(
    data: str, train: ImageDataset, val: ImageDataset, reporter: Reporter
) -> None:
    """Warn of what is wrong with the classes of opened data, a line for each kind.

    Args:
        data: its name.
        train: training images.
        val: validation images.
        reporter: receives the lines.
    """
    splits = [Split("train", train)]
    if not val.is_held_out:  # of which every class has its share
        splits.append(Split("val", _drop_unused_classes(val)))
    for issue in merge_issues(check_classes(splits)):
        if issue.code in CODES:
            reporter.warn(f"{data}: {_describe(issue)}")


def _drop_unused_classes(dataset: ImageDataset) -> ImageDataset:
    """Return a dataset with the names of those classes alone that have images in it."""
    return renumber(dataset, tuple(sorted(find_used_classes(dataset))))


def _describe(issue: Issue) -> str:
    more = issue.count - NUM_NAMED
    named = ", ".join(issue.examples[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{issue.message.rstrip('.')} ({named}). {issue.fix}"
