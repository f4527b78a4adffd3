"""Verify exports that preprocess images themselves: dynamic-size ONNX, transformers folders.

The network inside was verified before, to the tolerance of its format. New is the path from a whole
image to that network.

Shapes:
    N images, H by W pixels, S pixels along a side of the network's input, K classes
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import (
    MAX_RESIZED_PIXELS,
    Pixels,
    get_crop_offset,
    get_resized_size,
    has_extreme_aspect,
)
from deitctl.errors import ExportError
from deitctl.exporters.compare import (
    Verification,
    compare,
    compare_quantized,
    measure,
    run_export,
)
from deitctl.exporters.dynamic_size import make_golden_view
from deitctl.exporters.golden import Golden
from deitctl.exporters.verification_images import Images, Outputs
from deitctl.models.model_config import Preprocessing
from deitctl.sizes import short_side

MAX_LEVELS = 2
"""Of 255, that a pixel value may differ: either pass of a resize may round the other way."""
MAX_FRACTION = 0.1
"""Of the values that may differ: 0.003 measured on photographs, 0.08 on tiny images."""
DYNAMIC_TOLERANCE = 0.2
"""Of a logit: 0.04 measured on DeiT-tiny; a wrong cubic gives 0.4, a crop one pixel off 2."""
TORCHVISION_TOLERANCE = 0.5
"""The same after torchvision's resize, a level or two off: 0.06 measured, a wrong mean gives 3."""
FILES_AT_ONCE = 16
"""Images of any size that are on the disk at a time."""


def verify_dynamic_size(
    path: Path,
    golden: Golden,
    expected: Outputs,
    dataset: ImageDataset,
    sample: Images,
    pre: Preprocessing,
    *,
    tolerance: float | None,
    cutoffs: Outputs | None = None,
) -> Verification:
    """Run a dynamic-size ONNX file on its golden sample and whole images, and compare.

    What its network gets of an image is compared in pixel values. A crop one pixel off, or a resize
    without antialiasing, is tens of levels off; in the logits it would hardly show, and not at all
    once they are int8's.

    Args:
        path: what `make_dynamic` wrote.
        golden: its golden sample.
        expected: the model's outputs for `sample`, [2,N,K].
        dataset: where the images of `sample` are from.
        sample: the images as the model gets them.
        pre: the model's preprocessing.
        tolerance: of a quantized file, see `compare_quantized`; None: fp32.
        cutoffs: of a multi-label model, see `list_cutoffs`.

    Raises:
        ExportError: it does not run, gets other pixels, outputs differ, or no image suits it.
    """
    suitable: list[int] = []

    def read_whole() -> Iterator[Pixels]:
        # A generator: whole images are large, and only FILES_AT_ONCE are held and written at a
        # time.
        for n, index in enumerate(sample.indices):
            image = dataset.read(index)
            # Of these deitctl computes only the part inside the crop, and Pillow 12 filters columns
            # first: the file would resize all of it, in gigabytes or with other rounding.
            if not has_extreme_aspect(image.width, image.height, pre):
                suitable.append(n)
                yield np.asarray(image)

    outputs, seen = run_on_whole_images(path, chain(golden.pixels, read_whole()))
    if not suitable:
        raise ExportError(
            "All images to verify on are too elongated for a file that resizes.",
            "Name others with --verify-data.",
        )
    compare_pixels(seen[:1], make_golden_view(pre), ["the golden sample"])
    golden.check(outputs[0, 0])
    names, expected, outputs = (
        [sample.names[n] for n in suitable],
        expected[:, suitable],
        outputs[:, 1:],
    )
    fraction = compare_pixels(seen[1:], sample.pixels[suitable], names)
    if tolerance is None:
        verification = compare(outputs, expected, names, DYNAMIC_TOLERANCE, cutoffs)
    else:
        verification = compare_quantized(outputs, expected, names, tolerance, cutoffs)
    remark = (
        f"Whole images: {100 * fraction:.2g} % of the pixel values that the network gets differ "
        f"from deitctl's, by {MAX_LEVELS} of 255 at most."
    )
    return replace(verification, remark=remark)


def run_on_whole_images(path: Path, images: Iterator[Pixels]) -> tuple[Outputs, Pixels]:
    """Return the outputs for images [H,W,3], [C,N,K], and the network's input, uint8 [N,S,S,3]."""
    parts = []
    while batch := list(islice(images, FILES_AT_ONCE)):
        with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
            inputs = Path(folder) / "images"
            inputs.mkdir()
            for number, image in enumerate(batch):
                np.save(inputs / f"{number:06d}.npy", image)
            outputs = run_export("onnx", path, inputs)
            parts.append((outputs, np.load(Path(folder) / "seen.npy")))
    all_outputs, seen = zip(*parts, strict=True)
    return np.concatenate(all_outputs, axis=1), np.concatenate(seen)


def compare_pixels(seen: Pixels, expected: Pixels, names: Sequence[str]) -> float:
    """Compare a network's input with the model's, [N,S,S,3]; return the fraction that differs.

    Raises:
        ExportError: a value differs by more than `MAX_LEVELS`, or more than `MAX_FRACTION` do.
    """
    if seen.shape != expected.shape:
        raise ExportError(
            f"The export's network gets images of shape {seen.shape[1:]}, "
            f"the model of {expected.shape[1:]}."
        )
    # int16, as uint8 wraps around.
    difference = np.abs(seen.astype(np.int16) - expected)
    largest, fraction = int(difference.max()), float((difference > 0).mean())
    if largest > MAX_LEVELS or fraction > MAX_FRACTION:
        worst = names[int(difference.reshape(len(difference), -1).max(axis=1).argmax())]
        raise ExportError(
            f"The export preprocesses images unlike the model: pixel values differ by up to "
            f"{largest} of 255 where {MAX_LEVELS} are allowed ({worst}), "
            f"{100 * fraction:.2g} % differ at all."
        )
    return fraction


def verify_image_files(
    path: Path,
    expected: Outputs,
    dataset: ImageDataset,
    sample: Images,
    pre: Preprocessing,
    labels: Sequence[str],
    *,
    tolerance: float,
    cutoffs: Outputs | None = None,
) -> Verification:
    """Run a transformers folder on image files in a fresh process, and compare.

    Images are passed as PNG: verification begins after the JPEG decoder, Pillow's in both.

    Args:
        path: the folder.
        expected: the model's outputs, [2,N,K].
        dataset: where the images of `sample` are from.
        sample: the images.
        pre: the model's preprocessing.
        labels: the class names that the folder should have.
        tolerance: the largest difference with Pillow of an image that both crop alike.
        cutoffs: of a multi-label model, see `list_cutoffs`.

    Raises:
        ExportError: it does not run, disagrees, has other labels, or crops no image alike.
    """
    with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
        files = Path(folder) / "images"
        files.mkdir()
        alike = []
        for number, index in enumerate(sample.indices):
            image = dataset.read(index)
            alike.append(is_cropped_alike(image.width, image.height, pre))
            image.save(files / f"{number:06d}.png", compress_level=1)
        pillow, default = run_export("transformers", path, files)
        folder_labels = json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(labels, folder_labels, strict=True):
        if ours != theirs:
            raise ExportError(f"The exported folder calls the class {ours!r} {theirs!r}.")
    same = np.flatnonzero(alike)
    if not len(same):
        raise ExportError(
            f"None of {len(alike)} images is cropped alike by both, so nothing can be compared.",
            "Name others with --verify-data: a quarter of all sizes are cropped one pixel apart.",
        )
    names = [sample.names[i] for i in same]
    # Only images that both crop alike; the others are counted and reported. Cropped one pixel
    # beside, logits of photographs differed by up to 0.60, with the same top-1 class.
    with_pillow = compare(pillow[None, same], expected[:1, same], names, tolerance, cutoffs)
    by_default = measure(default[None, same], expected[:1, same], names, cutoffs)
    assert by_default.max_abs_diff is not None
    if not by_default.max_abs_diff <= TORCHVISION_TOLERANCE:
        raise ExportError(
            f"The exported folder preprocesses images unlike the model: logits differ by up to "
            f"{by_default.max_abs_diff:.3g} where {TORCHVISION_TOLERANCE:g} is allowed."
        )
    verification = measure(default[None], expected[:1], sample.names, cutoffs)
    remark = (
        f'From image file to label: with backend="pil" logits differ by up to '
        f"{with_pillow.max_abs_diff:.2g} where both crop alike, with the default backend "
        f"(torchvision, where installed) by {verification.max_abs_diff:.2g} in all."
    )
    if shifted := len(alike) - len(same):
        remark += f" Of {len(alike)} images {shifted} are cropped one pixel beside deitctl's crop."
    return replace(verification, remark=remark)


def is_cropped_alike(width: int, height: int, pre: Preprocessing) -> bool:
    """Return whether transformers crops the same square out of an image of that size.

    Where the center lies between two pixels, transformers rounds down, torchvision (and timm, and
    we) to the even one: a crop of 224 from 331 begins at 53 there and at 54 here.
    """
    target, side = short_side(pre.resize_to), short_side(pre.img_size)
    scaled = (
        (target, target) if pre.crop_mode == "squash" else get_resized_size(width, height, target)
    )
    # deitctl resizes only the part inside the crop of these, transformers the whole image.
    if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
        return False
    return all(get_crop_offset(length, side) == (length - side) // 2 for length in scaled)
