"""The golden sample: one input and its logits inside an export, to check it without its model.

The input is eight by eight random colors, enlarged to the network's size: 256 characters of
metadata, not a user's image. All channels, rows and columns differ, so swapped channels and
transposed axes change the logits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.sizes import ImageSize, height_width

GOLDEN = "golden_sample"
TILE = 8
TOLERANCE = 1e-3
"""The largest RMS difference that passes, in standard deviations of the logits; 2e-6 measured."""

Logits = NDArray[np.float32]


class Golden(NamedTuple):
    """An input, the model's logits for it, and how far an export's logits may be from those."""

    pixels: Pixels
    """uint8 [1,S,S,3]"""
    logits: Logits
    """[K]"""
    tolerance: float
    """In standard deviations of the logits."""

    def compute_difference(self, logits: Logits) -> float:
        """Return the RMS difference of logits [K], in standard deviations of the model's."""
        if logits.shape != self.logits.shape:
            raise ExportError(
                f"The golden sample has {len(self.logits)} logits, "
                f"the export's output has shape {logits.shape}."
            )
        spread = float(self.logits.std()) or 1.0  # a single class has none
        return float(np.sqrt(np.mean((logits - self.logits) ** 2))) / spread

    def check(self, logits: Logits) -> float:
        """Return the difference of logits [K]; raise `ExportError` beyond the tolerance."""
        difference = self.compute_difference(logits)
        if not difference <= self.tolerance:  # written so that NaN fails
            raise ExportError(
                f"The export fails its golden sample: logits differ by {difference:.3g} "
                f"of their standard deviation, where {self.tolerance:g} is allowed."
            )
        return difference


def make_golden_tile() -> Pixels:
    """Return the colors, uint8 [8,8,3]."""
    # Random, so that no two channels, rows or columns are alike. PCG64 by name: default_rng may
    # change its bit generator with a NumPy version, and the sample would no longer be reproducible.
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)


def enlarge(tile: Pixels, size: ImageSize, in_chans: int = 3) -> Pixels:
    """Return `pixels[y,x] = tile[8y // H, 8x // W]` as a batch of one, uint8 [1,H,W,C].

    A network of one channel gets the red one, one of more than three the same colors from other
    places, see `_describe_pixels`.
    """
    # Nearest neighbor in integers: anybody can make the same input in any language, without a
    # resize filter whose rounding differs.
    rows, columns = (np.arange(side) * TILE // side for side in height_width(size))
    if in_chans > 3:
        bands = [
            np.roll(tile[..., c % 3], (-(c // 3), -(c // (3 * TILE))), (0, 1))
            for c in range(in_chans)
        ]
        return np.stack(bands, axis=2)[rows][:, columns][None]
    return tile[rows][:, columns][None, ..., :in_chans]


def make_golden_input(size: ImageSize, in_chans: int = 3) -> Pixels:
    """Return the input of a network of `size` pixels, uint8 [1,H,W,C]."""
    return np.ascontiguousarray(enlarge(make_golden_tile(), size, in_chans))


def make_golden_sample(logits: Logits, size: ImageSize = 0, in_chans: int = 3) -> str:
    """Return as JSON the colors in base64, the model's logits [K] for them, and the tolerance."""
    sample = {
        "tile": base64.b64encode(make_golden_tile().tobytes()).decode(),
        "pixels": _describe_pixels(size, in_chans),
        # Six digits are an error of 1e-6, a thousandth of the tolerance, in half of the bytes.
        "logits": [float(f"{x:.6g}") for x in logits],
        "tolerance": TOLERANCE,
    }
    return json.dumps(sample)


def _describe_pixels(size: ImageSize, in_chans: int) -> str:
    height, width = ("S", "S") if isinstance(size, int) else ("H", "W")
    if in_chans > 3:
        place = f"({TILE} * y // {height} + c // 3) % {TILE}][({TILE} * x // {width} + c // 24) % {TILE}"
        return f"pixels[y][x][c] = tile[{place}][c % 3], {in_chans} channels, uint8"
    channels = (
        "RGB" if in_chans == 3 else f"the first {'' if in_chans == 1 else 'two '}of three channels"
    )
    return f"pixels[y][x] = tile[{TILE} * y // {height}][{TILE} * x // {width}], {channels}, uint8"


def set_golden_tolerance(metadata: Mapping[str, str], tolerance: float) -> dict[str, str]:
    """Return metadata whose golden sample, if there is one, has another tolerance."""
    if GOLDEN not in metadata:
        return dict(metadata)
    sample = json.loads(metadata[GOLDEN]) | {"tolerance": tolerance}
    return {**metadata, GOLDEN: json.dumps(sample)}


def read_golden(metadata: Mapping[str, str], size: ImageSize, in_chans: int = 3) -> Golden:
    """Read the golden sample for a network of `size` pixels; raise `ExportError` without one."""
    if GOLDEN not in metadata:
        raise ExportError(
            "The export has no golden sample: an older deitctl wrote it.", "Export it again."
        )
    try:
        sample = json.loads(metadata[GOLDEN])
        tile = np.frombuffer(base64.b64decode(sample["tile"]), dtype=np.uint8).reshape(
            TILE, TILE, 3
        )
        logits = np.array(sample["logits"], dtype=np.float32).reshape(len(sample["logits"]))
        pixels = np.ascontiguousarray(enlarge(tile, size, in_chans))
        return Golden(pixels, logits, float(sample["tolerance"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExportError(
            "The export's golden sample cannot be read.", "Export it again."
        ) from error
