"""Loads the models that are evaluated, and settles the range of images of more than 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from deitctl.data.class_file import apply_class_names
from deitctl.data.dataset import ImageDataset
from deitctl.data.range_survey import settle_range
from deitctl.device import INFERENCE_PRECISION, Device, choose_device
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.evaluation.options import EvalOptions
from deitctl.events import Reporter
from deitctl.inference.onnx_classifier import SUFFIX, OnnxClassifier, load_onnx_classifier
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head
from deitctl.models.model_config import ModelConfig, parse_value_range

Network = nn.Module | OnnxClassifier


def is_onnx(ref: str) -> bool:
    """Whether a model is an exported ONNX file."""
    return ref.lower().endswith(SUFFIX)


def choose_eval_device(models: Sequence[str], device: str, precision: str) -> Device:
    """Return the device of all models; ONNX files alone run on the CPU."""
    only_onnx = all(is_onnx(ref) for ref in models)
    return choose_device(
        "cpu" if only_onnx and device == "auto" else device,
        INFERENCE_PRECISION if precision == "auto" else precision,
    )


def load_network(
    ref: str, chosen: Device, options: EvalOptions, reporter: Reporter
) -> tuple[Network, ModelConfig]:
    """Load a model, a torch one onto the chosen device; its config has the head rule and task in use."""
    if is_onnx(ref):
        # It runs on the CPU whatever the others do, so an explicit --device or --precision is
        # checked, not what was chosen for them.
        exported = load_onnx_classifier(
            ref,
            weights=options.weights,
            classes=options.classes,
            head=options.head,
            img_size=options.img_size,
            task=options.task,
            device=options.device,
            precision=options.precision,
            reporter=reporter,
        )
        return exported, exported.model_config
    loaded = load_model(ref, weights=options.weights, img_size=options.img_size, reporter=reporter)
    where = options.weights or ref
    model_config = apply_class_names(loaded.model_config, options.classes, where, reporter)
    rule = choose_head(options.head, model_config.head, loaded.model)
    model_config = replace(model_config.with_task(options.task), head=rule)
    return chosen.to_device(loaded.model), model_config


def settle_ranges(
    networks: list[tuple[Network, ModelConfig]],
    dataset: ImageDataset,
    option: str,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
) -> tuple[list[tuple[Network, ModelConfig]], ImageDataset]:
    """Return models with the value range of the option, and images with one for the other models; collective."""
    if (value_range := parse_value_range(option)) is not None:
        return [(network, config.with_value_range(value_range)) for network, config in networks], (
            dataset
        )
    if all(config.preprocessing.value_range is not None for _, config in networks):
        return networks, dataset

    def warn(message: str) -> None:
        reporter.warn(f"{message} The model has no range of its own.")

    chosen = world.run_on_main(lambda: settle_range([dataset], "auto", warn))
    return networks, dataset.with_value_range(chosen)
