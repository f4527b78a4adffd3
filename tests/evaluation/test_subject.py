"""Classes that data and model do not share, where images have several labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from deitctl.data.labels import name_labels
from deitctl.data.readers.digits import ArrayDataset
from deitctl.errors import DataError
from deitctl.evaluation.subject import build_subjects, drop_unknown_classes, settle_kind
from deitctl.models.catalog import find
from deitctl.models.model_config import ModelConfig

CONFIG = replace(
    find("deit_tiny").to_model_config(),
    num_classes=3,
    class_names=("cat", "dog", "eel"),
    descriptions=None,
    head="cls",
    task="multilabel",
)


def make_data(*class_names: str, labels=((1, 1), (0, 1))) -> ArrayDataset:
    columns = np.zeros((2, len(class_names)), bool)
    columns[:, :2] = labels
    return ArrayDataset(np.zeros((2, 8, 8), np.uint8), columns, class_names, "grays")


def match(dataset, reporter, config: ModelConfig = CONFIG):
    dataset = drop_unknown_classes([config], dataset)
    (subject,) = build_subjects(
        ["m"], [(nn.Identity(), config)], ["native"], "t.csv", dataset, reporter
    )
    return subject


def test_a_class_without_images_counts_where_the_data_names_it(reporter):
    subject = match(make_data("cat", "dog", "eel"), reporter)
    assert subject.eval_model.rows == (0, 1, 2)
    assert reporter.notes == []


def test_what_is_predicted_of_classes_that_the_data_does_not_name_is_said_not_to_count(reporter):
    assert match(make_data("cat", "dog"), reporter).eval_model.rows == (0, 1)
    assert reporter.notes[0].startswith(
        "t.csv does not have 1 of the 3 classes of m, for example 'eel': what it predicts of them does "
    )


def test_a_class_that_no_image_has_and_the_model_does_not_know_is_left_out(reporter):
    subject = match(make_data("cat", "dog", "fox", "eel"), reporter)
    assert subject.dataset.class_names == ("cat", "dog", "eel")
    assert name_labels(subject.dataset) == [("cat", "dog"), ("dog",)]
    with pytest.raises(
        DataError, match="does not have 1 of the 3 classes of t.csv, for example 'fox'"
    ):
        match(make_data("cat", "fox", "eel"), reporter)


def test_a_run_of_one_class_an_image_says_how_it_read_its_labels(tmp_path, reporter):
    """A copy of its data is read as it stands."""
    config = replace(CONFIG, task="classification")
    (tmp_path / "run.toml").write_text('data = "t.csv"\ntask = "classification"\n')
    with pytest.raises(DataError) as refused:
        settle_kind([str(tmp_path)], [config], "copy.csv", make_data("cat", "dog"), reporter)
    assert "--task classification reads them as it did" in refused.value.hint
