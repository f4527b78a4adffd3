"""Weights that no DeiT can use are refused by what they are, with names that were found."""

from __future__ import annotations

import pytest
import timm
import torch

from deitctl.errors import ModelError
from deitctl.models.convert import infer_architecture
from deitctl.models.recognize import recognize


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", r"a ResNet \(conv1\.weight, bn1\.weight, bn1\.bias, \.\.\.\)"),
        ("swin_tiny_patch4_window7_224", "a Swin"),
        ("convnext_atto", "a ConvNeXt"),
        ("mobilenetv3_small_050", "an EfficientNet or MobileNet"),
        ("regnety_002", "a RegNet"),
        ("beit_base_patch16_224", "a BEiT"),
        ("vit_small_patch14_reg4_dinov2", "a ViT with register tokens"),
        ("vit_base_patch16_clip_224", "a ViT with a norm before its blocks"),
        ("vit_base_patch16_siglip_224", "a ViT with attention pooling"),
        ("cait_xxs24_224", "a CaiT or XCiT"),
        ("vit_small_r26_s32_224", "a hybrid of a ResNet and a ViT"),
    ],
)
def test_a_network_of_timm_is_named(name, kind):
    with torch.device("meta"):
        state = shapes(timm.create_model(name).state_dict())
    with pytest.raises(ModelError, match=kind) as error:
        infer_architecture(state, "f", stored=name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base_model.model.vit.layer.0.query.lora_A.weight", "LoRA adapters, not a whole network"),
        ("model.layers.0.q_proj.qweight", "quantized weights"),
        ("roi_heads.box_head.fc6.weight", "a detection model"),
        ("decode_head.conv_seg.weight", "a segmentation model"),
        ("visual.transformer.resblocks.0.ln_1.weight", "a CLIP"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "a ViT of torchvision"),
        ("backbone.layers.0.ln1.weight", "a ViT of MMPretrain"),
        ("something.else", ""),
    ],
)
def test_a_name_tells_the_kind(name, kind):
    assert recognize([name]) == kind


def test_the_way_on_fits_the_kind():
    with pytest.raises(ModelError, match="Name the file of the whole network"):
        infer_architecture({"q.lora_A.weight": (4, 4)}, "f")
    with pytest.raises(ModelError, match="--model resnet18 --weights FILE"):
        infer_architecture({"layer1.0.conv1.weight": (4, 4, 3, 3)}, "f", stored="resnet18.a1_in1k")
    with pytest.raises(ModelError, match="Name the weights of an image classifier"):
        infer_architecture({"roi_heads.box_head.fc6.weight": (4, 4)}, "f")
    with pytest.raises(ModelError, match="a ViT of MMPretrain .*Its names are not timm's"):
        infer_architecture({"backbone.layers.0.ln1.weight": (4,)}, "f")
    with torch.device("meta"):
        state = shapes(timm.create_model("vit_base_patch32_224").state_dict())
    with pytest.raises(ModelError, match="--model vit_base_patch32_224 --weights FILE"):
        infer_architecture(state, "f")


def test_one_parameter_more_or_less_is_another_network(deit):
    state = shapes(deit().state_dict())
    for changed, reason in (
        (state | {"reg_token": (1, 4, 192)}, "a ViT with register tokens: it has reg_token too"),
        (state | {"blocks.3.attn.q_norm.weight": (64,)}, "a ViT that normalizes queries and keys"),
        (state | {"surprise": (3,)}, "but another ViT: it has surprise too"),
        ({k: v for k, v in state.items() if k != "blocks.4.attn.qkv.bias"}, "lacks blocks.4.attn"),
        ({k: v for k, v in state.items() if not k.startswith("blocks.11")}, "depth 11"),
    ):
        with pytest.raises(ModelError, match=reason):
            infer_architecture(changed, "f")
