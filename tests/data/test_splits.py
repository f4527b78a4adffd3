"""An image's side of the split depends on its name: adding images moves none into validation."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.dataset import FileDataset
from deitctl.data.splits import HeldOutSplit, hash_paths, hold_out, list_relative_paths

NAMES = st.integers(0, 400)
IMAGES = st.dictionaries(NAMES, st.integers(0, 4), max_size=60)
"""Class of each image by name."""


def make_dataset(images: dict[int, int]) -> FileDataset:
    paths = tuple(f"/data/c{label}/{name}.jpg" for name, label in images.items())
    labels = np.array(list(images.values()), np.int64)
    return FileDataset(paths, labels, tuple(f"c{i}" for i in range(5)), "/data/")


def name_images(split: HeldOutSplit) -> tuple[set[str], set[str]]:
    train, val = (
        {part.name(i) for i in range(len(part.labels))} for part in (split.train, split.val)
    )
    return train, val


def find_tiny_classes(dataset: FileDataset, seed: int) -> set[int]:
    """Classes of one image, and those of which everything is below the threshold."""
    hashes = hash_paths(list_relative_paths(dataset), seed)
    return {
        label
        for label in range(5)
        if (hashes[dataset.labels == label] < 0.2).all() or (dataset.labels == label).sum() == 1
    }


def find_groups(dataset: FileDataset, groups: np.ndarray, classes: set[int]) -> set[int]:
    """Groups that have an image of some classes."""
    return set(groups[np.isin(dataset.labels, list(classes))].tolist())


def find_emptied_classes(dataset: FileDataset, groups: np.ndarray, seed: int) -> set[int]:
    """Classes of which no group is below the threshold, or that has to train on what is."""
    below = hash_paths(list_relative_paths(dataset), seed) < 0.2
    kept_back = find_groups(dataset, groups, find_trained_classes(dataset, groups, seed))
    held = np.array([below[groups == g].all() and g not in kept_back for g in groups], bool)
    return {label for label in range(5) if not held[dataset.labels == label].any()}


def find_trained_classes(dataset: FileDataset, groups: np.ndarray, seed: int) -> set[int]:
    """Classes of one image, and those of which every group is below the threshold."""
    below = hash_paths(list_relative_paths(dataset), seed) < 0.2
    whole = np.array([below[groups == group].all() for group in groups], bool)
    return {
        label
        for label in range(5)
        if (dataset.labels == label).sum() == 1 or whole[dataset.labels == label].all()
    }


@given(IMAGES, st.integers(0, 9))
def test_every_class_of_two_images_has_one_on_either_side(images, seed):
    dataset = make_dataset(images)
    split = hold_out(dataset, 0.2, seed)
    assert sorted([*split.train.indices, *split.val.indices]) == list(range(len(images)))
    assert split.train.class_names == split.val.class_names == dataset.class_names
    for label, count in Counter(images.values()).items():
        assert (split.train.labels == label).any()
        assert (split.val.labels == label).any() == (count > 1)


@given(IMAGES, st.integers(0, 9), st.integers(1, 3))
def test_a_group_is_held_out_where_all_of_it_is_below(images, seed, size):
    dataset = make_dataset(images)
    groups = np.array([name // size for name in images], np.int64)
    split = hold_out(dataset, 0.2, seed, groups)
    below = hash_paths(list_relative_paths(dataset), seed) < 0.2
    whole = np.array([below[groups == group].all() for group in groups], bool)
    held = np.isin(np.arange(len(images)), split.val.indices)
    special = find_trained_classes(dataset, groups, seed)
    special |= find_emptied_classes(dataset, groups, seed)
    special_groups = find_groups(dataset, groups, special)
    ordinary = np.array([group not in special_groups for group in groups], bool)
    assert (held == whole)[ordinary].all()
    assert split.num_moved == below.sum() - whole.sum()


@given(IMAGES, st.integers(0, 9), st.integers(1, 3))
def test_a_group_is_on_both_sides_only_where_its_class_has_no_other(images, seed, size):
    dataset = make_dataset(images)
    groups = np.array([name // size for name in images], np.int64)
    split = hold_out(dataset, 0.2, seed, groups)
    on_both = set(groups[split.train.indices]) & set(groups[split.val.indices])
    assert split.num_leaked == np.isin(groups[split.val.indices], list(on_both)).sum()
    for group in on_both:
        labels = set(dataset.labels[groups == group].tolist())
        assert any(
            all(
                len(set(dataset.labels[groups == other])) > 1
                or (groups[dataset.labels == label] == other).all()
                for other in groups[dataset.labels == label]
            )
            for label in labels
        )


@given(IMAGES, IMAGES, st.integers(0, 9), st.sampled_from([1, 2, 3]))
def test_added_images_move_none_from_training_to_validation(images, added, seed, size):
    """Groups are of images of neighboring names, and grow; of size 1 there are none."""
    before, after = make_dataset(images), make_dataset({**images, **added, **images})
    groups = [
        np.array([int(p.split("/")[1][:-4]) // size for p in list_relative_paths(d)], np.int64)
        for d in (before, after)
    ]
    trained, _ = name_images(hold_out(before, 0.2, seed, groups[0]))
    _, held = name_images(hold_out(after, 0.2, seed, groups[1]))
    moved = [(int(name.split("/")[2][1:]), int(name.split("/")[3][:-4])) for name in trained & held]
    if size == 1:
        assert {label for label, _ in moved} <= find_tiny_classes(before, seed)
        assert max(Counter(label for label, _ in moved).values(), default=0) <= 1
    # what a class had to keep back before, and what one that is empty now gives
    forced = find_groups(before, groups[0], find_trained_classes(before, groups[0], seed))
    emptied = find_emptied_classes(after, groups[1], seed)
    for label, name in moved:
        assert name // size in forced or label in emptied


@given(IMAGES, IMAGES, st.integers(0, 9))
def test_chosen_by_content_added_copies_move_none(images, added, seed):
    """Names play no role: of 400 images, those whose numbers differ by 50 are equal."""
    before, after = make_dataset(images), make_dataset({**images, **added, **images})
    contents = [
        [bytes([int(p.split("/")[1][:-4]) % 50]) for p in list_relative_paths(d)]
        for d in (before, after)
    ]
    groups = [np.array([c[0] for c in some], np.int64) for some in contents]
    trained, _ = name_images(hold_out(before, 0.2, seed, groups[0], contents[0]))
    _, held = name_images(hold_out(after, 0.2, seed, groups[1], contents[1]))
    hashes = [hash_paths([c.hex() for c in some], seed) for some in contents]
    ordinary = {
        int(name.split("/")[3][:-4]) % 50
        for name in trained
        if hash_paths([bytes([int(name.split("/")[3][:-4]) % 50]).hex()], seed)[0] >= 0.2
    }
    emptied = {label for label in range(5) if not (hashes[1][after.labels == label] < 0.2).any()}
    for name in trained & held:
        assert (
            int(name.split("/")[2][1:]) in emptied
            or int(name.split("/")[3][:-4]) % 50 not in ordinary
        )


def test_copies_by_content_are_held_out_together_as_often_as_single_images():
    dataset = make_dataset({number: number % 5 for number in range(4000)})
    groups = np.arange(4000) % 500  # 8 copies each
    contents = [int(group).to_bytes(2) for group in groups]
    split = hold_out(dataset, 0.2, 0, groups, contents)
    assert abs(len(split.val.labels) - 800) < 4 * 8 * (500 * 0.2 * 0.8) ** 0.5
    assert not set(groups[split.train.indices]) & set(groups[split.val.indices])
    assert len(hold_out(dataset, 0.2, 0, groups).val.labels) < 50  # by name


def test_a_split_is_the_same_wherever_the_data_lies_and_however_names_are_spelled():
    names = ["a/é.jpg", "a/b/c.jpg", *(f"b/{i}.jpg" for i in range(40))]
    here = FileDataset(
        tuple(f"/x/{n}" for n in names), np.array([0, 0] + [1] * 40), ("a", "b"), "/x/"
    )
    spelled = ["a/e\u0301.jpg", "./a/b//c.jpg", *names[2:]]
    there = FileDataset(tuple(f"y/{n}" for n in spelled), here.labels, ("a", "b"), "y/")
    assert list_relative_paths(there) == names
    one, other = (hold_out(d, 0.2, 0).val.indices.tolist() for d in (here, there))
    assert one == other
    assert one != hold_out(here, 0.2, 1).val.indices.tolist()


def test_hashes_are_uniform_and_stay_what_they_are():
    """A change would move trained images into validation: the first is blake2b's, by hand."""
    hashes = hash_paths([f"c/{i}.jpg" for i in range(10_000)], 0)
    digest = hashlib.blake2b(b"0\x1fc/0.jpg", digest_size=8).digest()
    assert hashes[0] == (int.from_bytes(digest, "big") >> 11) / 2**53
    counts = np.histogram(hashes, bins=10, range=(0, 1))[0]
    assert abs(counts - 1000).max() < 4 * 30  # standard deviation: sqrt(10,000 * 0.1 * 0.9) = 30
    assert hash_paths([], 0).shape == (0,)
    assert hash_paths(["\udcff.jpg"], 0)[0] < 1  # a name that is not UTF-8


def test_the_split_of_known_names_is_known():
    """Held out are exactly the hashes below a fifth."""
    dataset = make_dataset(dict.fromkeys(range(50), 0))
    hashes = hash_paths(list_relative_paths(dataset), 0)
    assert hold_out(dataset, 0.2, 0).val.indices.tolist() == np.flatnonzero(hashes < 0.2).tolist()


@given(IMAGES, st.integers(0, 9), st.integers(1, 6), st.integers(1, 3))
def test_no_group_with_a_name_is_on_both_sides_nor_are_duplicates_of_its_images(
    images, seed, size, copies
):
    dataset = make_dataset(images)
    names = [f"patient {name // size}" for name in images]
    duplicates = np.array([name % (100 * copies) for name in images], np.int64)
    split = hold_out(dataset, 0.2, seed, duplicates, group_names=names)
    assert sorted([*split.train.indices, *split.val.indices]) == list(range(len(images)))
    for groups in (np.array(names), duplicates):
        assert not set(groups[split.train.indices]) & set(groups[split.val.indices])
    assert split.num_leaked == 0
    for label in set(images.values()):
        assert (split.train.labels == label).any()


def test_few_groups_with_names_hold_out_between_a_tenth_and_two_fifths():
    dataset = make_dataset({number: number % 5 for number in range(60)})
    names = [f"camera {number // 10}" for number in range(60)]
    for seed in range(20):
        split = hold_out(dataset, 0.2, seed, group_names=names)
        assert 6 <= len(split.val.labels) <= 24
        assert set(split.val.labels.tolist()) == set(range(5))
    splits = {
        tuple(hold_out(dataset, 0.2, seed, group_names=names).val.indices) for seed in (0, 1, 2)
    }
    assert len(splits) > 1


SEVERAL = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=40)


@given(SEVERAL, st.integers(0, 9))
def test_every_label_of_several_is_trained_on_and_held_out_where_that_takes_no_other_away(
    labels, seed
):
    labels = np.array(labels, bool).reshape(-1, 4)
    paths = tuple(f"/data/{number}.jpg" for number in range(len(labels)))
    split = hold_out(FileDataset(paths, labels, tuple("abcd"), "/data/"), 0.2, seed)
    assert len(split.train.labels) + len(split.val.labels) == len(labels)
    for label in np.flatnonzero(labels.any(0)):
        assert split.train.labels[:, label].any()
        if labels[:, label].sum() > 1 and not split.val.labels[:, label].any():
            # each of its images is the last one of some label in training
            left = split.train.labels.sum(0)
            mine = split.train.labels[split.train.labels[:, label]]
            assert all((left[row] == 1).any() for row in mine)
