"""What an explanation says of an image, as records and drawings have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deitctl.inference.classifier import ScoredClass


@dataclass(frozen=True)
class TokenPrediction(ScoredClass):
    """A token's most probable class."""

    class_score: float | None
    """Probability of the explained class, 0..1; null if none was named."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of one image, or the reason why there is none."""

    input: str
    """Path or URL as given, or `image N` for the Nth without one."""
    image: Path | None
    """The drawing."""
    method: str
    """gradient, rollout or last-layer."""
    class_name: str | None
    """Label of the explained class; null for each head's own prediction, and where a method depends on
    no class."""
    tokens: dict[str, TokenPrediction] = field(default_factory=dict)
    """By token: `cls`, `dist`."""
    disagree: bool | None = None
    """Whether the two heads predict different classes, of a multi-label model other labels; null for a
    model with one head."""
    error: str | None = None
    """Why the image could not be explained."""
