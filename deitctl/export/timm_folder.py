"""A folder that timm loads by itself: weights and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deitctl.card import ModelCard, to_timm_config
from deitctl.checkpoint import CONFIG, WEIGHTS, save_tensors, write_json
from deitctl.export.network import ExportedClassifier
from deitctl.models.layers import layer_names, shipping_card
from deitctl.models.vit import VisionTransformer

HEAD = "avg-logits"  # what timm's distilled models answer with in eval mode, whatever was asked of ours


def export_timm_folder(network: ExportedClassifier, card: ModelCard, metadata: Mapping[str, str], path: Path) -> None:
    """Write a model for `timm.create_model("local-dir:PATH", pretrained=True)`.

    Args:
        network: whose model to write; its normalisation and head rule stay behind, config.json tells them.
        card: its card.
        metadata: unused, config.json has the same.
        path: the folder.
    """
    model = network.model
    config = to_timm_config(shipping_card(model, card), **layer_names(model))
    if not isinstance(model, VisionTransformer):
        # where this is true timm builds with `img_size`, which a convnet does not take
        config["pretrained_cfg"]["fixed_input_size"] = bool(dict(model.pretrained_cfg).get("fixed_input_size"))
    save_tensors(path / WEIGHTS, model.state_dict())
    write_json(path / CONFIG, config)
