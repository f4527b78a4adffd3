"""Labels and features of one teacher, read and written together: each kind has a codec and a cache of its own, so that
a run that learns one of them finds what a run that learned both has left.

Letters: B images, W 16-bit numbers of a record, of labels and then of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.distillation.features import FeatureCodec
from deitctl.distillation.target_cache import TargetCache
from deitctl.distillation.targets import Records, TargetCodec, TeacherTargets, to_numbers


@dataclass(frozen=True)
class JointCodec:
    """Encodes what a run learns of a teacher: the record of its labels, then that of its features."""

    labels: TargetCodec | None
    features: FeatureCodec | None

    @property
    def parts(self) -> tuple[TargetCodec | FeatureCodec, ...]:
        """The codecs of what is learned."""
        return tuple(codec for codec in (self.labels, self.features) if codec is not None)

    @property
    def width(self) -> int:
        """Numbers of a record, W."""
        return sum(codec.width for codec in self.parts)

    def encode(self, targets: TeacherTargets) -> Records:
        """Encode the targets of B images as records [B,W]."""
        records = []
        if self.labels is not None:
            assert targets.labels is not None
            records.append(self.labels.encode(targets.labels))
        if self.features is not None:
            records.append(self.features.encode(targets.features[0]))
        return np.concatenate(records, axis=1)

    def decode(self, records: Records) -> TeacherTargets:
        """Decode records [B,W]."""
        return self.unpack(to_numbers(records))

    def seal(self, records: Records) -> Records:
        """Return records [B,W] with the checksum of each kind."""
        pairs = zip(self.parts, self.split(records), strict=True)
        return np.concatenate([codec.seal(part) for codec, part in pairs], axis=1)

    def pack(self, targets: TeacherTargets) -> Tensor:
        """Return the targets of B images as the bits of records, int16 [B,W] on their device, the checksums 0."""
        numbers = []
        if self.labels is not None:
            assert targets.labels is not None
            numbers.append(self.labels.pack(targets.labels))
        if self.features is not None:
            numbers.append(self.features.pack(targets.features[0]))
        return numbers[0] if len(numbers) == 1 else torch.cat(numbers, dim=1)

    def unpack(self, numbers: Tensor) -> TeacherTargets:
        """Return the targets of B images, on their device, whose records have these bits, int16 [B,W]."""
        labels: Tensor | None = None
        features: tuple[Tensor, ...] = ()
        if self.labels is not None:
            labels = self.labels.unpack(numbers[:, : self.labels.width])
        if self.features is not None:
            features = (self.features.unpack(numbers[:, -self.features.width :]),)
        return TeacherTargets(labels, features)

    def split(self, records: Records) -> list[Records]:
        """Return the records of each kind."""
        ends = np.cumsum([codec.width for codec in self.parts])[:-1]
        return np.split(records, ends, axis=1)

    def merge(self, stored: Tensor, computed: Tensor, is_stored: Tensor) -> Tensor:
        """Return computed numbers [B,W], but for kinds that are stored; see `complete`.

        Args:
            stored: [B,W] on a device.
            computed: likewise.
            is_stored: bool, whether each kind is stored, [B, kinds].
        """
        widths = [codec.width for codec in self.parts]
        parts = zip(
            torch.split(is_stored, 1, dim=1),
            torch.split(stored, widths, dim=1),
            torch.split(computed, widths, dim=1),
            strict=True,
        )
        return torch.cat([torch.where(*part) for part in parts], dim=1)

    def is_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds a target of each kind."""
        return np.asarray(self.find_valid(records).all(axis=1))

    def find_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds a target of each kind, [B, kinds]."""
        pairs = zip(self.parts, self.split(records), strict=True)
        return np.stack([codec.is_valid(part) for codec, part in pairs], axis=1)

    def complete(self, records: Records, computed: Records) -> Records:
        """Return computed records [B,W], but for kinds that `records` hold.

        Cached targets stay as they are: computed again in another batch, their last digits may differ, and a
        resumed run would read others than it began with.
        """
        parts = zip(
            self.split(records), self.split(computed), self.find_valid(records).T, strict=True
        )
        chosen = [np.where(valid[:, None], old, new) for old, new, valid in parts]
        return np.concatenate(chosen, axis=1)


@dataclass(frozen=True)
class JointCache:
    """The caches of labels and of features, as if they were one; methods as those of `TargetCache`."""

    labels: TargetCache
    features: TargetCache

    @property
    def parts(self) -> tuple[TargetCache, TargetCache]:
        """Both caches."""
        return self.labels, self.features

    @property
    def root(self) -> Path:
        """Folder that messages name: that of the labels."""
        return self.labels.root

    @property
    def record_bytes(self) -> int:
        """Bytes of a view of an image."""
        return sum(cache.record_bytes for cache in self.parts)

    def has_target(self, view: int, index: int) -> bool:
        """Return whether both targets of a view of an image are cached."""
        return all(cache.has_target(view, index) for cache in self.parts)

    def read(self, keys: Sequence[tuple[int, int]]) -> tuple[Records, NDArray[np.bool_]]:
        """Return the records [B,W] of (view, image) pairs, and which of them are valid, [B]."""
        records, valid = zip(*(cache.read(keys) for cache in self.parts), strict=True)
        return np.concatenate(records, axis=1), np.all(valid, axis=0)

    def write(self, keys: Sequence[tuple[int, int]], records: Records) -> None:
        """Store records [B,W] of (view, image) pairs."""
        width = self.labels.codec.width
        self.labels.write(keys, records[:, :width])
        self.features.write(keys, records[:, width:])

    def mark_damaged(self, keys: Sequence[tuple[int, int]]) -> None:
        """Mark images that cannot be decoded, so that they do not count as missing."""
        for cache in self.parts:
            cache.mark_damaged(keys)

    def missing_indices(
        self, view: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.int64]:
        """Return the readable images in start..stop of a view that lack a target."""
        labels, features = (cache.missing_indices(view, start, stop) for cache in self.parts)
        return np.union1d(labels, features)

    def cached_indices(self, view: int) -> NDArray[np.int64]:
        """Return the images of a view that have both targets."""
        labels, features = (cache.cached_indices(view) for cache in self.parts)
        return np.intersect1d(labels, features)

    def damaged_indices(self, views: int) -> set[int]:
        """Return the images that could not be decoded in one of the first `views` views."""
        return self.labels.damaged_indices(views) | self.features.damaged_indices(views)

    def count_missing(self, views: int) -> int:
        """Return how many (view, image) pairs of the first `views` views lack a target."""
        return sum(len(self.missing_indices(view)) for view in range(views))


Cache: TypeAlias = TargetCache | JointCache


def join_caches(labels: TargetCache | None, features: TargetCache | None) -> Cache | None:
    """Return the cache of what a run learns; None where nothing is cached."""
    if labels is not None and features is not None:
        return JointCache(labels, features)
    return labels if labels is not None else features
