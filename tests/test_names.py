"""Class names in one form, wherever they are compared."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.classes import match_classes
from deitctl.data.dataset import FileDataset
from deitctl.data.labels import number_labels
from deitctl.data.splits import relabel
from deitctl.data.subsets import join
from deitctl.errors import DataError
from deitctl.models.model_config import ModelConfig
from deitctl.names import canonicalize_name, find_names, group_spellings

COMPOSED, DECOMPOSED = "café", unicodedata.normalize("NFD", "café")


def label(names: tuple[str, ...]) -> FileDataset:
    """Return a data set of one image a class."""
    return FileDataset([f"{n}.png" for n in names], np.arange(len(names)), names)


@given(st.text())
def test_a_canonical_name_is_its_own_canonical_form(name):
    once = canonicalize_name(name)
    assert canonicalize_name(once) == once


@pytest.mark.parametrize("name", [DECOMPOSED, " café", "café\t", "\u00a0cafe\u0301 \r"])
def test_spaces_and_composition_make_no_other_name(name):
    assert canonicalize_name(name) == COMPOSED


def test_the_same_spelling_goes_before_the_same_canonical_form():
    assert find_names(["cat", "cat ", " cat", "dog"], ["cat ", "cat"]) == [1, 0, 0, None]


def test_labels_of_another_spelling_are_numbered_as_the_class():
    assert number_labels(label((DECOMPOSED, "dog ", "x")), ("dog", COMPOSED)).tolist() == [1, 0, -1]


def test_parts_of_two_spellings_are_joined_into_one_class():
    joined = join([label((DECOMPOSED, "dog")), label((COMPOSED, " dog"))])
    assert joined.class_names == (COMPOSED, "dog")
    assert joined.labels.tolist() == [0, 1, 0, 1]


def test_validation_images_of_another_spelling_have_the_training_class():
    assert relabel(label(("dog ", DECOMPOSED)), (COMPOSED, "dog")).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="'cat'"):
        relabel(label(("cat",)), (COMPOSED, "dog"))


def test_a_model_with_uncanonical_names_knows_its_classes():
    config = ModelConfig(architecture="x", num_classes=2, class_names=(DECOMPOSED, "dog "))
    match = match_classes(config, ("dog", COMPOSED))
    assert match is not None
    assert (match.rows, match.kind) == ((1, 0), "permuted")


def test_spellings_are_grouped_by_their_canonical_form_in_order():
    assert group_spellings(["dog", DECOMPOSED, "cat ", COMPOSED, "cat"]) == {
        "dog": ["dog"],
        COMPOSED: [DECOMPOSED, COMPOSED],
        "cat": ["cat ", "cat"],
    }
