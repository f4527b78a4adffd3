"""A teacher that only answers: no gradients, eval mode for ever, its own normalization, its own input size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.data.batch_transforms import normalize, renormalize
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing


class Teacher(nn.Module):
    """Wraps a classifier so that it answers in the data's classes, whatever its own."""

    def __init__(
        self,
        model: nn.Module,
        model_config: ModelConfig,
        rows: tuple[int, ...],
        seen: Preprocessing,
    ) -> None:
        """Freeze `model`.

        Args:
            model: the classifier.
            model_config: its config; the images are brought to its normalization and input size.
            rows: for each class of the data, the teacher's logit.
            seen: the preprocessing of the images that `forward` gets, the student's.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.model_config, self.seen = model_config, seen
        whole = rows == tuple(range(model_config.num_classes))
        self.rows: Tensor | None
        self.register_buffer("rows", None if whole else torch.tensor(rows), persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher's batch statistics and dropout must not move with its student's."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits [B,K] on the student's images [B,3,S,S], in the data's classes."""
        own = self.model_config.preprocessing
        images = renormalize(images, self.seen, own)
        if images.shape[-1] != own.img_size:
            size = (own.img_size, own.img_size)
            images = F.interpolate(
                images, size=size, mode="bicubic", antialias=True, align_corners=False
            )
        return self._answer(images)

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits [B,K] on views rendered at its own size, uint8 [B,3,T,T]."""
        return self._answer(normalize(pixels, self.model_config.preprocessing))

    def _answer(self, images: Tensor) -> Tensor:
        heads = forward_heads(self.model, images)
        logits = fuse_heads(heads, self.head if heads.dist is not None else "cls")
        return logits if self.rows is None else logits[:, self.rows]

    @property
    def head(self) -> str:
        """The rule by which a teacher with two heads answers."""
        return "avg-logits" if self.model_config.head == "auto" else self.model_config.head
