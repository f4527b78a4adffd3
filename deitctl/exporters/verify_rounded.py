"""The proof of a file whose numbers are rounded on purpose.

How far the logits may move cannot be said in logits: int8 moves DeiT-tiny's by 0.07 in the mean and 0.7 at most, a model
of digits' by 0.004. What is bounded is the RMS difference relative to the spread of the model's logits. An image whose two
best classes are close may change its first class; one that is clear may not. What this cannot see, a mean that is a
little wrong, was excluded before: the same network in fp32 has passed `verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deitctl.errors import ExportError
from deitctl.exporters.compare_outputs import (
    Answers,
    Images,
    Verification,
    checked_answers,
    measure,
)
from deitctl.exporters.golden import Golden

CLEAR = 6.0
"""RMS differences between the two best logits of a clear image. Of DeiT-tiny's images 85 % are. Those whose first class
int8 changed were up to 1.3 apart, 3.4 with other ways to round. A model of digits that int8 of everything had hurt
failed by this alone: 12 apart, the RMS 0.07 of the spread."""


def verify_rounded(
    path: Path,
    program: Path,
    wanted: Answers,
    sample: Images,
    *,
    tolerance: float,
    golden: Golden | None = None,
) -> tuple[Verification, float]:
    """Run an exported file in a fresh process and compare, see `verify`.

    Returns:
        How far it is from the model, and the RMS difference of the logits relative to their spread: the RMS of the
        model's logits around the mean of each image.

    Raises:
        ExportError: it does not run, is further away than `tolerance`, or has another first class for a clear image.
    """
    return compare_rounded(
        checked_answers(sample.pixels, path, program, golden), wanted, sample.names, tolerance
    )


def compare_rounded(
    given: Answers, wanted: Answers, names: Sequence[str], tolerance: float
) -> tuple[Verification, float]:
    """Compare the answers of a rounded file, [1 or 2,N,K], with the model's, as `verify_rounded` does."""
    found, logits = measure(given, wanted, names), wanted[0]
    rms = _rms(given[0] - logits)
    relative = rms / (
        _rms(logits - logits.mean(axis=1, keepdims=True)) or 1.0
    )  # one class alone has no spread
    differs = logits.argmax(axis=1) != given[0].argmax(axis=1)
    best_two = np.sort(logits, axis=1)[:, -2:]
    clear = best_two[:, -1] - best_two[:, 0] > CLEAR * rms
    wrong = [name for name, bad in zip(names, differs & clear, strict=True) if bad]
    if not relative <= tolerance or wrong:  # a difference that is no number fails too
        example = f", and {wrong[0]} is a clear image" if wrong else ""
        raise ExportError(
            f"The rounded file disagrees with the model on {found.num_images} images: logits differ by {relative:.3g} of "
            f"their spread where {tolerance:g} is allowed, top-1 agrees on {found.top1_agreement:.1f} %{example}."
        )
    return found, relative


def _rms(values: Answers) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
