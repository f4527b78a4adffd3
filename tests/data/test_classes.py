"""Classes are matched by name, never by position."""

from __future__ import annotations

import pytest

from deitctl.data.classes import (
    describe_classes,
    describe_lack,
    find_class,
    is_imagenet,
    match_classes,
)
from deitctl.errors import ConfigError
from deitctl.models.catalog import find, load_imagenet_classes
from deitctl.models.model_config import ModelConfig

IDS, NAMES = load_imagenet_classes()
IMAGENET = find("deit_tiny").to_model_config()


def model_config(*names: str) -> ModelConfig:
    return ModelConfig(architecture="x", num_classes=len(names), class_names=names)


def test_same_classes_in_the_same_order():
    match = match_classes(model_config("a", "b", "c"), ["a", "b", "c"])
    assert match.kind == "same"
    assert match.rows == (0, 1, 2)
    assert str(match) == "the same 3 classes"


def test_same_classes_in_another_order():
    match = match_classes(model_config("a", "b", "c"), ["c", "a", "b"])
    assert (match.kind, match.rows) == ("permuted", (2, 0, 1))
    assert "another order" in str(match)


def test_some_of_the_models_classes():
    match = match_classes(model_config("a", "b", "c"), ["c", "a"])
    assert (match.kind, match.rows) == ("subset", (2, 0))
    assert str(match) == "2 of the model's classes"


def test_one_unknown_class_is_no_match():
    assert match_classes(model_config("a", "b"), ["a", "z"]) is None
    assert match_classes(ModelConfig(architecture="x", num_classes=2), ["a", "b"]) is None


def test_what_a_model_lacks_to_label_data_is_said():
    headless = ModelConfig(architecture="x", num_classes=0)
    lacks = [
        describe_lack(headless, ("a",), is_multilabel=False),
        describe_lack(model_config("a", "b"), ("a", "c"), is_multilabel=False),
        describe_lack(model_config("z"), tuple("abcde"), is_multilabel=False),
        describe_lack(model_config("a", "b"), ("a", "b"), is_multilabel=True),
    ]
    assert lacks == [
        "has no classifier",
        "has 1 of 2 classes: no c",
        "has 0 of 5 classes: no a, b, c and 2 more",
        "is of one label an image, the data of several labels an image",
    ]


def test_imagenet_by_wordnet_id_by_name_and_by_synonym():
    assert match_classes(IMAGENET, IDS).kind == "same"
    assert match_classes(IMAGENET, [IDS[5], IDS[2]]).rows == (5, 2)
    assert match_classes(IMAGENET, ["goldfish", "Great_White-Shark"]).rows == (1, 2)
    assert match_classes(IMAGENET, ["Carassius auratus", "tench, Tinca tinca"]).rows == (1, 0)


def test_a_name_that_two_classes_share_matches_neither():
    assert sum(described == "crane" for described in NAMES) == 2  # the bird, the machine
    assert match_classes(IMAGENET, ["crane"]) is None


def test_every_imagenet_class_is_found_by_its_whole_name_unless_another_has_it_too():
    for row, name in enumerate(NAMES):
        match = match_classes(IMAGENET, [name])
        shared = sum(name.lower() == other.lower() for other in NAMES) > 1
        assert match is None if shared else match.rows == (row,), name


def test_two_classes_of_the_data_cannot_be_one_of_the_model():
    assert match_classes(IMAGENET, ["goldfish", "Carassius auratus"]) is None


def test_case_underscores_and_hyphens_do_not_matter():
    assert match_classes(model_config("Hot_Dog", "ice-cream"), ["ICE CREAM", "hot dog"]).rows == (
        1,
        0,
    )


def test_imagenet_is_identified_by_its_ids():
    assert is_imagenet(sorted(IDS, reverse=True))
    assert not is_imagenet(IDS[:999])


def test_ids_are_described_for_people():
    assert describe_classes([IDS[1], IDS[0]]) == (
        "goldfish, Carassius auratus",
        "tench, Tinca tinca",
    )
    assert describe_classes([IDS[1], "my cat"]) is None


def test_a_whole_name_comes_before_another_classes_synonym():
    """ImageNet's 'cardigan' is a garment; a Welsh corgi has it among its synonyms."""
    model_config = find("deit_tiny").to_model_config()
    match = match_classes(model_config, ["cardigan", "harp", "missile"])
    assert match is not None
    assert model_config.descriptions[match.rows[0]] == "cardigan"


def test_names_that_differ_only_in_case_or_signs_are_classes_of_their_own():
    assert match_classes(model_config("A", "a", "-1", "1"), ["A", "a", "-1", "1"]).kind == "same"


@pytest.mark.parametrize(
    "name", ["tench", "Tinca tinca", "TENCH", "tinca-tinca", "n01440764", "0", NAMES[0]]
)
def test_a_class_is_found_by_label_synonym_wordnet_id_and_number(name):
    assert find_class(IMAGENET, name) == 0


def test_a_class_that_is_called_a_number_comes_before_the_one_that_has_it():
    digits = model_config("9", "8", "7")
    assert find_class(digits, "9") == 0
    assert find_class(digits, "1") == 1
    with pytest.raises(
        ConfigError, match="no class '3'. Classes may also be given by number, 0 to 2"
    ):
        find_class(digits, "3")


def test_a_class_of_a_model_without_names_has_its_number():
    assert find_class(ModelConfig(architecture="x", num_classes=4), "3") == 3


def test_a_name_that_two_classes_share_is_refused_with_their_numbers():
    with pytest.raises(
        ConfigError, match=r"2 classes are called 'crane'. Give the class by number: 134, 517"
    ):
        find_class(IMAGENET, "crane")


def test_a_synonym_of_several_classes_lists_them():
    with pytest.raises(
        ConfigError, match=r"no class 'cat'. Did you mean 'tabby cat' or 'tiger cat' or"
    ):
        find_class(IMAGENET, "cat")


def test_a_number_of_absurd_length_is_no_class():
    with pytest.raises(ConfigError, match="no class"):
        find_class(IMAGENET, "1" * 5000)


def test_a_misspelled_class_suggests_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'tench'"):
        find_class(IMAGENET, "tensh")


def test_signs_make_other_classes():
    config = model_config("1", "B")
    assert match_classes(config, ("-1", "B")) is None
    assert match_classes(config, ("1", "B-")) is None
    assert match_classes(config, ("B",)).rows == (1,)
