"""A teacher's new classifier is ridge regression on its features, in closed form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from deitctl.config import TrainConfig
from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.distributed import SINGLE_PROCESS
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import save_model
from deitctl.models.factory import load_model
from deitctl.models.features import forward_heads_and_features
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.timm_models import create_model
from deitctl.recipes import get_finetune_recipe
from deitctl.training.head_init import PENALTIES
from deitctl.training.teacher_head import fit_teacher_head


def test_the_head_of_twenty_images_is_that_of_the_closed_form(
    little: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    """But for the scale that makes logits of fitted values, and for one of the penalties."""
    torch.manual_seed(0)
    model = create_model("test_vit", num_classes=0, img_size=32)
    own = ModelConfig(
        architecture="test_vit", num_classes=0, preprocessing=Preprocessing(img_size=32)
    )
    save_model(tmp_path / "backbone", model.state_dict(), own, describe_layers(model))
    train = select(little[0], range(0, 60, 3))
    recipe = replace(
        get_finetune_recipe("head", built_in=True), epochs=0, img_size=32, pretrained=False
    )
    config = TrainConfig(
        model=str(tmp_path / "backbone"),
        data="digits",
        recipe=recipe,
        precision="fp32",
        workers=0,
        output_dir=str(tmp_path / "head"),
    )
    (tmp_path / "head").mkdir()
    fit_teacher_head(config, train, choose_device("cpu", "fp32"), SilentReporter(), SINGLE_PROCESS)
    assert json.loads((tmp_path / "head" / "result.json").read_text())["num_images"] == 20
    loaded = load_model(str(tmp_path / "head"), reporter=SilentReporter())
    pre = loaded.model_config.preprocessing
    (batch,) = build_eval_loader(
        train, [pre.without_normalization], batch_size=20, workers=0, pin_memory=False
    )
    with torch.no_grad():
        _, features = forward_heads_and_features(loaded.model, normalize(batch.images[0], pre))
    x = features.double() - features.double().mean(0)
    y = torch.eye(10, dtype=torch.float64)[batch.labels]
    variance = x.square().sum() / x.shape[1]
    weight = loaded.model.get_submodule("head").weight.detach().double()
    errors = []
    for penalty in PENALTIES:
        damped = x.T @ x + (penalty * variance + 1e-12) * torch.eye(x.shape[1])
        expected = torch.linalg.solve(damped, x.T @ (y - y.mean(0))).T
        scale = (weight * expected).sum() / expected.square().sum()
        errors.append(float((weight - scale * expected).norm() / weight.norm()))
    assert min(errors) < 1e-3
