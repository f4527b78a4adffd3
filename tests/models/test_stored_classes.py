"""Names of classes that a checkpoint states are those of its head."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from deitctl.data.class_file import apply_class_names
from deitctl.models.build import build_model
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.factory import load_model
from deitctl.models.stored_classes import choose_class_names, read_class_lists

NAMES = ("tulip", "rosé", "daisy")


@pytest.mark.parametrize(
    ("stored", "where"),
    [
        ({"classes": list(NAMES)}, "classes"),
        ({"class_to_idx": {"daisy": 2, "tulip": 0, "rosé": 1}}, "class_to_idx"),
        ({"idx_to_class": {2: "daisy", 1: "rosé", 0: "tulip"}}, "idx_to_class"),
        ({"config": {"id2label": {"2": "daisy", "0": "tulip", "1": "rosé"}}}, "config.id2label"),
        ({"hyper_parameters": {"class_names": NAMES}}, "hyper_parameters.class_names"),
        ({"args": argparse.Namespace(labels=["tulip", "rose\u0301 ", "daisy"])}, "args.labels"),
        ({"meta": {"dataset_meta": {"CLASSES": NAMES}}}, "meta.dataset_meta.CLASSES"),
    ],
)
def test_names_that_a_checkpoint_states_are_taken_and_said(
    stored, where, deit, tmp_path: Path, reporter
):
    path = tmp_path / "x.pth"
    torch.save({"model": deit(classes=3).state_dict(), **stored}, path)
    loaded = load_model(str(path), reporter=reporter)
    assert loaded.model_config.class_names == NAMES
    said = f"{path}: deit_tiny, ImageNet mean and std, 3 classes named by {where}."
    assert reporter.notes == [said]


@pytest.mark.parametrize(
    "stored",
    [
        {"classes": ["a", "b"]},  # of another head
        {"classes": ["a", "b", "b"]},
        {"classes": ["a", "b", " "]},
        {"labels": [0, 1, 2]},
        {"class_to_idx": {"a": 0, "b": 1, "c": 3}},
        {"class_to_idx": {"a": 0, "b": 1, "c": 1}},
        {"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}},
        {"classes": 3},
        {"classes": None, "args": None},
    ],
)
def test_what_does_not_name_each_class_of_the_head_once_names_none(stored):
    assert choose_class_names(read_class_lists(stored), 3) == (None, None, "")


def test_two_orders_of_the_same_names_are_said_and_neither_is_taken():
    stored = {"classes": ["a", "b"], "class_to_idx": {"a": 1, "b": 0}}
    chosen = choose_class_names(read_class_lists(stored), 2)
    assert chosen.names is None
    assert chosen.clause == (
        "class names not taken: classes and class_to_idx have them in different orders"
    )


def test_a_thousand_own_classes_are_not_imagenets(deit, tmp_path, reporter):
    path, names = tmp_path / "x.pth", [f"bird {i}" for i in range(1000)]
    state = deit(classes=1000).state_dict()
    torch.save({"model": state, "class_to_idx": {n: i for i, n in enumerate(names)}}, path)
    loaded = load_model(str(path), reporter=reporter)
    assert loaded.model_config.label(3) == "bird 3"
    assert "taken as ImageNet-1k" not in reporter.notes[0]


def test_imagenets_names_stand_for_its_wordnet_ids():
    ids, labels = load_imagenet_classes()
    for names in (ids, labels, [label.split(",")[0] for label in labels]):
        assert choose_class_names(read_class_lists({"classes": names}), 1000).names == ids
    some = choose_class_names(read_class_lists({"classes": ids[:7]}), 7)
    assert (some.names, some.descriptions) == (ids[:7], labels[:7])


def test_a_training_takes_the_rows_of_the_head_by_the_stated_names(deit, tmp_path, reporter):
    net, path = deit(classes=3), tmp_path / "x.pth"
    torch.save({"model": net.state_dict(), "class_to_idx": {"c": 0, "b": 1, "a": 2}}, path)
    options = {"img_size": 32, "drop_path_rate": 0.0, "pretrained": False, "distilled": None}
    loaded = build_model(
        "deit_tiny", weights=str(path), class_names=("a", "b", "c"), reporter=reporter, **options
    )
    assert torch.equal(loaded.model.head.weight, net.head.weight[[2, 1, 0]])
    assert loaded.changes == ("the head keeps the weights' rows of the data's 3 classes",)
    assert "3 classes named by class_to_idx" in reporter.notes[0]


def test_names_of_the_user_replace_those_of_the_checkpoint_and_that_is_said(
    deit, tmp_path, reporter
):
    path = tmp_path / "x.pth"
    torch.save({"model": deit(classes=3).state_dict(), "classes": ["a", "b", "c"]}, path)
    loaded = load_model(str(path), reporter=reporter)
    named = apply_class_names(loaded.model_config, ["x", "b", "c"], str(path), reporter)
    assert named.class_names == ("x", "b", "c")
    assert "'a' by 'x' for example" in reporter.notes[-1]
