"""What weights that no DeiT can use are of, by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# In this order: the first whose pattern is found. What adds to a network comes before networks.
_KINDS: tuple[tuple[str, str], ...] = (
    (r"\.lora_[AB]\b|lora_embedding|\.lora_(down|up)\.", "LoRA adapters, not a whole network"),
    (
        r"\.(qweight|qzeros|weight_scale|weight_scale_inv|SCB|absmax|quant_map)$",
        "quantized weights",
    ),
    (r"(_packed_params|zero_point)(\.|$)", "quantized weights"),
    (r"\.(exp_avg|exp_avg_sq|momentum_buffer)$", "the state of an optimizer"),
    (r"(^|\.)(rpn|roi_heads|bbox_embed|bbox_head|dfl|rpn_head)\.", "a detection model"),
    (r"(^|\.)(decode_head|seg_head|mask_decoder)\.", "a segmentation model"),
    (r"(^|\.)(visual\.transformer|text_model|visual\.trunk|logit_scale)(\.|$)", "a CLIP"),
    (r"(^|\.)(reg_token|register_tokens)$", "a ViT with register tokens"),
    (r"(^|\.)(rope|rope_embed|rotary_emb)\.|\.rope\.", "a ViT with rotary positions"),
    (r"layers\.\d+\.blocks\.\d+\.attn\.(relative_position|logit_scale)", "a Swin"),
    (r"(^|\.)encoder\.layers\.\d+\.blocks\.\d+\.", "a Swin"),
    (r"\.mlp\.(w12|w1|fc1_g)\.", "a ViT with gated layers (SwiGLU)"),
    (r"^(blocks_token_only|cls_attn_blocks)\.", "a CaiT or XCiT"),
    (r"relative_position_bias_table|\.attn\.[qv]_bias$|\.lambda_1$", "a BEiT"),
    (r"^fc_norm\.", "a ViT that averages its patches (fc_norm) instead of a class token"),
    (r"^attn_pool\.", "a ViT with attention pooling (attn_pool)"),
    (r"^norm_pre\.", "a ViT with a norm before its blocks (norm_pre)"),
    (r"\.attn\.[qk]_norm\.", "a ViT that normalizes queries and keys (q_norm, k_norm)"),
    (r"^patch_embed\.backbone\.", "a hybrid of a ResNet and a ViT"),
    (r"^encoder\.layers\.encoder_layer_0\.|^class_token$", "a ViT of torchvision"),
    (r"(^|\.)layers\.0\.(ln1|ffn)\.", "a ViT of MMPretrain"),
    (r"^encoder\.layer\.0\.(norm1|attention\.attention)\.", "a ViT of transformers"),
    (r"(^|\.)layer1\.0\.conv1\.weight$", "a ResNet"),
    (r"(^|\.)stages\.0\.blocks\.0\.(conv_dw|dwconv)|(^|\.)stages\.0\.0\.dwconv", "a ConvNeXt"),
    (r"(^|\.)conv_stem\.weight$|^features\.0\.0\.weight$", "an EfficientNet or MobileNet"),
    (r"(^|\.)s1\.b1\.conv1\.", "a RegNet"),
    (r"^features\.\d+\.(weight|conv)", "a VGG, AlexNet or DenseNet"),
    (r"(^|\.)(q_proj|k_proj|self_attn|self_attention)\.", "another transformer"),
)

VITS = {
    # embed_dim, depth, patch_size: timm's names, which have no layer scale and a class token
    (192, 12, 16): "vit_tiny_patch16_224",
    (384, 12, 8): "vit_small_patch8_224",
    (384, 12, 32): "vit_small_patch32_224",
    (768, 12, 8): "vit_base_patch8_224",
    (768, 12, 32): "vit_base_patch32_224",
    (1024, 24, 16): "vit_large_patch16_224",
    (1024, 24, 14): "vit_large_patch14_224",
    (1024, 24, 32): "vit_large_patch32_224",
    (1280, 32, 14): "vit_huge_patch14_224",
}
"""Plain ViTs of timm that no DeiT is."""


def suggest(kind: str, stored: str = "") -> str:
    """Return what to do with weights of a kind; `stored` is the architecture that their file names."""
    if kind.startswith(("LoRA", "quantized", "the state")):
        return "Name the file of the whole network."
    if kind.startswith(("a detection", "a segmentation", "a CLIP", "another transformer")):
        return "Name the weights of an image classifier."
    if " of " in kind:
        return "Its names are not timm's: convert it there, or name other weights."
    name = stored.partition(".")[0] or "NAME"
    return f"Name its architecture, timm's: --model {name} --weights FILE."


def recognize(names: Iterable[str]) -> str:
    """Return what tensors of these names are, with an article; empty if nothing says."""
    listed = list(names)
    for pattern, kind in _KINDS:
        if any(re.search(pattern, name) for name in listed):
            return kind
    return ""


def describe(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return what tensors are, and some of their names: `a ResNet (conv1.weight, ...)`."""
    if not shapes:
        return "no tensors"
    first = [name[:60] for name in list(shapes)[:3]]
    listed = ", ".join(first) + (", ..." if len(shapes) > len(first) else "")
    return f"{recognize(shapes) or 'another network'} ({listed})"
