"""Normal noise that a device computes by itself: a function of a seed and of a pixel's place.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): no state, so that
neither the batch nor the order of images changes what an image gets, and nothing travels from the host. Integer
arithmetic below 2^63 and a table of the normal distribution's quantiles give the same bits on every device.

Letters: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deitctl.constants import place_once

WORD = 0xFFFFFFFF
"""32 bits, which the numbers of the generator have."""
LEVELS = 2**16
"""Quantiles of the table; the outermost is at 4.2 deviations."""


def compute_quantiles() -> Tensor:
    """Return the normal distribution's quantiles in the middles of `LEVELS` equal parts, float32 [`LEVELS`]."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles: Tensor = torch.special.ndtri(middles)
    return quantiles.float()


def scramble(x: Tensor) -> Tensor:
    """Return a number of 32 bits for each of 32 bits, one to one, of which each bit depends on all.

    The constants are of hash-prospector (github.com/skeeto/hash-prospector); both are below 2^31, so that
    no product overflows int64.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & WORD
    return x ^ (x >> 15)


def sample_noise(
    seeds: Tensor, channels: int, rows: tuple[int, int], columns: tuple[int, int], width: int
) -> Tensor:
    """Return the noise of a window of images, float32 [B,C,rows,columns].

    Args:
        seeds: of the images, int64 [B], 0 to 2^63 - 1.
        channels: C.
        rows: the first of the window, and the one after the last.
        columns: likewise.
        width: W of the images, of which places are numbered.
    """
    device = seeds.device
    quantiles = place_once("normal quantiles", device, compute_quantiles)
    # One number of 32 bits serves two neighbors of a row, 16 bits each.
    pairs = torch.arange(columns[0] // 2, (columns[1] + 1) // 2, device=device)
    row = torch.arange(*rows, device=device)[:, None]
    height = 1 << 16  # more rows than any image has, so that channels do not share places
    channel = torch.arange(channels, device=device)[:, None, None]
    places = ((channel * height + row) * (-(-width // 2)) + pairs) & WORD
    # Scrambled before places are added: neighboring seeds would else share all places but one.
    low = scramble(scramble(seeds & WORD) ^ (seeds >> 32))[:, None, None, None]
    high = scramble(low ^ WORD)
    word = scramble(scramble((places + low) & WORD) ^ high)
    both = torch.stack([word & (LEVELS - 1), word >> 16], dim=-1).flatten(-2)
    first = columns[0] % 2
    both = both[..., first : first + columns[1] - columns[0]]
    return quantiles.index_select(0, both.reshape(-1)).view(both.shape)
