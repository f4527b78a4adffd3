"""Shared images, models and reporters: small, real and offline."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["HF_HOME"] = (
    "/nonexistent/deitctl-tests"  # no cached weights: the same result on every machine
)

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers.digits import load_digits
from deitctl.data.subsets import select
from deitctl.events import SilentReporter
from deitctl.models import timm_models
from deitctl.models.build import build_model
from deitctl.models.catalog import Architecture, find
from deitctl.models.checkpoint_io import save_model
from deitctl.models.convert import resize_architecture
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.vit import VisionTransformer
from deitctl.recipes import DIGITS
from deitctl.training.launch import run_training

torch.set_num_threads(1)  # models this small only wait for each other's threads
settings.register_profile(
    "deitctl", deadline=None, max_examples=30, derandomize=True, database=None
)
settings.load_profile("deitctl")


ELSEWHERE = ("CUDA", "MPS", "Windows", "macOS", "SIGUSR1", "not on this machine")
"""Words in the reasons of skips that no installation can do anything about."""


def passes_permissions() -> bool:
    """Say whether a file that nobody may read can be read all the same, as root does."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """File permissions do not hold for root: CI runs these tests in a run of their own, without that right."""
    if passes_permissions():
        dropped = [item for item in items if item.get_closest_marker("unprivileged")]
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def fail_if_incomplete(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where the environment promises every optional part."""
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if report.skipped and not any(word in reason for word in ELSEWHERE):
        report.outcome = "failed"
        report.longrepr = f"skipped although DEITCTL_TESTS_COMPLETE is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("DEITCTL_TESTS_COMPLETE") and not hasattr(report, "wasxfail"):
        fail_if_incomplete(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if os.environ.get("DEITCTL_TESTS_COMPLETE"):
        fail_if_incomplete(report)
    return report


class Recorder(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights from this machine, and no teacher or word from another test."""
    monkeypatch.delenv("DEITCTL_WEIGHTS", raising=False)
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_open_shards() -> Iterator[None]:
    """Shards stay open for the whole process; tests that lower its limit of open files would meet them."""
    yield
    if "deitctl.data.shard_files" in sys.modules:
        sys.modules["deitctl.data.shard_files"].get_opener.cache_clear()


@pytest.fixture
def reporter() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def digit_datasets() -> tuple[ImageDataset, ImageDataset]:
    """The built-in set: training and validation images."""
    return load_digits()


@pytest.fixture(scope="session")
def make_image(digit_datasets: tuple[ImageDataset, ImageDataset]) -> Callable[..., Image.Image]:
    """Make an RGB image of any size: a colored gradient with handwritten digits on it."""
    train, _ = digit_datasets

    def make(width: int = 96, height: int = 72, seed: int = 0) -> Image.Image:
        x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
        rows = [
            np.broadcast_to(c, (height, width))
            for c in (x + 0 * y, y + 0 * x, (x + 2 * y + 37 * seed) % 256)
        ]
        image = Image.fromarray(np.stack(rows, axis=-1).astype(np.uint8), "RGB")
        for turn in range(3):
            digit = train.read(7 * seed + turn).resize((max(1, width // 3), max(1, height // 2)))
            image.paste(digit, (turn * width // 3, (turn % 2) * height // 2))
        return image

    return make


@pytest.fixture
def image_folder(tmp_path: Path, make_image: Callable[..., Image.Image]) -> Callable[..., Path]:
    """Write images into folders: `{"train/cat": 3}` makes train/cat/0.png .. 2.png below a new root."""

    def make(counts: Mapping[str, int], root: str = "images") -> Path:
        seed = 0
        for folder, count in counts.items():
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                make_image(24, 18, seed % 200).save(tmp_path / root / folder / f"{number}.png")
                seed += 1
        return tmp_path / root

    return make


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    """Fill every parameter with small normal noise, so that zeros and ones hide no mistake."""

    def fill(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(
                    1 + 0.1 * noise if parameter.ndim == 1 and "norm" in name else 0.05 * noise
                )
        return model

    return fill


@pytest.fixture(scope="session")
def tiny_arch() -> Callable[..., Architecture]:
    """A DeiT of the catalog at another input size."""

    def make(alias: str = "deit_tiny", img_size: int = 32) -> Architecture:
        arch = find(alias)
        assert arch is not None
        return resize_architecture(arch, img_size)

    return make


@pytest.fixture(scope="session")
def deit(
    tiny_arch: Callable[..., Architecture], randomize: Callable[..., nn.Module]
) -> Callable[..., VisionTransformer]:
    """A randomized DeiT with few classes and a small input."""

    def make(
        alias: str = "deit_tiny",
        *,
        classes: int = 5,
        img_size: int = 32,
        seed: int = 0,
        drop_path_rate: float = 0.0,
    ) -> VisionTransformer:
        arch = tiny_arch(alias, img_size)
        model = VisionTransformer(
            arch, num_classes=classes, img_size=img_size, drop_path_rate=drop_path_rate
        )
        randomize(model, seed)
        return model.eval()

    return make


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Normal noise of a shape, the same every time."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def little(digit_datasets: tuple[ImageDataset, ImageDataset]) -> tuple[ImageDataset, ImageDataset]:
    """60 training and 30 validation digits of all ten classes."""
    train, val = digit_datasets
    pick = [
        np.concatenate([np.flatnonzero(s.labels == d)[:n] for d in range(10)])
        for s, n in ((train, 6), (val, 3))
    ]
    return select(train, pick[0]), select(val, pick[1])


@pytest.fixture
def little_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """Make a configuration of the digits recipe at 32 pixels, with every random part on; runs go below `tmp_path`.

    A DeiT has two blocks, the fewest of which one is dropped at random; `model_args={}` is its own shape.
    """
    monkeypatch.chdir(tmp_path)

    def make(output: str, **changes: object) -> TrainConfig:
        augment = replace(
            DIGITS.augment,
            rand_augment="rand-m9-mstd0.5-inc1",
            random_erase_prob=0.5,
            mixup=0.8,
            cutmix=1.0,
            repeated_aug=2,
            student_affine=(6.0, 0.06, 0.05),
        )
        recipe = replace(
            DIGITS, img_size=32, epochs=3, batch_size=16, drop_path_rate=0.2, augment=augment
        )
        config = TrainConfig(
            model="deit_tiny",
            data="digits",
            recipe=recipe,
            precision="fp32",
            workers=0,
            output_dir=str(tmp_path / output),
        )
        config = replace(config, **changes)  # type: ignore[arg-type]
        is_own = "model_args" in changes or find(config.model) is None
        return config if is_own else replace(config, model_args={"depth": 2})

    return make


@pytest.fixture(scope="session")
def taught_once(
    tmp_path_factory: pytest.TempPathFactory, little: tuple[ImageDataset, ImageDataset]
) -> Path:
    """A convnet that has learned a little of the digits: a run folder that no test may change."""
    root = tmp_path_factory.mktemp("teacher") / "teacher"
    recipe = replace(DIGITS, img_size=32, epochs=8, batch_size=16)
    config = TrainConfig(
        model="test_resnet",
        data="digits",
        recipe=recipe,
        precision="fp32",
        workers=0,
        output_dir=str(root),
    )
    return run_training(config, datasets=little).run


@pytest.fixture
def digits_teacher(taught_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(taught_once / name, tmp_path / "teacher" / name)
    return tmp_path / "teacher"


@pytest.fixture
def imagenet_teacher(tmp_path: Path) -> Callable[..., Path]:
    """Make a timm folder of an untrained classifier of ImageNet's thousand classes."""

    def make(architecture: str = "test_resnet", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = timm_models.create_model(architecture, num_classes=1000, img_size=32)
        model_config = timm_models.read_model_config(model, architecture, 1000).at_size(32)
        folder = tmp_path / f"imagenet-{architecture}-{seed}"
        save_model(folder, model.state_dict(), model_config, describe_layers(model))
        return folder

    return make


@pytest.fixture
def distilled(
    little_config: Callable[..., TrainConfig], digits_teacher: Path
) -> Callable[..., TrainConfig]:
    """Make the configuration of a student of `digits_teacher` with 2 views.

    Keywords are `distill` settings, and `model_args` as of `little_config`.
    """

    def make(
        output: str, *, model_args: Mapping[str, object] | None = None, **changes: object
    ) -> TrainConfig:
        values: dict[str, object] = {
            "teacher": str(digits_teacher),
            "mode": "hard",
            "alpha": 0.5,
            "tau": 3.0,
            "reduction": "batchmean",
            "dist_token": True,
            "teacher_input": "unmixed",
            "views": 2,
            "logits_topk": 4,
            "allow_weak_teacher": True,
        }
        distill = DistillConfig(**{**values, **changes})  # type: ignore[arg-type]
        own = {} if model_args is None else {"model_args": model_args}
        return little_config(output, distill=distill, **own)

    return make


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled digits classifier of one block in a folder, which no test may change."""
    torch.manual_seed(0)
    loaded = build_model(
        "deit_tiny",
        class_names=[str(d) for d in range(10)],
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=True,
        reporter=SilentReporter(),
        model_args={"depth": 1},
    )
    folder = tmp_path_factory.mktemp("model") / "seven"
    model_config = pin_img_size(loaded.model, loaded.model_config)
    save_model(folder, loaded.model.state_dict(), model_config, describe_layers(loaded.model))
    return folder
