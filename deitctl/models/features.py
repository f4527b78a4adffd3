"""A classifier's features beside its logits, in one forward pass. Letters: B images, N tokens, D features, H and W
rows and columns of a feature map, K classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.events import Reporter
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.factory import find_architecture
from deitctl.models.model_config import Preprocessing
from deitctl.models.sources import resolve_folder
from deitctl.models.vit import HeadLogits, VisionTransformer

POOLS = ("auto", "cls", "avg")


def forward_heads_and_features(
    model: nn.Module, images: Tensor, drop_path_mask: Tensor | None = None, *, pool: str = "auto"
) -> tuple[HeadLogits, Tensor]:
    """Return each head's logits, [B,K], and features [B,D] of the last layer before the heads.

    Args:
        model: a DeiT or any classifier of timm's, in either mode.
        images: normalized, [B,C,H,W].
        drop_path_mask: of a DeiT, see `VisionTransformer.sample_drop_path`.
        pool: `cls` the class token, `avg` the average of patch tokens or of a feature map, each after the last norm;
            `auto` what the head reads.

    Raises:
        ModelError: the model has no features, or no class token to return.
    """
    if isinstance(model, VisionTransformer):
        if pool != "avg":
            prefix = model.norm(model.forward_blocks(images, drop_path_mask, prefix_only=True))
            return model.classify(prefix), prefix[:, 0].float()
        tokens = model.norm(model.forward_blocks(images, drop_path_mask))
        patches = tokens[:, model.num_prefix_tokens :]
        return model.classify(tokens), patches.float().mean(1)
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise ModelError(
            f"{type(model).__name__} gives logits and no features.",
            "Use a model of timm's, or another --mode.",
        )
    network: Any = model  # no class of timm's declares both
    feature_map = network.forward_features(images)
    if not isinstance(feature_map, Tensor):
        raise ModelError(
            f"{type(model).__name__} gives several feature maps, and no features of one.",
            "Use another model, or --mode hard or soft.",
        )
    heads = _split_heads(network.forward_head(feature_map))
    if pool == "auto":
        return heads, network.forward_head(feature_map, pre_logits=True).float()
    return heads, _pool(model, feature_map, pool).float()


def _split_heads(out: Tensor | tuple[Tensor, ...]) -> HeadLogits:
    """Return logits as `forward_heads` does: timm's distilled models return two, in training a tuple."""
    return HeadLogits(out, None) if isinstance(out, Tensor) else HeadLogits(*out[:2])


def _pool(model: nn.Module, feature_map: Tensor, pool: str) -> Tensor:
    """Return features [B,D] of tokens [B,N,D] or a map, [B,D,H,W] or [B,H,W,D], of a model of timm's."""
    num_prefix = getattr(model, "num_prefix_tokens", 0)
    if pool == "cls":
        if feature_map.ndim != 3 or not num_prefix or getattr(model, "cls_token", None) is None:
            raise ModelError(
                f"{type(model).__name__} has no class token.",
                "Use the average of its features: --feature-pool avg, or leave it out.",
            )
        return feature_map[:, 0]
    if feature_map.ndim == 3:
        return feature_map[:, num_prefix:].mean(1)
    if feature_map.ndim != 4:
        return feature_map
    is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return feature_map.mean((1, 2) if is_last else (2, 3))


def choose_student_pool(model: nn.Module, pool: str) -> str:
    """Return `pool`, or for `auto` the average of a transformer's patches, as in VkD's released code (engine.py), and
    of other models what their head reads, which is an average too."""
    has_tokens = isinstance(model, VisionTransformer) or getattr(model, "num_prefix_tokens", 0) > 0
    return "avg" if pool == "auto" and has_tokens else pool


@torch.no_grad()
def count_features(model: nn.Module, preprocessing: Preprocessing, pool: str) -> int:
    """Return D, by one image of zeros in the mode that the model is in; raise as `forward_heads_and_features`.

    timm's `num_features` is that of the map, which a head may widen before the features are pooled.
    """
    was_training = model.training
    parameter = next(model.parameters())
    shape = (1, preprocessing.in_chans, *preprocessing.hw)
    image = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    model.eval()
    try:
        _, features = forward_heads_and_features(model, image, pool=pool)
    finally:
        model.train(was_training)
    return features.shape[1]


def outline_num_features(ref: str, pool: str, reporter: Reporter) -> int:
    """Return D of a model that is named, without its weights; arguments and errors as `find_architecture`.

    Raises also as `forward_heads_and_features`.
    """
    arch = find_architecture(ref, reporter)
    if arch is not None:
        return arch.embed_dim
    folder = resolve_folder(ref, reporter, download_weights=False)
    model_config = None if folder is None else load_model_config(folder)
    name = ref if model_config is None else model_config.architecture
    with torch.device("meta"):
        model = timm_models.create_model(
            name,
            num_classes=None,
            img_size=0 if model_config is None else model_config.preprocessing.img_size,
            model_args={} if model_config is None else model_config.model_args,
        )
        if model_config is None:
            model_config = timm_models.read_model_config(model, name, 0)
        return count_features(model, model_config.preprocessing, pool)
