"""Weights are adapted to other patches and channels as timm adapts them."""

from __future__ import annotations

import pytest
import torch

from deitctl.errors import ModelError
from deitctl.models.adapt import adapt_input_conv, resample_patch_embed


@pytest.mark.parametrize("size", [4, 8, 14, 32])
def test_patch_embeddings_are_resampled_as_timm_does(size):
    from timm.layers.patch_embed import resample_patch_embed as theirs

    weight = torch.randn(5, 3, 16, 16)
    expected = theirs(weight, [size, size])
    torch.testing.assert_close(resample_patch_embed(weight, size), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_first_layers_are_adapted_as_timm_does(channels):
    from timm.models import adapt_input_conv as theirs

    weight = torch.randn(5, 3, 4, 4)
    assert torch.equal(adapt_input_conv(weight, channels), theirs(channels, weight.clone()))


def test_a_gray_layer_gives_the_same_for_three_equal_channels():
    weight, gray = torch.randn(5, 1, 4, 4), torch.randn(1, 1, 4, 4)
    three = torch.conv2d(gray.repeat(1, 3, 1, 1), adapt_input_conv(weight, 3))
    torch.testing.assert_close(three, torch.conv2d(gray, weight))


def test_other_channels_are_not_guessed():
    with pytest.raises(ModelError, match="Weights for 5 channels cannot be adapted to 3"):
        adapt_input_conv(torch.randn(5, 5, 4, 4), 3)
