"""What is held out of data without validation images, and what is reported of it."""

from __future__ import annotations

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.group_names import MAX_NAMED, name_groups
from deitctl.data.groups import join_duplicates, number_groups
from deitctl.data.near_duplicates import MAX_BYTES, MAX_IMAGES, group_duplicates
from deitctl.data.splits import HeldOutSplit, hold_out, list_members
from deitctl.errors import DataError
from deitctl.events import Reporter

VAL_FRACTION = 0.2
"""Held out of a dataset without validation images."""


def hold_out_fifth(
    name: str, unsplit: ImageDataset, seed: int, reporter: Reporter, group_by: str = ""
) -> tuple[ImageDataset, ImageDataset]:
    """Hold out a fifth, which resembles no training image as far as that can be had.

    Args:
        name: of the data.
        unsplit: the images.
        seed: of the choice.
        group_by: see `name_groups`; empty: there are no groups with names.
        reporter: receives how many are held out, and warnings where accuracies would be too high or
            uncertain.

    Returns:
        Training and validation images.

    Raises:
        DataError: the data has no such groups, or one alone.
    """
    if group_by:
        return _hold_out_groups(name, unsplit, seed, reporter, group_by)
    groups = group_duplicates(unsplit, reporter)
    near = None if groups is None else groups.near
    split, chosen_by = hold_out(unsplit, VAL_FRACTION, seed, near), "name"
    if groups is not None and _is_collapsed(split):
        # An image in many copies, each by its name, would hardly ever be held out.
        split, chosen_by = (
            hold_out(unsplit, VAL_FRACTION, seed, groups.near, groups.digests),
            "content, as many are equal",
        )
    if groups is not None and _is_collapsed(split):
        # Images of a fixed camera, X-rays, scans: hashes are of what all of them share.
        split, chosen_by = (
            hold_out(unsplit, VAL_FRACTION, seed, groups.exact, groups.digests),
            "content",
        )
        reporter.warn(
            f"So many images of {name} resemble another that only equal ones were kept together. "
            "If they are frames of a video or shots of one scene, split them by source into train/ "
            "and val/: else accuracies are too high."
        )
    _report(name, split, chosen_by, reporter, compared=groups is not None)
    return split.train, split.val


def _report(
    name: str, split: HeldOutSplit, chosen_by: str, reporter: Reporter, *, compared: bool
) -> None:
    """Say how many images are held out, and warn of figures that will be too high or uncertain.

    Args:
        name: of the data.
        split: what is trained on, and what is held out.
        chosen_by: what was hashed.
        reporter: receives the lines.
        compared: whether duplicates were looked for.
    """
    num_held = len(split.val.labels)
    count = num_held + len(split.train.labels)
    sentences = [
        f"{name} has no validation set: {num_held} of {count} images are held out, chosen by "
        f"{chosen_by}."
    ]
    if split.num_moved:
        sentences.append(
            f"Of that fifth, {split.num_moved} stayed in training because of a near duplicate there."
        )
    if not compared:
        sentences.append(
            f"Duplicates were not looked for among more than {MAX_IMAGES:,} images or "
            f"{MAX_BYTES // 2**30} GiB."
        )
    reporter.note(" ".join(sentences))
    if split.num_leaked:
        reporter.warn(
            f"{split.num_leaked} of the images held out of {name} have a duplicate in training, "
            "because their classes have no others: accuracies are too high."
        )
    fifth = VAL_FRACTION * count
    # Of classes of two images half are held out, which is as it should be; copies of one are not.
    if num_held < fifth / 2 or (num_held > 2 * fifth and chosen_by != "name"):
        reporter.warn(
            f"{num_held} of {count} images of {name} are held out, where a fifth is {fifth:.0f}, "
            "because of many copies. Remove those, which `deitctl check` lists, or put validation "
            "images into val/."
            if split.num_moved or chosen_by != "name"
            else f"Only {num_held} of {count} images of {name} are held out, where a fifth is "
            f"{fifth:.0f}: accuracies are uncertain. Put validation images into val/."
        )


def _hold_out_groups(
    name: str, unsplit: ImageDataset, seed: int, reporter: Reporter, group_by: str
) -> tuple[ImageDataset, ImageDataset]:
    """Hold out about a fifth in whole groups."""
    group_names = name_groups(unsplit, group_by, name)
    duplicates = group_duplicates(unsplit, reporter)
    count = len(group_names)
    groups, joined = join_duplicates(
        number_groups(group_names), duplicates, count, 2 * VAL_FRACTION
    )
    split = hold_out(unsplit, VAL_FRACTION, seed, groups, group_names=group_names)
    num_held = len(split.val.labels)
    if not num_held:
        raise DataError(
            f"Every group of {name} by {group_by} has images that resemble another group's, or are the "
            "only ones of a class, so that none can be held out.",
            "Put validation images into val/, or group by what is finer.",
        )
    held_names = {group_names[index] for index in split.val.indices.tolist()}
    reporter.note(
        f"{name} has no validation set: {num_held:,} of {count:,} images are held out, {len(held_names):,} "
        f"of {len(set(group_names)):,} groups by {group_by}, chosen by the name of the group."
    )
    if joined == "exact":
        reporter.warn(
            f"So many images of {name} resemble another that only equal ones were kept together: "
            "accuracies may be too high."
        )
    members = list_members(unsplit)
    if missing := [
        unsplit.class_names[label]
        for label, indices in enumerate(members)
        if len(indices) and not np.isin(indices, split.val.indices).any()
    ]:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        reporter.warn(
            f"No image of {', '.join(missing[:MAX_NAMED])}{more} is held out, because all are of one group "
            "or of groups that others need: nothing is known of how well they are recognized."
        )
    fifth = VAL_FRACTION * count
    if not fifth / 2 <= num_held <= 2 * fifth:
        reporter.warn(
            f"{num_held:,} of {count:,} images of {name} are held out, where a fifth is {fifth:.0f}, "
            "because groups are few or large."
        )
    return split.train, split.val


def _is_collapsed(split: HeldOutSplit) -> bool:
    """Whether duplicates keep most of the fifth in training."""
    return split.num_moved > len(split.val.labels) - split.num_leaked
