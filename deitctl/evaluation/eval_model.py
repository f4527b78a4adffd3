"""A model under an evaluation protocol: preprocessing, class indices and forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deitctl.data.batch_transforms import normalize
from deitctl.device import Device, ran_out_of_memory
from deitctl.errors import ConfigError
from deitctl.inference.onnx_classifier import OnnxClassifier
from deitctl.models import catalog
from deitctl.models.heads import forward_heads
from deitctl.models.introspect import compute_max_activation_bytes
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.vit import HeadLogits

PROTOCOLS = ("native", "deit", "timm", "hf")
DEIT_CROP_PCT = 224 / 256  # deit/datasets.py: resize to 256/224 of the input size, then crop


def get_preprocessing(model_config: ModelConfig, protocol: str) -> Preprocessing:
    """Return the preprocessing of a protocol under which DeiT accuracies have been published.

    The accuracies under them differ by tenths of a point.

    Args:
        model_config: of the model.
        protocol: `native`: the model's own; `deit`: of the released code (crop 0.875); `timm`: of
            timm's results table; `hf`: of Hugging Face's DeiTImageProcessorPil, which squashes
            an image to a square and then crops it.

    Raises:
        ConfigError: there is no such protocol, or timm publishes nothing for this architecture.
    """
    own = model_config.preprocessing
    if protocol == "native":
        return own
    if protocol == "deit":
        return replace(own, crop_pct=DEIT_CROP_PCT, crop_mode="center", interpolation="bicubic")
    if protocol == "hf":
        return replace(own, crop_pct=DEIT_CROP_PCT, crop_mode="squash", interpolation="bicubic")
    if protocol == "timm":
        arch = catalog.find(model_config.architecture)
        if arch is None:
            raise ConfigError(
                f"deitctl has no timm protocol for {model_config.architecture}.",
                "Its own is --protocol native.",
            )
        return replace(own, crop_pct=arch.crop_pct, crop_mode="center", interpolation="bicubic")
    raise ConfigError(f"There is no protocol {protocol!r}.", f"There are: {', '.join(PROTOCOLS)}.")


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model on its device, and how its predictions are taken."""

    model: nn.Module | OnnxClassifier
    preprocessing: Preprocessing
    rows: tuple[int, ...]
    """For each class of the data its index in the logits."""
    head: str
    """Head rule of the predictions (see `fuse_heads`)."""
    temperature: float = 1.0
    """What the fused logits are divided by."""
    thresholds: tuple[float, ...] | None = None
    """Of several labels an image: the probability from which each class of the data is predicted;
    None: thresholds are fitted to the images."""
    teacher_preds: Tensor | None = None
    """A teacher's prediction for each image, [N], as a class of the data; -1 where it has none. Of
    several labels [N,K]: 1 for a class that it predicts, 0 for others, -1 for all where it has none."""

    @property
    def is_exported(self) -> bool:
        """Whether the heads are fused inside, so that there is one head and no other rule."""
        return not isinstance(self.model, nn.Module)

    def forward(self, pixels: Tensor) -> HeadLogits:
        """Return the logits of images, uint8 [B,3,S,S] on the device.

        An exported file has fused heads: its logits are returned as those of the class head.
        """
        if isinstance(self.model, nn.Module):
            return forward_heads(self.model, normalize(pixels, self.preprocessing))
        return HeadLogits(torch.from_numpy(self.model.logits(pixels.cpu().numpy())), None)

    def forward_in_pieces(self, pixels: Tensor, device: Device) -> HeadLogits:
        """Return the logits of images, computed in pieces of the device's preferred size.

        Pieces are halved when memory runs out.
        """
        size = len(pixels)
        if isinstance(self.model, nn.Module):
            largest = compute_max_activation_bytes(self.model, device.dtype)
            size = device.preferred_micro_batch_size(largest) or size
        if len(pixels) <= size:
            try:
                with device.autocast():
                    return self.forward(pixels)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error) or len(pixels) == 1:
                    raise
            device.empty_cache()
            size = len(pixels) // 2
        pieces = [self.forward_in_pieces(piece, device) for piece in torch.split(pixels, size)]
        cls, dist = zip(*pieces, strict=True)
        return HeadLogits(torch.cat(cls), None if dist[0] is None else torch.cat(dist))
