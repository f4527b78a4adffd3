"""A folder that timm loads by itself: weights and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deitctl.card import ModelCard
from deitctl.checkpoint import save_model
from deitctl.exporters.network import ExportedClassifier
from deitctl.models.layers import layer_names, shipping_card

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
    save_model(path, model.state_dict(), shipping_card(model, card), layer_names(model))
