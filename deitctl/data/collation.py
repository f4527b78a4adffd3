"""Labels and pixels of images, stacked into the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels

Label = int | NDArray[np.bool_] | NDArray[np.int8]
"""Of an image: its class, or of several labels which classes it has, bool [K]; -1 where it has no label."""


def get_label(dataset: ImageDataset, index: int) -> Label:
    """Return the label of an image as a batch is made of it."""
    label = dataset.labels[index]
    return label if dataset.is_multilabel else int(label)


def stack_labels(labels: Sequence[Label], is_good: Sequence[bool]) -> Tensor:
    """Return the labels of some images, int64 [B], or of several labels an image bool or int8 [B,K].

    Args:
        labels: of each image.
        is_good: whether it is returned; of several labels K is known where none of them is.
    """
    array = np.array(labels)
    of_several = np.int8 if array.dtype == np.int8 else np.bool_
    dtype = of_several if array.ndim > 1 else np.int64
    return torch.from_numpy(array[np.array(is_good, np.bool_)].astype(dtype))


def stack_images(images: Sequence[Pixels]) -> Tensor:
    """Return images as uint8 [B,C,H,W], of no image [0,3,0,0]."""
    return torch.from_numpy(np.stack(images) if images else np.empty((0, 3, 0, 0), np.uint8))
