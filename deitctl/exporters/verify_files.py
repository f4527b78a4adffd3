"""The proof that another library's preprocessing is ours: from the file of an image to the name of its class."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import MAX_RESIZED_PIXELS, center, resized
from deitctl.errors import ExportError
from deitctl.exporters.compare_outputs import Answers, Images, Verification, compare, measure, run
from deitctl.models.model_config import Preprocessing

# Torchvision's resizing differs from Pillow's by a level or two of 255: 0.06 measured on DeiT-tiny, wrong means give 3.
TORCHVISION_TOLERANCE = 0.5


@dataclass(frozen=True)
class FromFiles:
    """How far the answers to image files are from the model's."""

    chosen: Verification
    """As the library preprocesses when nobody tells it how, all images."""
    pillow: float
    """Largest difference with Pillow, over the images that are cut alike."""
    shifted: int
    """Images whose center begins one pixel earlier."""

    @property
    def summary(self) -> str:
        """Say it in a sentence or two."""
        cut = (
            f" Of {self.chosen.num_images} images {self.shifted} are cut one pixel beside deitctl's cut."
            * bool(self.shifted)
        )
        return (
            f'From image file to label: with backend="pil" logits differ by up to {self.pillow:.2g} where both cut the '
            f"same, as its own choice (torchvision, where it is installed) by {self.chosen.max_abs_diff:.2g} in all.{cut}"
        )


def verify_files(
    path: Path,
    program: Path,
    wanted: Answers,
    dataset: ImageDataset,
    sample: Images,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    *,
    tolerance: float,
) -> FromFiles:
    """Have an exported folder look at whole images in a fresh process, and compare.

    The images are written as PNG, decoded: what is proven begins after the JPEG decoder, which is Pillow's in both.

    Args:
        path: the folder.
        program: the script that runs it, with the arguments PATH IMAGES OUT.npy; it leaves labels.json beside OUT.
        wanted: the model's answers, [2,N,K].
        source: where the images of `sample` are from.
        sample: the images.
        preprocessing: the model's.
        labels: what the folder is to call the classes.
        tolerance: the largest difference with Pillow of an image that is cut alike.

    Raises:
        ExportError: it does not run, disagrees, names the classes otherwise, or cuts none of the images alike.
    """
    with tempfile.TemporaryDirectory(prefix="deitctl-verify-") as folder:
        files = Path(folder) / "images"
        files.mkdir()
        alike = []
        for number, index in enumerate(sample.indices):
            image = dataset.read(index)
            alike.append(cut_alike(image.width, image.height, preprocessing))
            image.save(files / f"{number:06d}.png", compress_level=1)
        pillow, chosen = run(path, program, files)
        given = json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8"))
    if wrong := [
        (ours, theirs) for ours, theirs in zip(labels, given, strict=True) if ours != theirs
    ]:
        raise ExportError(f"The exported folder calls the class {wrong[0][0]!r} {wrong[0][1]!r}.")
    same = np.flatnonzero(alike)
    if not len(same):
        raise ExportError(
            f"None of {len(alike)} images is cut alike here and there, so nothing is proven.",
            "Name others with --verify-with: a quarter of all sizes are cut one pixel apart.",
        )
    names = [sample.names[i] for i in same]
    exact = compare(pillow[None, same], wanted[:1, same], names, tolerance)
    near = measure(chosen[None, same], wanted[:1, same], names)
    if not near.max_abs_diff <= TORCHVISION_TOLERANCE:
        raise ExportError(
            f"The exported folder looks at images otherwise than the model: logits differ by up to "
            f"{near.max_abs_diff:.3g} where {TORCHVISION_TOLERANCE:g} is allowed."
        )
    return FromFiles(
        measure(chosen[None], wanted[:1], sample.names), exact.max_abs_diff, len(alike) - len(same)
    )


def cut_alike(width: int, height: int, pre: Preprocessing) -> bool:
    """Say whether transformers cuts the same square out of an image of that size.

    Where the middle lies between two pixels, transformers rounds down, torchvision (and timm, and we) to the even one:
    a cut of 224 from 331 begins at 53 there and at 54 here.
    """
    target = pre.resize_to
    scaled = (target, target) if pre.crop_mode == "squash" else resized(width, height, target)
    if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
        return False
    return all(center(length, pre.img_size) == (length - pre.img_size) // 2 for length in scaled)
