"""A folded convnet answers as it did, with fewer steps; what cannot be folded is left as it was."""

import pytest
import timm
import torch
from torch import nn

from deitctl.models.fuse import fuse_conv_bn


def with_statistics(model):
    """Give every batch norm means, variances, weights and biases of its own."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("name", ["regnety_002", "resnet18", "mobilenetv2_050", "efficientnet_b0"])
def test_all_batch_norms_are_fused_and_logits_are_equal(name, noise):
    model, images = with_statistics(timm.create_model(name, num_classes=10)), noise(2, 3, 64, 64)
    with torch.no_grad():
        nn.init.normal_(model.get_classifier().weight)
        before, count = model(images), norms(model)
        assert fuse_conv_bn(model, images[:1]) == count
        assert norms(model) == 0
        torch.testing.assert_close(
            model(images), before, rtol=1e-3, atol=1e-3 * float(before.std())
        )


def test_one_channel_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0), nn.Flatten()
    ).eval()
    conv, norm = model[0], model[1]
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
        norm.running_mean.fill_(5)
        norm.running_var.fill_(4)
        norm.weight.fill_(6)
        norm.bias.fill_(7)
        assert fuse_conv_bn(model, torch.arange(12.0).view(1, 3, 2, 2)) == 1
    assert conv.weight.flatten().tolist() == [3, 6, 9]  # times 6 / sqrt(4)
    assert conv.bias.tolist() == [7 - 5 * 3]


class ReadTwice(nn.Module):
    """A convolution whose output goes round its batch norm too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return (self.bn(y) * y).mean((2, 3))


class UsedTwice(nn.Module):
    """One batch norm for two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.bn(self.a(x)) + self.bn(self.b(x))).mean((2, 3))


@pytest.mark.parametrize("kind", [ReadTwice, UsedTwice])
def test_a_model_that_fusion_would_change_is_restored(kind, noise):
    model, images = with_statistics(kind()), noise(2, 3, 16, 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert fuse_conv_bn(model, images) == 0
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_a_transformer_has_nothing_to_fuse(deit, noise):
    model = deit("deit_tiny")
    assert fuse_conv_bn(model, noise(1, 3, 32, 32)) == 0
