"""The built-in dataset of handwritten digits, which needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.subsets import Subset, select
from deitctl.errors import DataError


@dataclass(frozen=True)
class ArrayDataset(ImageDataset):
    """Grayscale images in memory, uint8 [N,H,W]."""

    images: NDArray[np.uint8]
    labels: Labels
    class_names: tuple[str, ...]
    title: str

    @property
    def is_in_memory(self) -> bool:
        return True

    def with_bands(self, bands: int) -> ArrayDataset:
        """Return the images; raise `DataError` for bands, which they have not."""
        if bands:
            raise DataError(
                f"The built-in digits are gray, and --in-chans {bands} takes images of {bands} bands.",
                "Name data that has them, or use --in-chans 1.",
            )
        return self

    def name(self, index: int) -> str:
        return f"{self.title}:{index}"

    def relative_path(self, index: int) -> str:
        return str(index)

    def num_bytes(self, index: int) -> int:
        return int(self.images[index].nbytes)

    def read_bytes(self, index: int) -> bytes:
        # Raw pixels, for fingerprints; there is no file whose format `decode` could read.
        return bytes(self.images[index].tobytes())

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    open = read


def load_digits() -> tuple[Subset, Subset]:
    """Return training and validation images, 8x8 pixels, 10 classes.

    Of 1,797 digits every fifth of a class is held out.

    From the UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (Alpaydin
    and Kaynak 1998, CC BY 4.0), the part that scikit-learn's `load_digits` has.
    """
    with resources.files("deitctl").joinpath("assets/digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    images = np.rint(images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    dataset = ArrayDataset(images, labels, tuple(str(d) for d in range(10)), "digits")
    order = np.empty(len(labels), dtype=np.int64)  # rank of each image within its class
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order[members] = np.arange(len(members))
    # A fixed split, not by seed: figures of `digits` are of the same 355 images everywhere.
    validation = order % 5 == 4
    return select(dataset, np.flatnonzero(~validation)), select(dataset, np.flatnonzero(validation))
