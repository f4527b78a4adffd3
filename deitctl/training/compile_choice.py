"""Whether a run is compiled: by what compiling costs at the start and gains in every image after it.

Figures of earlier runs of the same model, shape, device and torch lie beside the stored graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deitctl.home import choose_cache_path
from deitctl.paths import DiskError, read_json, write_json

FILE = "compile.json"
"""In a run's folder."""
FIGURES = "compiled/figures.json"
"""In deitctl's cache."""
MAX_BYTES = 1 << 24
ASSUMED_GAIN = 0.3
"""Share of an image's time that compiling is assumed to gain before it was measured."""
ASSUMED_GRAPH_S = 60.0
"""Seconds that a graph is assumed to take before it was measured."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run takes an image, compiled and not, in seconds."""

    eager_image: float
    """Forward and backward pass, uncompiled."""
    compiled_image: float
    graph: float
    """Compiling of a graph."""

    @classmethod
    def assume(cls, eager_image: float) -> Figures:
        """Return what is assumed of a model that was never compiled here."""
        return cls(
            eager_image=eager_image,
            compiled_image=(1 - ASSUMED_GAIN) * eager_image,
            graph=ASSUMED_GRAPH_S,
        )

    def scale_to(self, eager_image: float) -> Figures:
        """Return the same with another time of an image, as of a machine that does something else too."""
        scale = eager_image / self.eager_image
        return Figures(
            eager_image=eager_image, compiled_image=scale * self.compiled_image, graph=self.graph
        )

    def compute_gain(self, num_images: float, num_graphs: int) -> float:
        """Return the seconds by which a run gets shorter, negative where it gets longer.

        Args:
            num_images: that are left to be trained on, by one process.
            num_graphs: that are left to be compiled.
        """
        return num_images * (self.eager_image - self.compiled_image) - num_graphs * self.graph


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a run is compiled, as its folder has it."""

    compiled: bool
    device: str
    """Kind of device that it was decided for; on another it is decided anew."""
    reason: str
    figures: Figures | None = None
    num_images: float = 0
    num_graphs: int = 0

    def describe(self) -> str:
        """Return the choice as a sentence."""
        return f"{'Compiled' if self.compiled else 'Not compiled'}: {self.reason}."


def choose(
    figures: Figures, num_images: float, num_graphs: int, *, device: str, source: str
) -> Decision:
    """Choose by the figures of a run; arguments as of `Figures.compute_gain`.

    Args:
        device: kind of the device.
        source: where the figures are from, in a word.
    """
    gain = figures.compute_gain(num_images, num_graphs)
    eager, compiled = 1000 * figures.eager_image, 1000 * figures.compiled_image
    start = num_graphs * figures.graph
    reason = (
        f"{eager:.3g} ms an image, {compiled:.3g} ms compiled ({source}); {num_graphs} graphs take {start:.0f} s, "
        f"and the {num_images:,.0f} images left {'gain' if compiled < eager else 'lose'} "
        f"{abs(gain + start):.0f} s"
    )
    return Decision(
        compiled=gain > 0,
        device=device,
        reason=reason,
        figures=figures,
        num_images=num_images,
        num_graphs=num_graphs,
    )


def read_figures(key: str) -> Figures | None:
    """Return what was measured of a model, shape, device and torch; None if nothing was."""
    values = _read(choose_cache_path(FIGURES)).get(key)
    return _parse_figures(values)


def write_figures(key: str, figures: Figures) -> None:
    """Add what was measured to what the next runs know; where it cannot be written, they measure again."""
    path = choose_cache_path(FIGURES)
    with suppress(DiskError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_read(path), key: asdict(figures)})


def read_decision(root: Path) -> Decision | None:
    """Return what a run began with; None where that is not recorded."""
    record = _read(root / FILE)
    compiled, device, reason = (record.get(name) for name in ("compiled", "device", "reason"))
    if not (isinstance(compiled, bool) and isinstance(device, str) and isinstance(reason, str)):
        return None
    return Decision(
        compiled=compiled,
        device=device,
        reason=reason,
        figures=_parse_figures(record.get("figures")),
    )


def write_decision(root: Path, choice: Decision) -> None:
    """Record what a run is trained with, so that its resume is trained alike.

    Raises:
        DiskError: the file cannot be written.
    """
    write_json(root / FILE, asdict(choice))


def _read(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        record = read_json(path, MAX_BYTES)
        if isinstance(record, dict):
            return record
    return {}


def _parse_figures(values: object) -> Figures | None:
    names = [field.name for field in fields(Figures)]
    if not isinstance(values, dict):
        return None
    numbers = [values.get(name) for name in names]
    if not all(isinstance(number, float | int) and number > 0 for number in numbers):
        return None
    return Figures(**dict(zip(names, numbers, strict=True)))  # type: ignore[arg-type]
