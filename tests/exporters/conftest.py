"""Small models with configs, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset
from deitctl.events import SilentReporter
from deitctl.exporters.compare_outputs import Images, images
from deitctl.exporters.metadata import metadata_of
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.onnx import export_onnx
from deitctl.models.catalog import Architecture
from deitctl.models.factory import LoadedModel, build_model
from deitctl.models.vit import VisionTransformer

DIGITS = tuple(str(d) for d in range(10))


@pytest.fixture(scope="session")
def classifier(randomize: Callable[..., torch.nn.Module]) -> Callable[..., LoadedModel]:
    """Build a digits classifier of any name, every parameter random."""

    @cache
    def make(
        ref: str = "deit_tiny", *, img_size: int = 32, distilled: bool | None = None
    ) -> LoadedModel:
        loaded = build_model(
            ref,
            class_names=DIGITS,
            descriptions=[f"digit {d}" for d in DIGITS],
            img_size=img_size,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=distilled,
            reporter=SilentReporter(),
        )
        randomize(loaded.model)
        loaded.model.eval()
        return loaded

    return make


@pytest.fixture(scope="session")
def shallow(
    tiny_arch: Callable[..., Architecture], randomize: Callable[..., torch.nn.Module]
) -> Callable[..., LoadedModel]:
    """Build a DeiT of one block, quick to export."""

    def make(alias: str = "deit_tiny_distilled") -> LoadedModel:
        arch = replace(tiny_arch(alias), depth=1)
        model_config = replace(
            arch.to_model_config(), num_classes=10, class_names=DIGITS, descriptions=None
        )
        model = VisionTransformer(arch, num_classes=10, img_size=32)
        randomize(model)
        return LoadedModel(model.eval(), model_config)

    return make


@pytest.fixture(scope="session")
def network() -> Callable[[LoadedModel, str], ExportedClassifier]:
    def wrap(loaded: LoadedModel, head: str) -> ExportedClassifier:
        return ExportedClassifier(loaded.model, loaded.model_config, head)

    return wrap


@pytest.fixture(scope="session")
def sample(digit_datasets: tuple[ImageDataset, ImageDataset]) -> Callable[..., Images]:
    def make(loaded: LoadedModel, count: int = 18) -> Images:
        return images(digit_datasets[1], loaded.model_config.preprocessing, count)

    return make


@pytest.fixture(scope="session")
def answer() -> Callable[[ExportedClassifier, NDArray[np.uint8]], NDArray[np.float32]]:
    """Ask the network itself: logits and probabilities, [2,N,K]."""

    @torch.no_grad()
    def ask(network: ExportedClassifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return torch.stack(network(torch.from_numpy(pixels))).numpy()

    return ask


@pytest.fixture(scope="session")
def onnx_file(
    shallow: Callable[..., LoadedModel],
    network: Callable[[LoadedModel, str], ExportedClassifier],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The distilled DeiT of one block, its heads joined by avg-probs, as ONNX in fp32."""
    loaded, path = shallow(), tmp_path_factory.mktemp("onnx") / "m.onnx"
    wrapped = network(loaded, "avg-probs")
    export_onnx(
        wrapped, loaded.model_config, metadata_of(wrapped, loaded.model_config, "onnx"), path
    )
    return path
