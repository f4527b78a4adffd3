"""A model of any kind as a classifier, run by torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from deitctl.data.eval_transform import Pixels
from deitctl.data.batch_transforms import normalize
from deitctl.device import INFERENCE_PRECISION, Device, choose_device
from deitctl.events import Reporter
from deitctl.inference.predict import Scores
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig


@dataclass(frozen=True)
class TorchClassifier:
    """A model in eval mode on a device; `card.head` is the rule that joins its heads."""

    model: nn.Module
    model_config: ModelConfig
    device: Device

    @torch.inference_mode()
    def scores(self, pixels: Pixels) -> Scores:
        """Classify images, uint8 [B,3,S,S]: probabilities [B,K], softmax(logits / temperature of the rule)."""
        images = normalize(
            self.device.to_device(torch.from_numpy(pixels)), self.model_config.preprocessing
        )
        with self.device.autocast():
            heads = forward_heads(self.model, images)
        logits = fuse_heads(heads, self.model_config.head).float()
        scores: Scores = (
            (logits / self.model_config.temperature(self.model_config.head))
            .softmax(dim=1)
            .cpu()
            .numpy()
        )
        return scores


def load_torch_classifier(
    ref: str,
    *,
    weights: str,
    head: str,
    img_size: int,
    device: str,
    precision: str,
    reporter: Reporter,
) -> TorchClassifier:
    """Load a model to answer with.

    Args:
        ref: the model, see `load_model`; so are `weights` and `img_size`.
        weights: a file or folder with the weights of a `ref` that is a name.
        head: the rule that joins its heads; `auto` is the model's own.
        img_size: side of the input in pixels; 0 for the model's own.
        device: see `choose_device`.
        precision: of its arithmetic; `auto` is fp32.
        reporter: where a download is shown.

    Raises:
        ModelError: no such model, weights that do not fit, or a head that it does not have.
        ConfigError: no such device or precision.
    """
    loaded = load_model(ref, weights=weights, img_size=img_size, reporter=reporter)
    where = choose_device(device, INFERENCE_PRECISION if precision == "auto" else precision)
    how = choose_head(head, loaded.model_config.head, loaded.model)
    return TorchClassifier(
        where.to_device(loaded.model), replace(loaded.model_config, head=how), where
    )
