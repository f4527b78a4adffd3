"""What a step minimizes: which head learns from what, by which loss. Letters: B images, K classes, H
and W pixels.

The losses are named as in timm.task, and are means over images; see `deitctl.training.losses` for the
formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deitctl.config import AslConfig, BceConfig, DistillConfig, Recipe, TrainConfig
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.models.features import forward_heads_and_features
from deitctl.models.heads import forward_heads
from deitctl.training.class_balance import (
    ClassCounts,
    compute_class_weights,
    compute_log_prior,
    compute_smoothing,
    describe_class_weights,
    summarize_class_weights,
)
from deitctl.training.feature_loss import FeatureTerm
from deitctl.training.losses import (
    asymmetric_loss,
    binary_cross_entropy,
    cross_entropy,
    make_targets,
    smooth_binary_labels,
    smooth_labels,
    soft_binary_distillation,
    soft_distillation,
)

LOSS_NAMES = {"ce": "cross-entropy", "bce": "binary cross-entropy", "asl": "asymmetric loss"}


class StudentBatch(NamedTuple):
    """A batch as the student sees it: augmented, mixed, on the device."""

    images: Tensor
    """Normalized, [B,C,H,W] of C channels."""
    targets: Tensor
    """The labels, mixed as the images are and not smoothed, [B,K]: of one label an image its weights
    of the classes, of several 0..1 for each class."""
    teacher_targets: Tensor | None
    """The teacher's of the same images, [B,K]; None without a teacher whose labels are learned."""
    drop_path_mask: Tensor | None
    """See `VisionTransformer.sample_drop_path`; None where nothing is dropped."""
    teacher_features: tuple[Tensor, ...] = ()
    """Of the same images, [B,D] in fp32 of each teacher that gives them."""
    labeled: Tensor | None = None
    """Share of each image that has labels, [B]: 0 of an image without, whose row of `targets` is 0, and
    between where two images are mixed; None where all have labels."""


class Objective(Protocol):
    """Returns the scalar to minimize as `loss`, and its terms by name for the log."""

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]: ...


class TaskLoss(Protocol):
    """Returns the mean loss over images of logits [B,K] with labels, or hard labels of a teacher,
    [B,K]; `smooth` says whether label smoothing applies to them, `labeled` [B] how much of each image
    has labels, None: all of it. An image counts as much as that share."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, smooth: bool, labeled: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with smoothed labels; an image counts as much as its label's weight."""

    smoothing: float | Tensor = 0.0
    """Of every label, or of each class's, [K]."""
    class_weights: Tensor | None = None
    """[K]; None: all images count alike."""
    adjustment: Tensor | None = None
    """tau times the log prior of each class, [K], which is added to the logits in training, so that
    they predict as if all classes were equally frequent (Menon et al. 2021, arXiv 2007.07314, Eq. 10)."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, smooth: bool, labeled: Tensor | None = None
    ) -> Tensor:
        # A row of labels has the sum `labeled`, and of zeros no loss.
        # Before smoothing: else the share of a label that is moved to a rare class would count as
        # much as an image of it.
        weighted = labels if self.class_weights is None else labels * self.class_weights
        targets = smooth_labels(weighted, self.smoothing) if smooth else weighted
        return cross_entropy(adjust_logits(logits, self.adjustment), targets)


@dataclass(frozen=True)
class BinaryLoss:
    """A loss of each class by itself: binary cross-entropy, or with `asl` the asymmetric loss."""

    is_multilabel: bool
    bce: BceConfig
    asl: AslConfig | None = None
    smoothing: float | Tensor = 0.0
    """As in `CrossEntropy`."""
    class_weights: Tensor | None = None
    """Of both terms of each class, [K]."""
    pos_weights: Tensor | None = None
    """Of the positive term of each class, [K]."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, smooth: bool, labeled: Tensor | None = None
    ) -> Tensor:
        targets, class_weights = labels, self.class_weights
        if labeled is not None:
            # Zeros say here that an image has none of the classes. So the labels are those of the
            # share of an image that has any, and the image counts as much as that.
            rows = labeled[:, None]
            targets = torch.where(
                rows > 0, labels / rows.clamp(min=torch.finfo(rows.dtype).tiny), 0
            )
            class_weights = rows if class_weights is None else rows * class_weights
        if smooth:
            smooth_targets = smooth_binary_labels if self.is_multilabel else smooth_labels
            targets = smooth_targets(targets, self.smoothing)
        if self.asl is not None:
            return asymmetric_loss(
                logits,
                targets,
                gamma_neg=self.asl.gamma_neg,
                gamma_pos=self.asl.gamma_pos,
                clip=self.asl.clip,
                class_weights=class_weights,
                pos_weights=self.pos_weights,
            )
        return binary_cross_entropy(
            logits,
            targets,
            class_weights=class_weights,
            pos_weights=self.pos_weights,
            target_thresh=None if self.bce.target_thresh < 0 else self.bce.target_thresh,
            sum_classes=self.bce.sum_classes,
        )


@dataclass(frozen=True)
class Supervised:
    """The task's loss with the true labels, of both heads of a distilled DeiT without a teacher."""

    task_loss: TaskLoss = CrossEntropy()

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        cls, dist = forward_heads(student, batch.images, batch.drop_path_mask)
        task_loss = self.task_loss(cls, batch.targets, smooth=True)
        if dist is None:
            return {"loss": task_loss, "task_loss": task_loss}
        task_loss_dist = self.task_loss(dist, batch.targets, smooth=True)
        loss = (task_loss + task_loss_dist) / 2
        return {"loss": loss, "task_loss": task_loss, "task_loss_dist": task_loss_dist}


@dataclass(frozen=True)
class Distillation:
    """True labels for the class head, teacher targets for the distillation head, or without a token
    for the same head, and features for the backbone.

    (1 - alpha) * task_loss + alpha * kd_loss: DeiT §3, Eq. 3 with `hard` and alpha = 1/2, Eq. 2
    with `soft` and alpha = lambda. A teacher's hard labels are learned by the task's loss, as true
    labels are, but not smoothed; its soft labels by the divergence of a softmax, or of a sigmoid a
    class, which class weights leave as it is. The loss of features is added, with a weight of its own;
    alone, it joins the whole of the true labels' (VkD's released code, engine.py).
    """

    config: DistillConfig
    task_loss: TaskLoss = CrossEntropy()
    is_multilabel: bool = False
    adjustment: Tensor | None = None
    """See `CrossEntropy`: the teacher's labels are as frequent as the true ones."""
    label_scale: float = 1.0
    """All images that are drawn over those with labels: the task's loss, which is 0 of the others, is so the
    mean over images with labels, as an expectation. A constant of the run, unlike their number in a
    batch, so that micro-batches and processes add up to the same."""
    features: FeatureTerm | None = None
    """Of a mode with features."""

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        if self.config.label_mode and batch.teacher_targets is None:
            raise ValueError("distillation needs teacher targets")
        images, mask = batch.images, batch.drop_path_mask
        if self.features is None:
            cls, dist = forward_heads(student, images, mask)
        else:
            (cls, dist), features = forward_heads_and_features(
                student, images, mask, pool=self.features.pool
            )
        task_loss = self.label_scale * self.task_loss(
            cls, batch.targets, smooth=True, labeled=batch.labeled
        )
        losses = {"loss": task_loss, "task_loss": task_loss}
        if batch.teacher_targets is not None and self.config.label_mode:
            kd_loss = self.compute_kd_loss(cls if dist is None else dist, batch.teacher_targets)
            losses["loss"] = (1 - self.config.alpha) * task_loss + self.config.alpha * kd_loss
            losses["kd_loss"] = kd_loss
        if self.features is not None:
            losses["feature_loss"] = self.features(features, batch.teacher_features)
            losses["loss"] = losses["loss"] + self.features.weight * losses["feature_loss"]
        return losses

    def compute_kd_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits [B,K] with a teacher's targets [B,K]."""
        config = self.config
        if config.label_mode == "hard":
            # A row is one hard label, or two of them weighted as two images are mixed (DeiT Eq. 3,
            # second term); of several labels one bit a class.
            return self.task_loss(logits, targets, smooth=False)
        if self.is_multilabel:
            return soft_binary_distillation(
                logits, targets, tau=config.tau, reduction=config.reduction
            )
        logits = adjust_logits(logits, self.adjustment)
        return soft_distillation(logits, targets, tau=config.tau, reduction=config.reduction)


UNNAMED_LOSS = CrossEntropy()
"""Of an objective that names no task loss; see `find_task_loss`."""


def find_task_loss(objective: Objective, *, is_multilabel: bool = False) -> TaskLoss:
    """Return the loss by which an objective learns the true labels; of one that names none, the usual
    one of such labels."""
    task_loss: TaskLoss = getattr(objective, "task_loss", UNNAMED_LOSS)
    if task_loss is UNNAMED_LOSS and is_multilabel:
        return BinaryLoss(is_multilabel=True, bce=BceConfig())
    return task_loss


def uses_sigmoids(task_loss: TaskLoss, *, is_multilabel: bool) -> bool:
    """Return whether a loss is of each class by itself, as a caller's own is of several labels."""
    return isinstance(task_loss, BinaryLoss) or (
        is_multilabel and not isinstance(task_loss, CrossEntropy)
    )


def estimate_guess_loss(
    task_loss: TaskLoss, counts: ClassCounts, device: torch.device | None = None
) -> float:
    """Return the task's loss of logits that are 0 for every image: ln K of a softmax, ln 2 of sigmoids.

    Of weighted or adjusted classes that of a batch of the rarest one, which may come.

    Args:
        task_loss: of the run, with its tensors on `device`.
        counts: of the training images.
        device: None: the CPU.
    """
    total = counts.num_images if counts.is_multilabel else counts.counts.sum()
    shares = _place((counts.counts / total)[None], device)
    logits = torch.zeros_like(shares)
    if not counts.is_multilabel:
        is_hard = False
        if isinstance(task_loss, BinaryLoss) and task_loss.bce.target_thresh >= 0:
            is_hard = True
            # Which makes hard labels of an image's, but of shares none.
            task_loss = replace(task_loss, bce=replace(task_loss.bce, target_thresh=-1.0))
        rarest = torch.where(shares > 0, shares, torch.inf).argmin(1)
        labels = (shares, make_targets(rarest, shares.shape[1]))
        return max(float(task_loss(logits, y, smooth=not is_hard)) for y in labels)
    # An image has a class or not: a loss that is focused on hard images is another for a share.
    present, absent = torch.ones_like(shares), torch.zeros_like(shares)
    if not isinstance(task_loss, BinaryLoss):
        share = float(shares.mean())
        with_all, with_none = (float(task_loss(logits, y, smooth=True)) for y in (present, absent))
        return share * with_all + (1 - share) * with_none
    weights = present[0] if task_loss.class_weights is None else task_loss.class_weights
    parts = ((shares[0], present), (1 - shares[0], absent))
    return sum(
        float(replace(task_loss, class_weights=weights * share)(logits, labels, smooth=True))
        for share, labels in parts
    )


def bound_label_weight(objective: Objective, batch_size: int, repeats: int = 1) -> float:
    """Return how much the labels of one batch may weigh, whose mean weight is 1.

    Where few images have labels, a batch that has some after many without weighs them by their scale.

    Args:
        objective: of the run.
        batch_size: images of a batch.
        repeats: of an image, which come together.
    """
    scale: float = getattr(objective, "label_scale", 1.0)
    if scale <= 1:
        return 1.0
    mean = batch_size / scale  # images with labels in a batch
    # Two pairs more where they are spread; five deviations more of draws that are not.
    return min(scale, (mean + repeats * (4 + 5 * math.sqrt(mean))) / mean)


def adjust_logits(logits: Tensor, adjustment: Tensor | None) -> Tensor:
    """Add the adjustment [K] to logits [B,K], in fp32; None leaves them as they are."""
    return logits if adjustment is None else logits.float() + adjustment


def build_objective(
    config: TrainConfig,
    counts: ClassCounts,
    device: torch.device | None = None,
    features: FeatureTerm | None = None,
) -> Objective:
    """Return what a run minimizes.

    Args:
        config: of the run.
        counts: of its training images.
        device: of the logits; None: the CPU.
        features: the loss of a teacher's features, of a mode that has them.

    Raises:
        ConfigError: as `check_loss`.
    """
    check_loss(config, counts)
    recipe, loss = config.recipe, choose_loss(config.recipe, is_multilabel=counts.is_multilabel)
    adjustment = None
    if recipe.logit_adjustment:
        adjustment = _place(recipe.logit_adjustment * compute_log_prior(counts), device)
    task_loss = _build_task_loss(recipe, counts, loss, adjustment, device)
    if config.distill is None:
        return Supervised(task_loss)
    label_scale = counts.compute_label_scale(recipe.sampling)
    return Distillation(
        config.distill, task_loss, counts.is_multilabel, adjustment, label_scale, features
    )


def _build_task_loss(
    recipe: Recipe,
    counts: ClassCounts,
    loss: str,
    adjustment: Tensor | None,
    device: torch.device | None,
) -> TaskLoss:
    weights = compute_class_weights(recipe, counts, loss=loss)
    weights = None if weights is None else _place(weights, device)
    smoothing = compute_smoothing(recipe, counts)
    smoothing = _place(smoothing, device) if isinstance(smoothing, Tensor) else smoothing
    if loss == "ce":
        return CrossEntropy(smoothing, weights, adjustment)
    is_positive = recipe.class_weights == "neg_pos"
    return BinaryLoss(
        counts.is_multilabel,
        recipe.bce,
        recipe.asl if loss == "asl" else None,
        smoothing,
        class_weights=None if is_positive else weights,
        pos_weights=weights if is_positive else None,
    )


def _place(values: Tensor, device: torch.device | None) -> Tensor:
    return values.float().to(device)


def choose_loss(recipe: Recipe, *, is_multilabel: bool) -> str:
    """Return the loss of a recipe by name: `ce`, `bce` or `asl`."""
    if recipe.loss != "auto":
        return recipe.loss
    return "bce" if is_multilabel else "ce"


def sums_classes(recipe: Recipe, *, is_multilabel: bool) -> bool:
    """Return whether the task's loss is a sum over classes, as a softmax's is, and not their mean."""
    loss = choose_loss(recipe, is_multilabel=is_multilabel)
    return loss != "bce" or recipe.bce.sum_classes


def check_loss(config: TrainConfig, counts: ClassCounts) -> None:
    """Refuse losses and remedies that do not go with the data or with each other; raise `ConfigError`."""
    recipe, is_multilabel = config.recipe, counts.is_multilabel
    loss = choose_loss(recipe, is_multilabel=is_multilabel)
    if is_multilabel and loss == "ce":
        raise ConfigError(
            "Cross-entropy learns one label an image, and these images may have several.",
            "Use loss bce or asl, or leave it out.",
        )
    if loss == "asl" and not is_multilabel:
        raise ConfigError(
            "The asymmetric loss is for several labels an image, and these have one.",
            "Use loss ce or bce, or leave it out.",
        )
    if recipe.logit_adjustment and loss != "ce":
        raise ConfigError(
            f"Logit adjustment shifts the logits of a softmax, and {LOSS_NAMES[loss]} has none.",
            "Use class_weights, or loss ce.",
        )
    if recipe.class_weights == "neg_pos" and loss == "ce":
        raise ConfigError(
            "class_weights neg_pos weighs positives against negatives, which cross-entropy does not have.",
            "Use inverse or effective, or loss bce.",
        )
    for name, group in (("bce", recipe.bce), ("asl", recipe.asl)):
        changed = [f.name for f in fields(group) if getattr(group, f.name) != f.default]
        if changed and loss != name:
            raise ConfigError(
                f"{name}.{changed[0]} is a setting of loss {name}, and the loss is {loss}.",
                f"Leave it out, or use loss {name}.",
            )
    if recipe.smoothing_by == "class" and not recipe.smoothing:
        raise ConfigError(
            "smoothing_by = class divides the label smoothing among classes, and smoothing is 0.",
            "Set smoothing too: 0.3 for example.",
        )
    if loss == "bce":
        _check_threshold(recipe, counts)


def _check_threshold(recipe: Recipe, counts: ClassCounts) -> None:
    """Refuse a threshold that makes all smoothed labels 1, or none of them."""
    threshold = recipe.bce.target_thresh
    off = recipe.smoothing / (2 if counts.is_multilabel else len(counts.class_names))
    on = 1 - recipe.smoothing + off
    if threshold >= 0 and not off <= threshold < on:
        effect = "every class of every image" if threshold < off else "no class of any image"
        raise ConfigError(
            f"bce.target_thresh = {threshold:g} with smoothing {recipe.smoothing:g}, by which labels "
            f"are {off:.3g} and {on:.3g}, makes {effect} positive.",
            "Use --set smoothing=0.",
        )


def report_loss(config: TrainConfig, counts: ClassCounts, reporter: Reporter) -> None:
    """Say in a line each how rare classes are weighted, and which remedies are applied twice."""
    recipe = config.recipe
    loss = choose_loss(recipe, is_multilabel=counts.is_multilabel)
    if recipe.loss not in ("auto", "ce") or recipe.logit_adjustment:
        adjusted = f", logits adjusted by {recipe.logit_adjustment:g} x log prior"
        reporter.note(f"Loss: {LOSS_NAMES[loss]}{adjusted if recipe.logit_adjustment else ''}.")
    weights = describe_class_weights(recipe, counts, loss=loss)
    if weights is not None:
        reporter.note(summarize_class_weights(weights, counts))
        if config.distill is not None and config.distill.label_mode == "soft":
            reporter.note("The teacher's soft labels are not weighted by class.")
    remedies = [
        name
        for name, is_on in (
            ("class weights", weights is not None),
            ("logit adjustment", bool(recipe.logit_adjustment)),
            ("balanced sampling", recipe.sampling == "balanced"),
        )
        if is_on
    ]
    if len(remedies) > 1:
        reporter.warn(
            f"{' and '.join(remedies)} each make up for rare classes: together they do it twice."
        )
