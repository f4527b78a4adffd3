"""Labels in a file of their own are read, and numbers are never guessed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from deitctl.checks.ground_truth import find_label, read_ground_truth
from deitctl.errors import DataError

IDS = ("n00000030", "n00000010", "n00000020")
"""The devkit's 1, 2, 3, which are not in the order of the WordNet ids."""


@pytest.fixture
def devkit(tmp_path) -> Path:
    """A devkit of three classes and four validation images."""
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    rows = [(number, wnid, "words") for number, wnid in enumerate(IDS, start=1)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n1\n2\n")
    return data


def test_the_devkit_gives_wordnet_ids_by_its_own_numbers(devkit):
    truth = read_ground_truth(devkit.parent)
    assert (
        truth
        == read_ground_truth(devkit)
        == read_ground_truth(devkit / "ILSVRC2012_validation_ground_truth.txt")
    )
    assert [find_label(f"val/ILSVRC2012_val_0000000{i}.JPEG", truth) for i in (1, 2, 3, 4, 5)] == [
        "n00000020",
        "n00000030",
        "n00000030",
        "n00000010",
        None,
    ]


def test_without_meta_mat_the_devkit_is_refused(devkit):
    (devkit / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"meta\.mat, .* is missing\. .*Kaggle"):
        read_ground_truth(devkit)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "meta.mat").write_bytes(b"no mat file"), "is not the devkit's meta.mat"),
        (lambda d: savemat(d / "meta.mat", {"other": 1}), "is not the devkit's meta.mat"),
        (
            lambda d: (d / "ILSVRC2012_validation_ground_truth.txt").write_text("4\n"),
            "class 4, which meta.mat",
        ),
        (lambda d: (d / "ILSVRC2012_validation_ground_truth.txt").write_text("\n"), "is empty"),
        (
            lambda d: (d / "ILSVRC2012_validation_ground_truth.txt").unlink(),
            "has no ILSVRC2012_validation",
        ),
    ],
)
def test_a_broken_devkit_is_refused(break_it, message, devkit):
    break_it(devkit)
    with pytest.raises(DataError, match=message):
        read_ground_truth(devkit)


def test_without_scipy_the_devkit_is_refused(devkit, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match="pip install scipy"):
        read_ground_truth(devkit)


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,PredictionString\na,n00000010 1 2 3 4 n00000010 5 6 7 8\nb,n00000020 1 2 3 4\n",
        "a.JPEG n00000010\nb.JPEG n00000020\n",
        "val/a.JPEG\tn00000010\n\nval/b.JPEG\tn00000020\n",
        "filename,label\na.JPEG,n00000010\nb.JPEG, n00000020\n",
    ],
)
def test_kaggles_file_and_plain_rows_are_read(text, tmp_path):
    (tmp_path / "truth").write_text(text)
    truth = read_ground_truth(tmp_path / "truth")
    assert [find_label(f"{name}.JPEG", truth) for name in "abc"] == ["n00000010", "n00000020", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg ../../etc\n", "without a file name and a label"),
        ("a.jpg\n", "without a file name and a label"),
        ("a.jpg cat\na.jpg dog\n", "two labels, 'cat' and 'dog'"),
    ],
)
def test_rows_that_cannot_be_folders_are_refused(text, message, tmp_path):
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_ground_truth(tmp_path / "truth.txt")
