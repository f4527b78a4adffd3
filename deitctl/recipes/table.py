"""A recipe as a table: each setting's value with its source, from which the `Recipe` is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deitctl.config import AugmentConfig, BceConfig, OptimConfig, ProgressiveResize, Recipe

IMAGENET_IMAGES = 1_281_167
"""Training images of ImageNet-1k."""
GROUPS = {
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "bce": BceConfig,
    "progressive_resize": ProgressiveResize,
}
"""Groups of a recipe's settings that tables fill."""


class Sourced(NamedTuple):
    """A value, and where it is from."""

    value: Any
    source: str


Settings = Mapping[str, tuple[Any, str]]
"""Value and source of settings, by dotted name from the recipe on."""


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """An accuracy that was reached with a recipe, and by whom."""

    model: str
    """Model, by its name here where it has one."""
    data: str
    """Validation images."""
    top1: float
    """Top-1 accuracy, percent."""
    source: str
    """Paper, table, file or page that states it."""


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """Settings of a recipe for models of a size."""

    size: str
    """The authors' letter."""
    max_width: int
    """Largest width of the tokens that they are for."""
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class RecipeTable:
    """A recipe with the source of each of its numbers, what it is for, and what it reached."""

    name: str
    purpose: str
    paper: str
    """Where the recipe as a whole is from."""
    settings: Settings
    sizes: tuple[SizeSettings, ...] = ()
    """By rising width; a wider model has those of the last."""
    distill: Settings = field(default_factory=dict)
    """Settings of a teacher that go with it, by their names in `DistillConfig`."""
    model: str = "deit_small"
    """The model it is for where a user names none."""
    model_args: Settings = field(default_factory=dict)
    """Shape of that model, by timm's names."""
    num_images: int = IMAGENET_IMAGES
    """Training images that its cost is computed for."""
    num_classes: int = 1000
    """Classes that its cost is computed for."""
    step_flops: int = 0
    """Operations of an image, forward and backward, where the model is no DeiT: as torch counts them."""
    published: tuple[PublishedResult, ...] = ()

    def build(self) -> Recipe:
        """Return the recipe's settings."""
        values: dict[str, Any] = {"name": self.name}
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for name, (value, _) in self.settings.items():
            group, dot, setting = name.partition(".")
            if dot:
                groups[group][setting] = value
            else:
                values[name] = value
        return Recipe(**values, **{name: kind(**groups[name]) for name, kind in GROUPS.items()})

    def find_size(self, width: int) -> SizeSettings | None:
        """Return the settings of a model's size; None for a recipe that has none by size."""
        fitting = (size for size in self.sizes if width <= size.max_width)
        return next(fitting, self.sizes[-1] if self.sizes else None)
