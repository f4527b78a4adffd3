"""Small models with configs, and images for them."""

from __future__ import annotations

import subprocess
import sys
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
from deitctl.exporters import compare as compare_module
from deitctl.exporters.compare import Verification, compare, compare_quantized, run_checked
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.golden import Golden
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.verification_images import Images, Outputs, read_images
from deitctl.models.build import build_model
from deitctl.models.catalog import Architecture
from deitctl.models.factory import LoadedModel
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
        return read_images(digit_datasets[1], loaded.model_config.preprocessing, count)

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
        wrapped, loaded.model_config, collect_metadata(wrapped, loaded.model_config, "onnx"), path
    )
    return path


@pytest.fixture(scope="session")
def verify_fp32() -> Callable[..., Verification]:
    """Run an export in a fresh process and compare it, to the tolerance of its format."""

    def verify(
        name: str, path: Path, expected: Outputs, images: Images, golden: Golden | None = None
    ) -> Verification:
        outputs = run_checked(name, path, images.pixels, golden)
        return compare(outputs, expected, images.names, FORMATS[name].tolerance)

    return verify


@pytest.fixture(scope="session")
def verify_quantized() -> Callable[..., Verification]:
    """Run a quantized export in a fresh process and compare it."""

    def verify(
        name: str, path: Path, expected: Outputs, images: Images, tolerance: float
    ) -> Verification:
        outputs = run_checked(name, path, images.pixels, None)
        return compare_quantized(outputs, expected, images.names, tolerance)

    return verify


@pytest.fixture
def replace_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Run a program in the place of runner.py; its arguments are FORMAT PATH IN OUT."""

    def replace_by(program: str) -> None:
        (tmp_path / "stand_in.py").write_text(program)
        monkeypatch.setattr(compare_module, "RUNNER", tmp_path / "stand_in.py")

    return replace_by


@pytest.fixture
def run_without(tmp_path: Path) -> Callable[..., None]:
    """Run runner.py in the test's folder where some packages cannot be imported."""

    def run(packages: list[str], *arguments: str | Path) -> None:
        program = (
            "import runpy, sys\n"
            f"sys.modules.update(dict.fromkeys({packages}))\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        command = [sys.executable, "-I", "-c", program, compare_module.RUNNER, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True)

    return run
