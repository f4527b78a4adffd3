"""The golden sample: one input with its answer inside the file, so that whoever runs it anywhere can tell that all is well.

The input is eight by eight random colours, blown up to the network's size: 256 characters of metadata, and no picture
of anybody's. Every channel, row and column is another, so swapped channels and transposed axes change the answer.
"""

from __future__ import annotations

import base64
import json

import numpy as np

from deitctl.card import ModelCard
from deitctl.data.eval_view import Pixels
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.verify import reference

GOLDEN = "golden_sample"
TILE = 8
TOLERANCE = 1e-3
"""The largest RMS difference of the logits that passes, in their standard deviations; 2e-6 measured on DeiT-tiny."""


def golden_tile() -> Pixels:
    """Return the colours, uint8 [8,8,3]."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)


def enlarge(tile: Pixels, size: int) -> Pixels:
    """Return `pixels[y,x] = tile[8y // S, 8x // S]` as a batch of one, uint8 [1,S,S,3]."""
    nearest = np.arange(size) * TILE // size
    return tile[nearest][:, nearest][None]


def golden_sample(network: ExportedClassifier, card: ModelCard) -> str:
    """Return as JSON the colours in base64, what the model answers (its logits, [K]), and the tolerance of that."""
    tile = golden_tile()
    logits = reference(network.model, card, network.head, enlarge(tile, card.preprocessing.img_size))[0, 0]
    sample = {
        "tile": base64.b64encode(tile.tobytes()).decode(),
        "pixels": f"pixels[y][x] = tile[{TILE} * y // S][{TILE} * x // S], RGB, uint8",
        "logits": [float(f"{x:.6g}") for x in logits],
        "tolerance": TOLERANCE,
    }
    return json.dumps(sample)
