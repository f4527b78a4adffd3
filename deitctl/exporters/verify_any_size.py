"""The proof of a file that takes whole images: it sees of them what the model sees, and answers the same.

The network inside was proven before, to the tolerance of its format. What is new is the way from the whole image to
that network, and that is compared in gray levels. A file that cuts one pixel beside, or resizes without antialiasing,
is tens of levels off; by the logits alone it would hardly be known, and not at all once they are rounded to int8.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels, has_extreme_aspect
from deitctl.errors import ExportError
from deitctl.exporters.any_size import golden_view
from deitctl.exporters.compare_outputs import Answers, Images, Verification, compare, run
from deitctl.exporters.golden import Golden
from deitctl.exporters.verify_rounded import compare_rounded
from deitctl.models.model_config import Preprocessing

PROGRAM = Path(__file__).with_name("run_onnx_any.py")
LEVELS = 2
"""The largest difference of a value, of 255, that passes: either pass of a resize may round one value the other way."""
SHARE = 0.1
"""Of the values that may differ: 0.003 measured on photographs, 0.08 on images of some pixels, resized bilinearly."""
TOLERANCE = 0.2
"""The largest difference of a logit: 0.04 measured on DeiT-tiny; a wrong cubic gives 0.4, a cut one pixel beside 2."""
AT_ONCE = 16
"""Images that wait on the disk for a process, of any size."""


def verify_any_size(
    path: Path,
    golden: Golden,
    wanted: Answers,
    dataset: ImageDataset,
    sample: Images,
    pre: Preprocessing,
    *,
    rounded: float | None,
) -> tuple[Verification, float | None, float]:
    """Show the golden sample and whole images to an ONNX file in fresh processes, and compare.

    Args:
        path: what `take_any_size` wrote.
        golden: its golden sample.
        wanted: the model's answers to `sample`, [2,N,K].
        source: where the images of `sample` are from.
        sample: the images as the model sees them.
        pre: the model's preprocessing.
        rounded: the tolerance of a rounded file, see `verify_rounded`; None: fp32.

    Returns:
        How far the answers are from the model's, the same relative to the spread of the logits for a rounded file, and
        the share of the values of the pixels that differ, by `LEVELS` at most.

    Raises:
        ExportError: it does not run, sees something else, answers something else, or no image is for it.
    """
    shown: list[int] = []

    def whole() -> Iterator[Pixels]:
        for n, index in enumerate(sample.indices):
            image = dataset.read(index)
            if not has_extreme_aspect(image.width, image.height, pre):
                shown.append(n)
                yield np.asarray(image)

    given, seen = look(chain(golden.pixels, whole()), path)
    if not shown:
        raise ExportError(
            "All images to verify on are too long for a file that resizes.",
            "Name others with --verify-with.",
        )
    compare_seen(seen[:1], golden_view(pre), ["the golden sample"])
    golden.check(given[0, 0])
    names, wanted, given = [sample.names[n] for n in shown], wanted[:, shown], given[:, 1:]
    share = compare_seen(seen[1:], sample.pixels[shown], names)
    if rounded is None:
        return compare(given, wanted, names, TOLERANCE), None, share
    return *compare_rounded(given, wanted, names, rounded), share


def look(images: Iterator[Pixels], path: Path) -> tuple[Answers, Pixels]:
    """Return what a file answers to images [H,W,3], [2,N,K], and what its network saw of them, uint8 [N,S,S,3]."""
    parts = []
    while some := list(islice(images, AT_ONCE)):
        with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
            given = Path(folder) / "images"
            given.mkdir()
            for number, image in enumerate(some):
                np.save(given / f"{number:06d}.npy", image)
            parts.append((run(path, PROGRAM, given), np.load(Path(folder) / "seen.npy")))
    answers, seen = zip(*parts, strict=True)
    return np.concatenate(answers, axis=1), np.concatenate(seen)


def compare_seen(seen: Pixels, wanted: Pixels, names: Sequence[str]) -> float:
    """Compare what a network saw with what the model sees, [N,S,S,3]: the share of values that differ.

    Raises:
        ExportError: a value differs by more than `LEVELS`, or more of them differ than `SHARE`.
    """
    if seen.shape != wanted.shape:
        raise ExportError(
            f"The exported file looks at images of shape {seen.shape[1:]}, the model of {wanted.shape[1:]}."
        )
    off = np.abs(seen.astype(np.int16) - wanted)
    worst, share = int(off.max()), float((off > 0).mean())
    if worst > LEVELS or share > SHARE:
        first = names[int(off.reshape(len(off), -1).max(axis=1).argmax())]
        raise ExportError(
            f"The exported file sees images otherwise than the model: values differ by up to {worst} of 255 where "
            f"{LEVELS} are allowed ({first}), {100 * share:.2g} % of them differ at all."
        )
    return share
