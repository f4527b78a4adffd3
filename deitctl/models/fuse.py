"""Fusion of batch norms into convolutions, for a faster forward pass of a frozen convnet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deitctl.models.heads import forward_heads

TOLERANCE = 1e-3
"""Largest change of a logit in standard deviations; fusion changes the sixth digit."""

Pair = tuple[nn.Conv2d, str, _BatchNorm]
"""A convolution, and the name and module of the batch norm that reads its output."""


@torch.no_grad()
def fuse_conv_bn(model: nn.Module, images: Tensor) -> int:
    """Fuse batch norms into convolutions, in place, and return how many.

    Pairs are found by a forward pass of `images`, [B,3,S,S] on the model's device. If the logits
    then differ by more than rounding, because a convolution's output has another reader too, the
    model is restored and 0 is returned.
    """
    # In training mode the norms use the batch's statistics, which cannot be folded into weights.
    model.eval()
    pairs, before = _find_pairs(model, images)
    originals = [(conv.weight, conv.bias) for conv, _, _ in pairs]
    for conv, name, norm in pairs:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        # A new parameter, not an in-place change: the originals stay as they are for the
        # restoration.
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
        # timm's BatchNormAct2d applies an activation after the norm, which has to stay
        act = getattr(norm, "act", None)
        model.set_submodule(name, act if isinstance(act, nn.Module) else nn.Identity())
    after = forward_heads(model, images).cls.float()
    # negated, so that NaN counts as a difference
    if pairs and not float((after - before).abs().max()) <= TOLERANCE * float(before.std()):
        for (conv, name, norm), (weight, bias) in zip(pairs, originals, strict=True):
            conv.weight, conv.bias = weight, bias
            model.set_submodule(name, norm)
        return 0
    return len(pairs)


def _find_pairs(model: nn.Module, images: Tensor) -> tuple[list[Pair], Tensor]:
    """Return each convolution that feeds a batch norm, with that norm, and the logits [B,K]."""
    # The output tensor is held, so that no other tensor gets its id.
    conv_of_output: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    norm_of_conv: dict[nn.Conv2d, tuple[str, _BatchNorm]] = {}
    num_calls, handles = dict.fromkeys(model.modules(), 0), []

    def record_output(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        num_calls[conv] += 1
        conv_of_output[id(output)] = conv, output

    def make_input_hook(name: str, norm: _BatchNorm) -> Any:
        def record_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            num_calls[norm] += 1
            if id(inputs[0]) in conv_of_output:
                # By identity of the tensor: timm's modules do not say which norm follows which
                # convolution.
                norm_of_conv[conv_of_output[id(inputs[0])][0]] = name, norm

        return record_input

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(record_output))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(make_input_hook(name, module)))
    logits = forward_heads(model, images).cls.float()
    for handle in handles:
        handle.remove()
    # A module that is called twice would need two different fusions.
    pairs = [
        (conv, name, norm)
        for conv, (name, norm) in norm_of_conv.items()
        if num_calls[conv] == num_calls[norm] == 1
    ]
    return pairs, logits
