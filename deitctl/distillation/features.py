"""A teacher's features in their compact form on disk. Letters: B images, D features, W 16-bit numbers per record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deitctl.distillation.targets import (
    FLOAT16_INFINITY,
    Records,
    read_halves,
    sum_numbers,
    to_numbers,
    to_records,
)
from deitctl.errors import TeacherError

FEATURES_VERSION = 1
"""Goes up when records mean something else."""
MAX_FEATURES = 1_000_000
"""Beyond which a number is an attack."""
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class FeatureCodec:
    """Encodes features [B,D] as records of W unsigned 16-bit numbers: a checksum, then D numbers in float16.

    Three digits of each number above 6e-5: of what is learned, the features standardized or their direction, that
    is far below the spread of a view's features.
    """

    num_features: int

    @property
    def width(self) -> int:
        """Numbers of a record, W."""
        return 1 + self.num_features

    def encode(self, features: Tensor) -> Records:
        """Encode features [B,D] as records [B,W]; raise `TeacherError` for numbers that float16 lacks."""
        if not self.can_store(features).all():
            raise TeacherError(
                "The teacher's features are not finite, or larger than float16 holds.",
                "Check its weights; or --precision fp32.",
            )
        return self.seal(to_records(self.pack(features)))

    def decode(self, records: Records) -> Tensor:
        """Decode records [B,W] to features [B,D] in fp32."""
        return self.unpack(to_numbers(records))

    def seal(self, records: Records) -> Records:
        """Return records [B,W] with their checksums."""
        body = records[:, 1:]
        return np.concatenate([sum_numbers(body)[:, None], body], axis=1)

    def can_store(self, features: Tensor) -> Tensor:
        """Return for each image whether float16 holds its features [B,D], on their device."""
        return (features.float().abs() <= LARGEST).all(dim=1)  # not NaN

    def pack(self, features: Tensor) -> Tensor:
        """Return features [B,D] as the bits of records, int16 [B,W] on their device, the checksums 0."""
        return F.pad(features.half().contiguous().view(torch.int16), (1, 0))

    def unpack(self, numbers: Tensor) -> Tensor:
        """Return the features [B,D] in fp32, on their device, whose records have these bits, int16 [B,W]."""
        return read_halves(numbers[:, 1:])

    def is_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds features."""
        body = records[:, 1:]
        # Numbers are checked besides the checksum, because a cache may be crafted.
        is_finite = ((body & FLOAT16_INFINITY) != FLOAT16_INFINITY).all(axis=1)
        return np.asarray((records[:, 0] == sum_numbers(body)) & is_finite)
