"""A warning tells of validation images that a model was trained on; processes that see others do not train."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import select
from deitctl.data.training_data import Source, open_for_training
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.model_config import ValueRange
from deitctl.training.launch import run_training
from deitctl.training.own_images import require_same_images, warn_of_trained_images

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def list_names(dataset: ImageDataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset.labels))]


def test_validation_images_that_a_run_was_trained_on_are_a_warning_with_the_way_on(
    little_config: Make, image_folder: Callable[..., Path], reporter: Any
) -> None:
    data = str(image_folder({"a": 10, "b": 10}))
    config = little_config("first", data=data)
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    run = str(run_training(config).run)
    train, val = open_for_training(Source(data), reporter=SilentReporter())
    warn_of_trained_images(replace(config, model=run), val, reporter)
    assert reporter.warnings == []
    _, val = open_for_training(Source(data, split_seed=1), reporter=SilentReporter())
    count = len(set(list_names(val)) & set(list_names(train)))
    assert count > 0
    for name in ("model", "weights"):
        warn_of_trained_images(replace(config, split_seed=1, **{name: run}), val, reporter)
        assert reporter.warnings.pop() == (
            f"{count} of the {len(val.labels)} validation images are training images of --{name} {run}: "
            "accuracies on them say nothing about new images. Use its split: --split-seed 0."
        )
    # as the run itself says before its first step
    run_training(replace(config, split_seed=1, weights=run, output_dir="second"), reporter=reporter)
    assert sum("are training images of --weights" in text for text in reporter.warnings) == 1


class Recorder(World):
    """The second of two processes: the first has said what this one says at its first call."""

    said: tuple[Any, ...] = ()

    def all_gather_object(self, value: Any) -> list[Any]:
        if not Recorder.said:
            Recorder.said = value
        return [Recorder.said, value]


def test_processes_that_see_other_images_do_not_train(little: Pair) -> None:
    (train, val), second = little, Recorder(1, 2)
    for _ in range(2):
        require_same_images("digits", train, val, second)
    for others in ((val, train), (train, select(val, range(29))), (select(train, range(59)), val)):
        require_same_images("digits", *others, SINGLE_PROCESS)
        with pytest.raises(DataError, match="different training and validation images of digits"):
            require_same_images("digits", *others, second)
    twelve, ten = (train.with_value_range(ValueRange(0, high)) for high in (4095, 1023))
    Recorder.said = ()
    require_same_images("digits", twelve, val, second)
    for other, names in ((ten, "10 bits (0..1023), 12 bits"), (train, "12 bits (0..4095), none")):
        with pytest.raises(DataError, match=re.escape(f"images of digits otherwise: {names}")):
            require_same_images("digits", other, val, second)
