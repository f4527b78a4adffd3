"""Scores of a model: the softmax of its logits, divided by the temperature of the rule in use."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deitctl.device import choose_device
from deitctl.exporters.verification_images import compute_reference
from deitctl.inference.torch_classifier import TorchClassifier
from deitctl.models.model_config import HEADS, ModelConfig


class Fixed(nn.Module):
    """Answers with logits 0 and ln 3, whatever it is shown."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, math.log(3.0)]]).expand(len(images), 2)


@pytest.mark.parametrize(
    ("temperature", "second"), [(1.0, 0.75), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))]
)
def test_logits_are_divided_by_the_temperature(temperature, second):
    """softmax(0, ln 3) = (1/4, 3/4); at temperature 2 the odds of 3 become their root."""
    model_config = ModelConfig(
        architecture="fixed",
        num_classes=2,
        head="cls",
        temperatures={"cls": temperature, "dist": 50.0},
    )
    scores = TorchClassifier(Fixed(), model_config, choose_device("cpu", "fp32")).scores(
        np.zeros((3, 3, 4, 4), np.uint8)
    )
    assert scores.shape == (3, 2)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[:, 1], second, rtol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_each_rule_has_its_own_temperature(deit, tiny_arch):
    model, arch = deit("deit_tiny_distilled"), tiny_arch("deit_tiny_distilled")
    model_config = replace(
        arch.to_model_config(), num_classes=5, class_names=None, descriptions=None
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    device = choose_device("cpu", "fp32")
    for head in HEADS:
        warm = replace(model_config, head=head, temperatures={head: 3.0})
        logits = compute_reference(model, model_config, head, pixels.transpose(0, 2, 3, 1))[0]
        expected = torch.from_numpy(logits).div(3).softmax(1).numpy()
        np.testing.assert_allclose(
            TorchClassifier(model, warm, device).scores(pixels), expected, atol=1e-6
        )
        other = replace(
            model_config, head=head, temperatures={next(h for h in HEADS if h != head): 3.0}
        )
        plain = torch.from_numpy(logits).softmax(1).numpy()
        np.testing.assert_allclose(
            TorchClassifier(model, other, device).scores(pixels), plain, atol=1e-6
        )


class Cramped(nn.Module):
    """Answers with the mean of an image; has room for two."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        means = images.mean((1, 2, 3))
        return torch.stack([means, -means], 1)


def test_where_memory_runs_out_batches_are_halved_for_good():
    model = Cramped()
    model_config = ModelConfig(architecture="cramped", num_classes=2, head="cls")
    classifier = TorchClassifier(model, model_config, choose_device("cpu", "fp32"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    scores = classifier.scores(pixels)
    assert model.sizes == [5, 2, 2, 1]
    np.testing.assert_array_equal(classifier.scores(pixels), scores)
    assert model.sizes[4:] == [2, 2, 1]
    np.testing.assert_array_equal(scores[3:4], classifier.scores(pixels[3:4]))
