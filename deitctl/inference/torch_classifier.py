"""A torch model as a classifier backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from deitctl.data.batch_transforms import normalize
from deitctl.data.class_file import Classes, apply_class_names
from deitctl.data.eval_transform import Pixels
from deitctl.device import INFERENCE_PRECISION, Device, choose_device
from deitctl.events import Reporter
from deitctl.inference.classifier import Scores
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, forward_heads, fuse_heads, to_probs
from deitctl.models.model_config import ModelConfig
from deitctl.pieces import Pieces
from deitctl.sizes import ImageSize


@dataclass(frozen=True)
class TorchClassifier:
    """A model in eval mode on a device; `model_config.head` is the head rule in use."""

    model: nn.Module
    model_config: ModelConfig
    device: Device
    resizes_images: bool = False

    @cached_property
    def pieces(self) -> Pieces:
        """How batches are divided: where memory runs out, in halves from then on."""
        return Pieces(self.device)

    @torch.inference_mode()
    def logits(self, pixels: Pixels) -> Scores:
        """Return logits [B,K] of images uint8 [B,3,S,S], heads fused, before the temperature."""
        logits: Scores = np.concatenate([part.cpu() for part in self._forward(pixels)])
        return logits

    @torch.inference_mode()
    def scores(self, pixels: Pixels) -> Scores:
        """Return probabilities of logits / temperature, [B,K], of images uint8 [B,3,S,S]."""
        temperature = self.model_config.temperature(self.model_config.head)
        probs = [
            to_probs(part / temperature, self.model_config.task) for part in self._forward(pixels)
        ]
        scores: Scores = np.concatenate([part.cpu() for part in probs])
        return scores

    def _forward(self, pixels: Pixels) -> list[Tensor]:
        """Return fused logits, float32 [B,K] on the device, in parts that memory has room for."""
        host = self.device.pin(torch.from_numpy(pixels))

        def compute(part: slice) -> Tensor:
            images = self.device.to_device(host[part])
            images = normalize(images, self.model_config.preprocessing)
            with self.device.autocast():
                heads = forward_heads(self.model, images)
            return fuse_heads(heads, self.model_config.head, self.model_config.task).float()

        with self.device.computing():
            return list(self.pieces.compute(len(host), compute))


def load_torch_classifier(
    ref: str,
    *,
    weights: str,
    classes: Classes,
    task: str,
    threshold: float | None,
    head: str,
    img_size: ImageSize,
    device: str,
    precision: str,
    reporter: Reporter,
) -> TorchClassifier:
    """Load a model onto a device; arguments and errors as `deitctl.inference.classifier.load`."""
    loaded = load_model(ref, weights=weights, img_size=img_size, reporter=reporter)
    model_config = apply_class_names(loaded.model_config, classes, weights or ref, reporter)
    model_config = model_config.with_task(task, threshold)
    chosen = choose_device(device, INFERENCE_PRECISION if precision == "auto" else precision)
    rule = choose_head(head, model_config.head, loaded.model)
    model_config = replace(model_config, head=rule)
    return TorchClassifier(chosen.to_device(loaded.model), model_config, chosen)
