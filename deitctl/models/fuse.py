"""A frozen convnet does not need its batch norms: each is a scale and a shift, which its convolution can do itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deitctl.models.heads import forward_heads

TOLERANCE = 1e-3
"""Of the spread of the logits: folding changes them in the sixth digit."""


@torch.no_grad()
def fuse_conv_bn(model: nn.Module, images: Tensor) -> int:
    """Put batch norms into the convolutions before them, in place, and return how many.

    Which follows which is seen in a pass of `images`, [B,3,S,S] on the model's device. A model whose logits change by
    more than rounding, because a convolution's output is read elsewhere too, is left as it was, and 0 is returned.
    """
    model.eval()
    pairs, before = _pairs(model, images)
    kept = [(conv, conv.weight, conv.bias, name, norm) for conv, name, norm in pairs]
    for conv, name, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        _put(model, name, _what_follows(norm))
    after = forward_heads(model, images).cls.float()
    if kept and not float((after - before).abs().max()) <= TOLERANCE * float(before.std()):
        for conv, weight, bias, name, norm in kept:
            conv.weight, conv.bias = weight, bias
            _put(model, name, norm)
        return 0
    return len(kept)


def _pairs(
    model: nn.Module, images: Tensor
) -> tuple[list[tuple[nn.Conv2d, str, _BatchNorm]], Tensor]:
    """Return each convolution whose output a batch norm reads, that norm's name and itself, and the logits [B,K]."""
    outputs: dict[
        int, tuple[nn.Conv2d, Tensor]
    ] = {}  # the tensor is held, so that its id stays its own
    found: dict[nn.Conv2d, tuple[str, _BatchNorm]] = {}
    handles, times = [], dict.fromkeys(model.modules(), 0)

    def made(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        times[conv] += 1
        outputs[id(output)] = conv, output

    def reads(name: str, norm: _BatchNorm) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            times[norm] += 1
            if id(inputs[0]) in outputs:
                found[outputs[id(inputs[0])][0]] = name, norm

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(made))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(reads(name, module)))
    logits = forward_heads(model, images).cls.float()
    for handle in handles:
        handle.remove()
    pairs = [
        (conv, name, norm)
        for conv, (name, norm) in found.items()
        if times[conv] == times[norm] == 1
    ]
    return pairs, logits


def _what_follows(norm: _BatchNorm) -> nn.Module:
    """Return what timm's batch norms do besides: an activation."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
