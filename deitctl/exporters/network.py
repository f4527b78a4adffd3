"""The networks that are exported: normalization, head rule and probabilities around a model.

Shapes:
    B batch, S pixels along a side, K classes, T prefix tokens, G patches along a side
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from deitctl.data.batch_transforms import normalize
from deitctl.errors import ExportError
from deitctl.models.heads import forward_heads, fuse_heads, to_probs
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import Block, HeadLogits, VisionTransformer

TOKENS = ("class token", "distillation token")


class ExportedClassifier(nn.Module):
    """A classifier with normalization, head rule, temperature, probabilities and thresholds inside."""

    input_name = "pixels"
    thresholds: Tensor | None

    def __init__(self, model: nn.Module, model_config: ModelConfig, head: str) -> None:
        super().__init__()
        self.model, self.preprocessing, self.head = model, model_config.preprocessing, head
        self.temperature, self.task = model_config.temperature(head), model_config.task
        several = model_config.is_multilabel
        self.register_buffer(
            "thresholds", torch.tensor(model_config.list_thresholds(head)) if several else None
        )
        # Not left to the caller: a traced graph keeps the mode that it was traced in.
        self.eval()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        names = ("logits", "probabilities")
        return names if self.thresholds is None else (*names, "labels")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Classify uint8 RGB images [B,S,S,3]; see `classify`."""
        return self.classify(self.compute_logits(self.normalize(pixels)))

    def classify(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B,K], probabilities [B,K] and, of a multi-label model, labels, bool [B,K].

        Probabilities are calibrated, of logits / temperature; logits are the model's own; labels are
        the classes whose probability reaches their threshold, as `choose_labels` has them.
        """
        probs = to_probs(logits / self.temperature, self.task)
        return (
            (logits, probs)
            if self.thresholds is None
            else (logits, probs, probs >= self.thresholds)
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 images [B,S,S,3] as the model's input, [B,3,S,S]."""
        return normalize(pixels.permute(0, 3, 1, 2), self.preprocessing)

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return the fused logits [B,K] of normalized images [B,3,S,S]."""
        return fuse_heads(forward_heads(self.model, images), self.head, self.task).float()

    def make_example(self) -> Tensor:
        """Return an input of two images, all zeros."""
        # Two images, because torch.export specializes on a batch of 1.
        pre = self.preprocessing
        return torch.zeros(2, *pre.hw, pre.in_chans, dtype=torch.uint8)


class BareClassifier(ExportedClassifier):
    """A classifier with only its head rule inside, for programs with their own preprocessing."""

    input_name = "images"

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits [B,K] of normalized images [B,3,S,S], fp32."""
        return (self.compute_logits(images),)

    def make_example(self) -> Tensor:
        return torch.zeros(2, self.preprocessing.in_chans, *self.preprocessing.hw)


class AttentionClassifier(ExportedClassifier):
    """A DeiT that also outputs its prefix tokens' attention in the last block, averaged over heads.

    This is the map of `deitctl explain --method last-layer`.
    """

    def __init__(self, model: VisionTransformer, model_config: ModelConfig, head: str) -> None:
        super().__init__(model, model_config, head)
        self.tokens, self.grid = model.num_prefix_tokens, model.grid

    @property
    def output_names(self) -> tuple[str, ...]:
        return (*super().output_names, "attention")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Classify uint8 RGB images [B,S,S,3]: what `classify` returns, and attention [B,T,G,G].

        T is 1, the class token, or 2, the distillation token too. A token's attention to patches
        and to prefix tokens sums to 1.
        """
        heads, attention = self._attend(self.normalize(pixels))
        logits = fuse_heads(heads, self.head, self.task).float()
        return *self.classify(logits), attention

    def _attend(self, images: Tensor) -> tuple[HeadLogits, Tensor]:
        """Return each head's logits, and attention [B,T,G,G]; the last block has T queries."""
        model = cast(VisionTransformer, self.model)
        *blocks, last = cast(Iterable[Block], model.blocks)
        x = model.embed(images)
        for block in blocks:
            x = block(x)
        # Queries, projection and MLP of the prefix tokens alone, as in VisionTransformer.forward:
        # nothing reads the patches of the last block.
        q, k, v = last.attn.project_qkv(last.norm1(x))
        # written out, because scaled_dot_product_attention does not return its weights
        # [B,A,T,N], N = T + G * G
        attention = (q[:, :, : self.tokens] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x[:, : self.tokens] + last.ls1(last.attn.merge_heads(attention @ v))
        x = x + last.ls2(last.mlp(last.norm2(x)))
        patches = attention.mean(dim=1)[:, :, self.tokens :]
        return model.forward_head(x), torch.unflatten(patches, 2, self.grid)


def trace(
    network: ExportedClassifier, *, max_batch: int | None = None
) -> torch.export.ExportedProgram:
    """Return the network as a graph, for batches of any size or of `max_batch` images at most.

    Raises:
        ExportError: the model does something that a graph cannot hold.
    """
    # the example's storage is saved with the program: zeros, never a view of the user's images
    example = network.make_example()
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    with (
        wrap_conversion_errors(
            "The model cannot be traced", "Use --to timm, which keeps the weights alone."
        ),
        torch.no_grad(),
    ):
        # strict, because otherwise the `len` of a traced batch is a constant
        program = torch.export.export(
            network, (example,), dynamic_shapes=({0: batch},), strict=True
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # would name the files of this machine in the artifact
    return program


@contextmanager
def wrap_conversion_errors(
    problem: str, hint: str, keep: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Run a converter quietly; the first line of whatever it raises becomes an `ExportError`.

    Converters raise anything that their translations raise: all is caught but `keep`.
    """
    try:
        with silence_warnings():
            yield
    except keep:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExportError(f"{problem}: {first}", hint) from error


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Suppress warnings and log lines of torch and converters, which are about their internals."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
