"""The exported network with one output more: what its tokens look at in the last block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from deitctl.exporters.network import ExportedClassifier
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import Block, HeadLogits, VisionTransformer

TOKENS = ("class token", "distillation token")


class AttendingClassifier(ExportedClassifier):
    """A DeiT as `ExportedClassifier` has it, which gives the attention of its tokens besides.

    The last block's, in the mean of its heads: the map that `deitctl explain --method last-layer` draws.
    """

    gives = ("logits", "probabilities", "attention")

    def __init__(self, model: VisionTransformer, model_config: ModelConfig, head: str) -> None:
        super().__init__(model, model_config, head)
        self.tokens, self.grid = model.num_prefix_tokens, model.img_size // model.arch.patch_size

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Classify uint8 RGB images [B,S,S,3]: logits [B,K], probabilities [B,K], attention [B,T,G,G].

        T is 1, the class token, or 2, the distillation token too; G patches lie along a side. A token's weights and those
        that it gives to the tokens sum to 1.
        """
        heads, attention = self._attend(self.normalized(pixels))
        logits = fuse_heads(heads, self.head).float()
        return logits, (logits / self.temperature).softmax(dim=1), attention

    def _attend(self, images: Tensor) -> tuple[HeadLogits, Tensor]:
        """Answer as the model does. In the last block only the tokens that are read in the end ask, for the same answer."""
        model = cast(VisionTransformer, self.model)
        *blocks, last = cast(Iterable[Block], model.blocks)
        x = model.embed(images)
        for block in blocks:
            x = block(x)
        q, k, v = last.attn.split(last.norm1(x))
        attention = (q[:, :, : self.tokens] @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x[:, : self.tokens] + last.ls1(last.attn.join(attention @ v))
        x = x + last.ls2(last.mlp(last.norm2(x)))
        patches = attention.mean(dim=1)[:, :, self.tokens :]
        return model.answer(x), torch.unflatten(patches, 2, (self.grid, self.grid))
