"""What an evaluation measures: a few numbers of every image, and their averages over images, never over batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deitctl.models.vit import HeadLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured of one model; accuracies in percent, images in the order of the source."""

    num_images: int
    top1: float
    top5: float
    loss: float
    ece: float
    heads: dict[str, float] | None
    """Top-1 of each head rule, None for a model with one head."""
    top1_among: float | None
    """Top-1 among the data's classes alone, where the model knows more."""
    top5_among: float | None
    agreement: float | None
    """Percent of images on which the two heads agree (100 - DeiT Table 4's disagreement)."""
    teacher_agreement: dict[str, float] | None
    """Percent of images on which each head rule agrees with the teacher, None without one (DeiT Table 4)."""
    images_per_second: float
    indices: Tensor = field(repr=False)
    """Position of each readable image in the source, [N], ascending."""
    labels: Tensor = field(repr=False)
    """Its class, [N], in the data's numbering."""
    targets: Tensor = field(repr=False)
    """The same in the model's numbering, [N]."""
    best: Tensor = field(repr=False)
    """The model's likeliest classes, best first, [N,min(5,K)], in the model's numbering."""
    answers: Tensor = field(repr=False)
    """The model's class in the data's numbering, [N]; the number of the data's classes where it is none of them."""
    among: Tensor = field(repr=False)
    """The likeliest of the data's classes, [N], in the data's numbering."""
    confidences: Tensor = field(repr=False)
    """The probability of the model's class, [N], after the temperature it was evaluated with."""
    losses: Tensor = field(repr=False)
    """Cross-entropy of each image, [N], after that temperature."""
    correct_by: dict[str, Tensor] = field(repr=False)
    """Whether each head rule is right, [N] each."""
    head: str
    """The rule that answers; `cls` for a model with one head, an exported file's own."""
    disagree: Tensor | None = field(repr=False)
    """Whether the two heads answer differently, [N]."""
    logits: HeadLogits | None = field(repr=False)
    """Both heads' logits, float32 [M,K] each, of the images at `kept`; None unless they were asked for."""
    kept: Tensor = field(repr=False)
    """Which of the N images have their logits here, [M]: all, or some that are drawn where that is too much memory."""
    unreadable: list[tuple[int, str]] = field(repr=False)
    """Position and reason of the images left out."""

    @property
    def predictions(self) -> Tensor:
        """The model's class of each image, [N], in the model's numbering."""
        return self.best[:, 0].long()

    @property
    def correct(self) -> Tensor:
        """Whether it is right, [N]."""
        return self.correct_by[self.head]
