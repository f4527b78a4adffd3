"""String arrays match lists of strings in a fraction of the memory."""

from __future__ import annotations

import gc
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data import arrays as module
from deitctl.data.arrays import StringArray

ODD = st.binary(max_size=12).map(os.fsdecode)  # bytes that are no UTF-8 become surrogates
LISTS = st.lists(ODD | st.text(max_size=12), max_size=40)
PREFIXES = st.sampled_from(["", "photos/", "/d/ü/"])


@given(names=LISTS, prefix=PREFIXES)
def test_items_are_the_strings_it_was_built_from(names, prefix):
    kept, expected = (
        StringArray.from_strings(names).with_prefix(prefix),
        [prefix + name for name in names],
    )
    assert list(kept) == expected
    assert [kept[i] for i in range(len(kept))] == expected
    assert len(kept) == len(names)
    assert kept.is_valid()


@given(
    names=LISTS,
    place=st.integers(-50, 50),
    other=st.integers(-50, 50),
    step=st.sampled_from([-2, -1, 1, 3]),
)
def test_indexing_and_slicing_match_a_list(names, place, other, step):
    kept = StringArray.from_strings(names)
    assert list(kept[place:other:step]) == names[place:other:step]
    if -len(names) <= place < len(names):
        assert kept[place] == names[place]
    else:
        with pytest.raises(IndexError):
            kept[place]


@given(names=LISTS.filter(bool), data=st.data())
def test_search_and_reversal_match_a_list(names, data):
    kept, one = StringArray.from_strings(names), data.draw(st.sampled_from(names))
    assert one in kept
    assert kept.index(one) == names.index(one)
    assert kept.count(one) == names.count(one)
    assert list(reversed(kept)) == names[::-1]


@given(names=LISTS, prefix=PREFIXES, data=st.data())
def test_take_copies_strings_with_their_prefix(names, prefix, data):
    places = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=10)) if names else []
    assert list(StringArray.from_strings(names).with_prefix(prefix).take(places)) == [
        prefix + names[i] for i in places
    ]


@given(names=LISTS, prefix=PREFIXES)
def test_string_arrays_pickle(names, prefix):
    kept = StringArray.from_strings(names).with_prefix(prefix)
    assert list(pickle.loads(pickle.dumps(kept))) == list(kept)


def test_iteration_decodes_in_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    for count in range(10):
        names = [f"{i}" * i for i in range(count)]
        assert list(StringArray.from_strings(names)) == names


def test_numpy_integers_index():
    assert StringArray.from_strings(["a", "b"])[np.int64(1)] == "b"


def test_memory_is_the_bytes_without_an_object_a_string():
    tracemalloc.start()
    try:
        names = StringArray.from_strings(
            f"n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(100_000)
        )
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        for _ in names:
            pass
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 45 * 100_000  # 30 bytes a name, 8 for its end, and room to grow
    assert after - kept < 10_000
    assert peak - kept < 2_000_000


@pytest.mark.parametrize("ends", [[], [0, 2, 1], [0, 9], [-1, 2]])
def test_ends_outside_of_the_blob_are_invalid(ends):
    assert not StringArray(np.zeros(3, np.uint8), np.array(ends, np.int64)).is_valid()
