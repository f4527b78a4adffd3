"""The golden sample: one input with its answer inside the file, so that whoever runs it anywhere can tell that all is well.

The input is eight by eight random colors, blown up to the network's size: 256 characters of metadata, and no image
of anybody's. Every channel, row and column is another, so swapped channels and transposed axes change the answer.
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

GOLDEN = "golden_sample"
TILE = 8
TOLERANCE = 1e-3
"""The largest RMS difference of the logits that passes, in their standard deviations; 2e-6 measured on DeiT-tiny."""

Logits = NDArray[np.float32]


class Golden(NamedTuple):
    """An input [1,S,S,3], what the model answers to it, [K], and how far a file's answer may be from that."""

    pixels: Pixels
    logits: Logits
    tolerance: float

    def difference(self, given: Logits) -> float:
        """Return the RMS difference of an answer [K], in standard deviations of the logits."""
        if given.shape != self.logits.shape:
            raise ExportError(
                f"The golden sample has {len(self.logits)} logits, and the file answers with shape {given.shape}."
            )
        spread = float(self.logits.std()) or 1.0  # one class alone has none
        return float(np.sqrt(np.mean((given - self.logits) ** 2))) / spread

    def check(self, given: Logits) -> float:
        """Return the difference of an answer [K]; raise `ExportError` if it is beyond the tolerance."""
        found = self.difference(given)
        if not found <= self.tolerance:  # a difference that is no number fails too
            raise ExportError(
                f"The file's golden sample is answered {found:.3g} off, where {self.tolerance:g} is allowed."
            )
        return found


def golden_tile() -> Pixels:
    """Return the colors, uint8 [8,8,3]."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)


def enlarge(tile: Pixels, size: int) -> Pixels:
    """Return `pixels[y,x] = tile[8y // S, 8x // S]` as a batch of one, uint8 [1,S,S,3]."""
    nearest = np.arange(size) * TILE // size
    return tile[nearest][:, nearest][None]


def golden_input(size: int) -> Pixels:
    """Return the input of a network of `size` pixels, uint8 [1,S,S,3]."""
    return enlarge(golden_tile(), size)


def golden_sample(logits: Logits) -> str:
    """Return as JSON the colors in base64, the model's answer [K] to them, and the tolerance of that."""
    sample = {
        "tile": base64.b64encode(golden_tile().tobytes()).decode(),
        "pixels": f"pixels[y][x] = tile[{TILE} * y // S][{TILE} * x // S], RGB, uint8",
        "logits": [float(f"{x:.6g}") for x in logits],
        "tolerance": TOLERANCE,
    }
    return json.dumps(sample)


def read_golden(metadata: Mapping[str, str], size: int) -> Golden:
    """Read what `golden_sample` wrote, for a network of `size` pixels; raise `ExportError` where there is none."""
    if GOLDEN not in metadata:
        raise ExportError(
            "The file has no golden sample: it was written by an older deitctl.", "Export it again."
        )
    try:
        sample = json.loads(metadata[GOLDEN])
        tile = np.frombuffer(base64.b64decode(sample["tile"]), dtype=np.uint8).reshape(
            TILE, TILE, 3
        )
        logits = np.array(sample["logits"], dtype=np.float32).reshape(len(sample["logits"]))
        return Golden(enlarge(tile, size), logits, float(sample["tolerance"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExportError("The file's golden sample cannot be read.", "Export it again.") from error
