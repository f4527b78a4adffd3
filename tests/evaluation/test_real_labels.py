"""ReaL labels: any of the labels is right, images without one do not count, other images are refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from deitctl.errors import DataError
from deitctl.evaluation.real_labels import map_to_imagenet, read_real_labels, score_real_labels
from deitctl.evaluation.result import RealLabelScore
from deitctl.models.catalog import load_imagenet_classes

NAMES = [f"val/n01440764/ILSVRC2012_val_{n:08d}.JPEG" for n in (3, 1, 2)]


def scored(preds, names=NAMES):
    result = SimpleNamespace(indices=torch.arange(len(preds)), topk_preds=torch.tensor(preds))
    return result, SimpleNamespace(name=names.__getitem__)


def to_imagenet(class_names):
    return map_to_imagenet(SimpleNamespace(class_names=class_names))


IDS = load_imagenet_classes()[0]


def test_by_hand():
    labels = [[5, 7], [], [2]]  # of images 1, 2 and 3
    score = score_real_labels(*scored([[1, 2], [7, 0], [9, 9]]), to_imagenet(IDS), labels)
    # image 3: second guess; image 1: first; image 2 has no label
    assert score == RealLabelScore(2, 50.0, 100.0)


def test_labels_are_imagenets_whatever_the_order_of_the_models_classes():
    """A model whose classes 0, 1 and 2 are ImageNet's 2, 7 and 5, with three that are not ImageNet's."""
    others = ("my cat", "my dog", "my owl")
    names, labels = (IDS[2], IDS[7], IDS[5], *others), [[5, 7], [], [2]]
    assert score_real_labels(
        *scored([[3, 0], [1, 0], [3, 3]]), to_imagenet(names), labels
    ) == RealLabelScore(2, 50.0, 100.0)
    with pytest.raises(DataError, match="not ImageNet's"):
        to_imagenet(("my cat", "my dog"))


def test_images_that_are_not_imagenets_are_refused():
    with pytest.raises(DataError, match=r"cat\.jpg has no ReaL labels"):
        score_real_labels(*scored([[1]], ["cat.jpg"]), to_imagenet(IDS), [[1]])
    with pytest.raises(DataError, match="val_00000003"):
        score_real_labels(*scored([[1]]), to_imagenet(IDS), [[1]])
    with pytest.raises(DataError, match="None of the images"):
        score_real_labels(*scored([[1]]), to_imagenet(IDS), [[], [], []])


def test_a_file_is_read_and_others_are_refused(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[1, 2], []]))
    assert read_real_labels(path) == [[1, 2], []]
    for wrong in ("{}", "[1]", "[[-1]]", "[[1000]]", "[[true]]", "not json", "[[1.5]]"):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"real\.json"):
            read_real_labels(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_real_labels(tmp_path / "none.json")
