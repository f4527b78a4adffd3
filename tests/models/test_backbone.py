"""A network without a classifier is loaded for its features."""

from __future__ import annotations

from pathlib import Path

import torch

from deitctl.events import SilentReporter
from deitctl.models.backbone import lacks_classifier, load_backbone
from deitctl.models.checkpoint_io import save_model
from deitctl.models.features import forward_heads_and_features
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.timm_models import create_model


def test_a_folder_without_a_head_gives_the_features_of_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("test_vit", num_classes=0, img_size=32).eval()
    config = ModelConfig(
        architecture="test_vit", num_classes=0, preprocessing=Preprocessing(img_size=32)
    )
    save_model(tmp_path, model.state_dict(), config, describe_layers(model))
    assert lacks_classifier(str(tmp_path), "", SilentReporter())
    loaded = load_backbone(str(tmp_path), reporter=SilentReporter())
    assert (loaded.model_config.num_classes, loaded.model_config.class_names) == (0, None)
    images = torch.randn(2, 3, 32, 32)
    _, features = forward_heads_and_features(loaded.model, images)
    assert torch.equal(features, forward_heads_and_features(model, images)[1])
