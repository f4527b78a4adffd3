"""A folder that timm loads by itself: weights and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deitctl.exporters.metadata import METADATA, write_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS, save_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import ModelConfig

HEAD = "avg-logits"  # what timm's distilled models answer with in eval mode, whatever was asked of ours
FILES = (CONFIG, WEIGHTS, METADATA)
USAGE = """\
import timm, torch
from PIL import Image

model = timm.create_model("local-dir:PATH", pretrained=True).eval()  # from the hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    logits = model(transform(Image.open("image.jpg").convert("RGB"))[None])
print(model.pretrained_cfg.get("label_names", range(model.num_classes))[int(logits.argmax())])
"""


def export_timm_folder(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a model for `timm.create_model("local-dir:PATH", pretrained=True)`.

    Args:
        network: whose model to write; its normalization and head rule stay behind, config.json tells them.
        model_config: its config.
        metadata: what the folder says of itself to `verify`; timm reads config.json.
        path: the folder.
    """
    model = network.model
    save_model(path, model.state_dict(), pin_img_size(model, model_config), describe_layers(model))
    write_metadata(path, metadata)
