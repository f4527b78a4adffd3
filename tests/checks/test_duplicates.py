"""Duplicates are reported by the relation of the two images."""

from __future__ import annotations

import numpy as np

from deitctl.checks.duplicates import (
    find_exact_duplicates,
    find_near_duplicates,
)


def digests(*numbers: int):
    return np.array([[n] * 16 for n in numbers], dtype=np.uint8)


def as_pairs(relation) -> list[tuple[int, int]]:
    return list(zip(*(side.tolist() for side in relation), strict=True))


def test_a_leaked_validation_image_has_its_training_image():
    """Also of three duplicates, where one could hide another."""
    groups = find_exact_duplicates(
        digests(1, 2, 1, 1), np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])
    )
    assert as_pairs(groups.across_splits) == [(2, 0), (3, 0)]
    assert as_pairs(groups.in_class) == [(3, 2)]
    assert as_pairs(groups.across_classes) == []


def test_duplicates_under_two_labels_are_distinguished_from_those_in_a_class():
    groups = find_exact_duplicates(
        digests(1, 1, 1, 2), np.array([0, 0, 0, 0]), np.array([5, 6, 5, 5])
    )
    assert as_pairs(groups.across_classes) == [(1, 0)]
    assert as_pairs(groups.in_class) == [(2, 0)]


def test_near_duplicates_are_distinguished_by_relation_and_leave_out_exact_ones():
    zero, one = np.zeros(16, np.uint8), np.zeros(16, np.uint8)
    one[0] = 1
    far = np.full(16, 255, np.uint8)
    hashes = np.stack([zero, one, far, zero, one, zero])
    groups = find_near_duplicates(
        hashes,
        digests(1, 2, 3, 4, 5, 1),
        np.array([0, 0, 0, 0, 1, 1]),
        np.array([0, 0, 0, 1, 0, 0]),
    )
    assert dict(as_pairs(groups.across_splits)).keys() == {4}
    assert dict(as_pairs(groups.across_classes)).keys() == {3}
    assert as_pairs(groups.in_class) == [(1, 0)]
