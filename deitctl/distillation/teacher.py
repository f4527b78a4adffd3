"""The frozen network of a teacher: its logits over the data's classes, its features, or both.

Letters: B images, K classes of the data, D features, S the student's input side, T the teacher's.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl import rng
from deitctl.data.batch_transforms import normalize, renormalize, to_model_channels
from deitctl.device import Device
from deitctl.distillation.callable_teacher import CallableNetwork
from deitctl.models.factory import LoadedModel
from deitctl.models.features import forward_heads_and_features
from deitctl.models.fuse import fuse_conv_bn
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.vit import HeadLogits


class TeacherOutput(NamedTuple):
    """What a teacher gives of images, each None where the student does not learn it."""

    logits: Tensor | None
    """[B,K]"""
    features: Tensor | None
    """[B,D]"""


class Teacher(nn.Module):
    """A frozen network that gives logits over the data's classes, whatever its own, or features, or both."""

    def __init__(
        self,
        model: nn.Module,
        model_config: ModelConfig,
        rows: tuple[int, ...] | None,
        student_preprocessing: Preprocessing,
        feature_pool: str = "",
    ) -> None:
        """Freeze `model`.

        Args:
            model: a classifier, or without `rows` any network that has features.
            model_config: its preprocessing, classes and head rule.
            rows: for each class of the data, the model's logit; None: its logits are not learned.
            student_preprocessing: the preprocessing of the images that `forward` receives.
            feature_pool: see `FeatureConfig.pool`; empty: its features are not learned.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.model_config, self.student_preprocessing = model_config, student_preprocessing
        self.gives_logits, self.feature_pool = rows is not None, feature_pool
        all_in_order = rows is None or rows == tuple(range(model_config.num_classes))
        self.rows: Tensor | None
        self.register_buffer("rows", None if all_in_order else torch.tensor(rows), persistent=False)

    @property
    def is_multilabel(self) -> bool:
        """Whether each of its logits is a class's by itself, of several an image may have."""
        return self.model_config.is_multilabel

    @property
    def networks(self) -> tuple[Teacher, ...]:
        """Itself, as an ensemble has several."""
        return (self,)

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return self.model_config.preprocessing.in_chans

    @cached_property
    def num_features(self) -> int:
        """Numbers of an image's features, D; 0 where they are not learned."""
        if not self.feature_pool:
            return 0
        pre = self.model_config.preprocessing
        device = next((p.device for p in self.model.parameters()), None)
        black = torch.zeros(1, pre.in_chans, *pre.hw, dtype=torch.uint8, device=device)
        features = self.forward_views(black).features
        assert features is not None
        return features.shape[1]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, also inside a module that is trained."""
        # batch norm statistics and dropout of a teacher must not move with its student
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """Return logits, features or both of the student's images [B,C,H,W], which may be mixed."""
        own = self.model_config.preprocessing
        images = renormalize(images, self.student_preprocessing, own)
        images = to_model_channels(images, own.in_chans)
        if images.shape[-2:] != own.hw:
            images = F.interpolate(
                images, size=own.hw, mode="bicubic", antialias=True, align_corners=False
            )
        return self._forward_normalized(images)

    @torch.no_grad()
    def forward_views(self, pixels: Tensor) -> TeacherOutput:
        """Return logits, features or both of views rendered at the teacher's own size, uint8 [B,3,T,T]."""
        return self._forward_normalized(normalize(pixels, self.model_config.preprocessing))

    def _forward_normalized(self, images: Tensor) -> TeacherOutput:
        if self.feature_pool:
            heads, features = forward_heads_and_features(self.model, images, pool=self.feature_pool)
        else:
            heads, features = forward_heads(self.model, images), None
        return TeacherOutput(self._fuse(heads) if self.gives_logits else None, features)

    def _fuse(self, heads: HeadLogits) -> Tensor:
        rule = "avg-logits" if self.model_config.head == "auto" else self.model_config.head
        rule = rule if heads.dist is not None else "cls"
        logits = fuse_heads(heads, rule, self.model_config.task)
        return logits if self.rows is None else logits[:, self.rows]


def freeze_teacher(
    loaded: LoadedModel,
    rows: tuple[int, ...] | None,
    student_preprocessing: Preprocessing,
    device: Device,
    feature_pool: str = "",
) -> Teacher:
    """Fuse a network's batch norms into its convolutions, in place, and freeze it on `device`; arguments
    as of `Teacher`."""
    pre = loaded.model_config.preprocessing
    # Before it is moved: convolutions of a GPU may round more than fusing changes, and the fusion
    # would be refused. The string is part of the seed, so it is not renamed with the code.
    if not isinstance(loaded.model, CallableNetwork):
        with rng.scope("fold"):
            fuse_conv_bn(loaded.model, torch.randn(1, pre.in_chans, *pre.hw))
    device.to_device(loaded.model)
    teacher = Teacher(loaded.model, loaded.model_config, rows, student_preprocessing, feature_pool)
    return teacher.to(device.torch_device)
