"""Content fingerprints of datasets, files and models.

Equal wherever they lie and whenever they were written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import nn

from deitctl.data.bands import BANDS_VERSION
from deitctl.data.contents import Fingerprint
from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import DEEP_VERSION
from deitctl.data.splits import list_relative_paths
from deitctl.data.unlabeled import find_labeled, select_labeled
from deitctl.data.value_range import NO_RANGE, write_range
from deitctl.distributed import World
from deitctl.errors import DataError, ModelError
from deitctl.events import Reporter, track
from deitctl.models.checkpoint_io import CONFIG
from deitctl.paths import read_json
from deitctl.threads import map_patiently

MAX_READ = 1 << 30
"""Bytes of images up to which all are hashed; of larger datasets all sizes, and the content of
`NUM_SAMPLED` images."""
NUM_SAMPLED = 4096
LENGTH = 16  # hexadecimal digits: 64 bits
FITTED = ("temperatures", "thresholds")
"""Keys of a model's config.json that no logit depends on."""


def fingerprint_dataset(dataset: ImageDataset, reporter: Reporter) -> str:
    """Hash the class names and each image's name, label, size and content, in order.

    Above 1 GiB the content of 4,096 evenly spaced images is hashed, which takes seconds for
    ImageNet; an image that is added, removed, moved, renamed or encoded anew still changes a name
    or a size. Of images of more than 8 bits their range is hashed too, and how they are decoded.
    """
    count = len(dataset.labels)
    sizes = dataset.read_sizes().astype("<i8")
    # A separator, so that ("ab", "c") and ("a", "bc") differ.
    digest = hashlib.sha256("\x1f".join(dataset.class_names).encode("utf-8", "surrogateescape"))
    digest.update(_encode_labels(dataset))
    digest.update(sizes.tobytes())
    for index in range(count):
        separator = "\x1f" if index else ""
        # The last part alone: a data set that was moved, packed or put into a tar has the same
        # fingerprint.
        name = separator + PurePath(dataset.relative_path(index)).name
        digest.update(name.encode("utf-8", "surrogateescape"))
    read_all = sizes.sum() <= MAX_READ or count <= NUM_SAMPLED
    sample = (
        range(count) if read_all else np.linspace(0, count - 1, NUM_SAMPLED).astype(int).tolist()
    )
    has_deep_images = False
    images = map_patiently(lambda index: _fingerprint_image(dataset, index), sample)
    for image in track(images, reporter, "fingerprint the data", len(sample)):
        # An unreadable image is part of the data: repairing it changes the training set.
        digest.update(image.sha256 if image is not None else b"unreadable")
        has_deep_images = has_deep_images or (image is not None and image.is_deep)
    # What decides the pixels of images of more than 8 bits beside their files.
    value_range = "" if dataset.value_range == NO_RANGE else write_range(dataset.value_range)
    if has_deep_images or value_range:
        digest.update(f"\x1f{DEEP_VERSION} {value_range}".encode())
    if dataset.bands:
        digest.update(f"\x1fbands {dataset.bands} {BANDS_VERSION}".encode())
    return digest.hexdigest()[:LENGTH]


class RunFingerprints:
    """Fingerprints of a run's images, each computed once, by the main process."""

    def __init__(
        self, train: ImageDataset, val: ImageDataset, reporter: Reporter, world: World
    ) -> None:
        """Name the images; nothing is read before a fingerprint is needed, or shared."""
        self._train, self._val = train, val
        self._reporter, self._world, self._is_shared = reporter, world, world.size == 1

    @cached_property
    def train(self) -> str:
        """Of the training images."""
        return fingerprint_dataset(self._train, self._reporter)

    @cached_property
    def labeled(self) -> str:
        """Of those that have labels."""
        part = select_labeled(self._train)
        return self.train if part is self._train else fingerprint_dataset(part, self._reporter)

    @cached_property
    def val(self) -> str:
        """Of the validation images."""
        return fingerprint_dataset(self._val, self._reporter)

    def share(self) -> None:
        """Have the main process compute all, for the others too, which read nothing; collective."""
        if not self._is_shared:
            values = self._world.run_on_main(lambda: (self.train, self.labeled, self.val))
            self.__dict__.update(zip(("train", "labeled", "val"), values, strict=True))
            self._is_shared = True


def _fingerprint_image(dataset: ImageDataset, index: int) -> Fingerprint | None:
    try:
        return dataset.fingerprint(index)
    except DataError:
        return None


def _encode_labels(dataset: ImageDataset) -> bytes:
    labels = dataset.labels
    if not dataset.is_multilabel:
        return np.asarray(labels, dtype="<i8").tobytes()
    encoded = b"multilabel" + np.packbits(labels > 0, axis=1).tobytes()
    return encoded + (b"" if labels.dtype == np.bool_ else find_labeled(labels).tobytes())


def fingerprint_split(train: ImageDataset, val: ImageDataset) -> str:
    """Hash which images train and which validate, in order, with their labels: names alone.

    Equal wherever the data lies. Nothing is read, so that it takes two seconds for ImageNet.
    """
    digest = hashlib.sha256()
    for part in (train, val):
        names = (*part.class_names, "", *list_relative_paths(part), "")
        digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
        digest.update(_encode_labels(part))
    return digest.hexdigest()[:LENGTH]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Hash the content of files, in order; raise `ModelError` if one cannot be read.

    A model's config.json is hashed by its values, without `FITTED`.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            # By values: a config.json written anew, with other spaces or order, is the same model.
            if path.name == CONFIG and (text := _canonicalize_config(path)):
                digest.update(hashlib.sha256(text).digest())
                continue
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()[:LENGTH]


def _canonicalize_config(path: Path) -> bytes:
    """Return a model config as sorted JSON without `FITTED`; empty for anything else."""
    try:
        config = read_json(path)
    except ValueError:
        return b""
    if not isinstance(config, dict):
        return b""
    own = config.get("deitctl")
    if isinstance(own, dict):
        # `eval` writes these, and must not make cached teacher targets stale.
        own = {key: value for key, value in own.items() if key not in FITTED}
        config = config | {"deitctl": own}
    return json.dumps(config, sort_keys=True).encode()


def fingerprint_model(model: nn.Module) -> str:
    """Hash the names, shapes, dtypes and bytes of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()[:LENGTH]
