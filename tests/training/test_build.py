"""What a run takes over of the weights that it starts from."""

from __future__ import annotations

import numpy as np
from torch import nn

from deitctl.data.readers.digits import ArrayDataset
from deitctl.models.factory import LoadedModel
from deitctl.models.model_config import ModelConfig
from deitctl.training.build import set_task


def test_temperatures_and_thresholds_are_those_of_the_weights_before_training():
    config = ModelConfig(
        architecture="x",
        num_classes=2,
        task="multilabel",
        temperatures={"cls": 0.4},
        thresholds={"cls": (0.2, 0.9)},
    )
    images = ArrayDataset(np.zeros((3, 8, 8), np.uint8), np.ones((3, 2), bool), ("a", "b"), "black")
    student = set_task(LoadedModel(nn.Identity(), config, weights="w.safetensors"), images)
    assert (student.model_config.temperatures, student.model_config.thresholds) == ({}, {})
    assert not student.has_new_head
