"""Duplicates are all pairs that brute force finds, whatever the hashes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deitctl.checks.duplicates import (
    MAX_DISTANCE,
    find_exact_duplicates,
    find_near_duplicates,
    find_near_pairs,
    group_rows,
)


def pairs_by_search(hashes, distance) -> set[tuple[int, int]]:
    return {
        (a, b)
        for x, y in find_near_pairs(hashes, distance)
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    }


def pairs_by_force(hashes, distance) -> set[tuple[int, int]]:
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = np.abs(bits[:, None] - bits[None]).sum(axis=2)
    return {(int(a), int(b)) for a, b in zip(*np.nonzero(apart <= distance), strict=True) if a < b}


def hashes_with_neighbors(seed: int, originals: int, copies: int, farthest: int):
    """Random hashes, and copies of them with up to `farthest` bits turned."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, (originals, 128), dtype=np.uint8)
    near = bits[generator.integers(0, originals, copies)]
    for row in near:
        row[generator.choice(128, generator.integers(0, farthest + 1), replace=False)] ^= 1
    return np.packbits(np.concatenate([bits, near]), axis=1)


@given(
    seed=st.integers(0, 2**32),
    originals=st.integers(1, 20),
    copies=st.integers(0, 40),
    distance=st.integers(0, 12),
)
def test_the_search_finds_the_pairs_that_brute_force_finds(seed, originals, copies, distance):
    hashes = hashes_with_neighbors(seed, originals, copies, distance + 2)
    assert pairs_by_search(hashes, distance) == pairs_by_force(hashes, distance)


def test_no_hash_and_one_hash_have_no_pairs():
    for count in (0, 1):
        assert not pairs_by_search(np.zeros((count, 16), np.uint8), MAX_DISTANCE)


def test_equal_rows_are_one_group():
    groups = group_rows(np.array([[1, 2], [3, 4], [1, 2]], dtype=np.uint8))
    assert groups[0] == groups[2] != groups[1]


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
