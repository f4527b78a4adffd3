"""Remedies for rare classes, from the numbers of training images: weights, log priors, smoothing.

Letters: K classes, N images, n images of a class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deitctl.config import Recipe
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import BalancedDraws, WeightedDraws
from deitctl.data.labels import count_images, weigh_classes
from deitctl.data.unlabeled import count_unlabeled, find_labeled

CLASS_WEIGHTS = "class_weights.json"
"""In a run's folder, where classes are weighted."""


@dataclass(frozen=True)
class ClassCounts:
    """Training images of each class."""

    counts: Tensor
    """Images of each class, float64 [K]; of several labels an image, each counts."""
    num_images: int
    """N, those with labels."""
    is_multilabel: bool
    """Whether an image may have several labels, or none."""
    class_names: tuple[str, ...]
    num_unlabeled: int = 0
    """Images beside these N that have no labels."""
    balanced_scale: float = 1.0
    """All draws of balanced sampling over those of images with labels."""

    @classmethod
    def of(cls, dataset: ImageDataset) -> ClassCounts:
        """Count the images of a dataset, each as often as it comes in an epoch."""
        unlabeled, weights = count_unlabeled(dataset), dataset.draw_weights
        num_images = len(dataset.labels) - unlabeled
        counts = torch.from_numpy(count_images(dataset)).double()
        if weights is not None:
            weights = WeightedDraws(weights).weights
            counts = torch.from_numpy(weigh_classes(dataset, weights))
            num_images = round(float(weights[find_labeled(dataset.labels)].sum(dtype=np.float64)))
        scale = BalancedDraws(dataset.labels).label_scale if unlabeled else 1.0
        return cls(counts, num_images, dataset.is_multilabel, dataset.class_names, unlabeled, scale)

    def compute_label_scale(self, sampling: str) -> float:
        """Return all images that a run draws over those of them with labels, by its recipe's `sampling`."""
        if sampling == "balanced":
            return self.balanced_scale
        return 1 + self.num_unlabeled / max(1, self.num_images)

    @property
    def filled(self) -> Tensor:
        """The counts, a class without an image being counted as of one (timm.loss.class_weights)."""
        return self.counts.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class ClassWeights:
    """How much each class counts in the loss."""

    method: str
    """`inverse`, `effective` or `neg_pos`."""
    of: str
    """What they multiply: `images` by their label (softmax), `classes` (both terms of a sigmoid's
    loss) or `positives` (the term of images that have the class)."""
    lowest: float
    """Smallest weight."""
    lowest_class: str
    """Its class."""
    highest: float
    """Largest weight."""
    highest_class: str
    """Its class."""
    weights: tuple[float, ...]
    """Of each class, in the order of the model's outputs."""


def compute_class_weights(recipe: Recipe, counts: ClassCounts, *, loss: str) -> Tensor | None:
    """Return the weights of the classes, float64 [K]; None for none.

    `inverse` is (N / n)^power, `effective` (1 - beta) / (1 - beta^n) (Cui et al. 2019, arXiv
    1901.05555, Eq. 2), `neg_pos` ((N - n) / n)^power: timm.loss.compute_class_weights, where they are
    called inv_freq, effective_num and neg_pos. timm scales the first two to a mean of 1 over the
    classes. So are they here with sigmoids, where every image has a term of each class. With a softmax
    an image has the term of its label alone, and the mean is 1 over the images: so the loss and its
    share beside a teacher's keep their size, no batch has to be divided by the sum of its weights, and
    `inverse` is N / (K n), scikit-learn's `balanced`.

    Args:
        recipe: `class_weights`, its power and beta.
        counts: of the training images.
        loss: `ce`, `bce` or `asl`.
    """
    n = counts.filled
    if recipe.class_weights == "none":
        return None
    if recipe.class_weights == "neg_pos":
        return ((counts.num_images - n).clamp(min=0) / n) ** recipe.class_weight_power
    if recipe.class_weights == "inverse":
        weights = (counts.num_images / n) ** recipe.class_weight_power
    else:
        beta = recipe.class_weight_beta
        weights = (1 - beta) / (1 - beta**n)
    if loss == "ce":
        return weights * counts.num_images / (weights * counts.counts).sum()
    return weights / weights.mean()


def describe_class_weights(
    recipe: Recipe, counts: ClassCounts, *, loss: str
) -> ClassWeights | None:
    """Return the weights of the classes for the plan and the run's folder; None for none."""
    weights = compute_class_weights(recipe, counts, loss=loss)
    if weights is None:
        return None
    low, high = int(weights.argmin()), int(weights.argmax())
    of = "images" if loss == "ce" else "classes"
    return ClassWeights(
        method=recipe.class_weights,
        of="positives" if recipe.class_weights == "neg_pos" else of,
        lowest=float(weights[low]),
        lowest_class=counts.class_names[low],
        highest=float(weights[high]),
        highest_class=counts.class_names[high],
        weights=tuple(weights.tolist()),
    )


def summarize_class_weights(weights: ClassWeights, counts: ClassCounts) -> str:
    """Return a sentence for the log."""
    method = {"inverse": "inverse frequency", "effective": "effective number of images"}
    number_of = dict(zip(counts.class_names, counts.counts.tolist(), strict=True))
    low, high = weights.lowest_class, weights.highest_class
    return (
        f"Class weights ({method.get(weights.method, 'negatives / positives')}), of {weights.of}: "
        f"{weights.lowest:.3g} ({low}, {_name_count(number_of[low])}) to "
        f"{weights.highest:.3g} ({high}, {_name_count(number_of[high])})."
    )


def _name_count(count: float) -> str:
    return f"{count:,.0f} image{'s' * (round(count) != 1)}"


def compute_log_prior(counts: ClassCounts) -> Tensor:
    """Return the logarithm of each class's share of the training images, float64 [K]."""
    return (counts.filled / counts.filled.sum()).log()


def compute_smoothing(recipe: Recipe, counts: ClassCounts) -> float | Tensor:
    """Return the label smoothing of every label, or with `smoothing_by = class` of each class's, float64 [K].

    Label-aware smoothing (MiSLAS, arXiv 2104.00466, section 3.2, the concave form): with n images a
    class it is smoothing x sin(pi / 2 x (n - n_min) / (n_max - n_min)), so that the rarest class has
    none, the largest the recipe's.
    """
    n = counts.counts
    least, most = float(n.min()), float(n.max())
    if recipe.smoothing_by == "all" or least == most:
        return recipe.smoothing
    return recipe.smoothing * torch.sin(math.pi / 2 * (n - least) / (most - least))
