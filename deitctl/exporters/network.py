"""The network that is exported: pixels in, logits and probabilities out, nothing between left to its users."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deitctl import __version__
from deitctl.data.batch_transforms import normalize
from deitctl.errors import ExportError
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig

BARE_LAYOUT = "NCHW float32"  # what metadata says of a `BareClassifier`'s input


class ExportedClassifier(nn.Module):
    """A classifier with its normalization, its head rule, its temperature and its softmax inside."""

    takes = "pixels"
    gives: tuple[str, ...] = ("logits", "probabilities")

    def __init__(self, model: nn.Module, model_config: ModelConfig, head: str) -> None:
        super().__init__()
        self.model, self.preprocessing, self.head = model, model_config.preprocessing, head
        self.temperature = model_config.temperature(head)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Classify uint8 RGB images [B,S,S,3] of the model's input size: logits [B,K] and probabilities [B,K].

        The probabilities are calibrated, softmax(logits / temperature); the logits are the model's own.
        """
        logits = self.logits(self.normalized(pixels))
        return logits, (logits / self.temperature).softmax(dim=1)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return uint8 images [B,S,S,3] as the model takes them, [B,3,S,S]."""
        return normalize(pixels.permute(0, 3, 1, 2), self.preprocessing)

    def logits(self, images: Tensor) -> Tensor:
        """Join the heads' answers to normalized images [B,3,S,S]: [B,K]."""
        return fuse_heads(forward_heads(self.model, images), self.head).float()

    def example(self) -> Tensor:
        """Return a batch of two that the network takes, all zeros."""
        size = self.preprocessing.img_size
        return torch.zeros(2, size, size, 3, dtype=torch.uint8)


class BareClassifier(ExportedClassifier):
    """A classifier with its head rule inside and nothing else: for programs that have their own preprocessing."""

    takes = "images"
    gives = ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify normalized images [B,3,S,S] in fp32: logits [B,K]."""
        return (self.logits(images),)

    def example(self) -> Tensor:
        size = self.preprocessing.img_size
        return torch.zeros(2, 3, size, size)


def trace(network: ExportedClassifier, *, most: int | None = None) -> torch.export.ExportedProgram:
    """Return the network as a graph of its operations, for batches of any size, or of `most` images at most.

    Raises:
        ExportError: the model does something that a graph cannot hold.
    """
    # the example input is stored with the program, whole storage and all: zeros made for it, never anybody's image
    example = network.example()
    batch = torch.export.Dim("batch", min=1, max=most)
    try:
        with quietly(), torch.no_grad():
            # strict, because otherwise the `len` of a traced batch is a constant
            program = torch.export.export(
                network, (example,), dynamic_shapes=({0: batch},), strict=True
            )
    except Exception as error:  # torch.export raises whatever the model's code raises under tracing
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExportError(
            f"The model cannot be traced: {first}", "Use --to timm, which keeps the weights alone."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the files of this machine in the artifact
    return program


@contextmanager
def quietly() -> Iterator[None]:
    """Keep torch's and ONNX's warnings and log lines, which are about their own insides, from the user."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def describe(model_config: ModelConfig, head: str, *, bare: bool = False) -> dict[str, str]:
    """Return what travels with an exported file: where it is from, its classes, the preprocessing left to the reader.

    Args:
        model_config: the model's config.
        head: the rule by which the heads were joined.
        bare: whether the network is a `BareClassifier`.
    """
    pre = model_config.preprocessing
    preprocessing = {
        "img_size": pre.img_size,
        "resize_to": pre.resize_to,
        "crop_pct": pre.crop_pct,
        "crop_mode": pre.crop_mode,
        "interpolation": pre.interpolation,
        "channels": "RGB",
        "layout": BARE_LAYOUT if bare else "NHWC uint8",
        "normalization": {
            "where": "left to the reader" if bare else "inside the network",
            "mean": pre.mean,
            "std": pre.std,
        },
    }
    metadata = {
        "deitctl_version": __version__,
        "architecture": model_config.architecture,
        "head": head,
        "temperature": repr(model_config.temperature(head)),
        "preprocessing": json.dumps(preprocessing),
    }
    if model_config.class_names is not None:
        metadata["class_names"] = json.dumps(model_config.class_names, ensure_ascii=False)
    if model_config.descriptions is not None:
        metadata["descriptions"] = json.dumps(model_config.descriptions, ensure_ascii=False)
    return metadata
