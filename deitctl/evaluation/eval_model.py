"""A model under an evaluation protocol: preprocessing, class indices and forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deitctl.data.batch_transforms import normalize
from deitctl.device import Device
from deitctl.errors import ConfigError
from deitctl.inference.onnx_classifier import OnnxClassifier
from deitctl.models import catalog
from deitctl.models.compiled import is_compiled
from deitctl.models.heads import forward_heads
from deitctl.models.introspect import compute_max_activation_bytes
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.vit import HeadLogits
from deitctl.pieces import Pieces

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

    def choose_piece_size(self, device: Device) -> int:
        """Return how many images the device computes fastest at a time; 0: any number."""
        if not isinstance(self.model, nn.Module):
            return 0
        largest = compute_max_activation_bytes(self.model, device.dtype)
        return device.preferred_micro_batch_size(largest)

    def forward_in_pieces(self, pixels: Tensor, device: Device, batch_size: int = 0) -> HeadLogits:
        """Return the logits of images, computed in pieces of the device's preferred size.

        Args:
            pixels: as for `forward`.
            device: of the model.
            batch_size: images that a compiled model has its graph for: fewer are padded; 0: none are.
        """
        if not isinstance(self.model, nn.Module):
            return self.forward(pixels)
        count, preferred = len(pixels), self.choose_piece_size(device)
        padded = min(preferred or batch_size, batch_size)
        if padded and count % padded and is_compiled(self.model):
            pixels = torch.cat([pixels, pixels[:1].expand(-count % padded, -1, -1, -1)])
        with device.autocast():
            pieces = [
                self.forward(piece) for piece in torch.split(pixels, preferred or len(pixels))
            ]
        heads = _join(pieces)
        if len(pixels) == count:
            return heads
        return HeadLogits(heads.cls[:count], None if heads.dist is None else heads.dist[:count])

    def forward_where_it_fits(self, images: Tensor, pieces: Pieces) -> HeadLogits:
        """Return the logits of images of the host, uint8 [B,3,S,S], in parts that memory has room for."""
        device = pieces.device

        def compute(part: slice) -> HeadLogits:
            return self.forward_in_pieces(device.to_device(images[part]), device)

        return _join(list(pieces.compute(len(images), compute)))


def _join(pieces: Sequence[HeadLogits]) -> HeadLogits:
    if len(pieces) == 1:
        return pieces[0]
    cls, dist = zip(*pieces, strict=True)
    return HeadLogits(torch.cat(cls), None if dist[0] is None else torch.cat(dist))
