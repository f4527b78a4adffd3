"""Teacher targets: hard or soft labels from a teacher's logits, and their compact form on disk.

Letters: B images, K classes, W 16-bit numbers per record.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deitctl.errors import TeacherError

Records = NDArray[np.uint16]

MAX_CLASSES = 65_000  # a hard record has the class + 1 in 16 bits
FLOAT16_INFINITY = 0x7C00  # first bit pattern that is not a finite number from 0 on


def teacher_targets(logits: Tensor, mode: str, tau: float) -> Tensor:
    """Turn a teacher's logits into target distributions.

    Args:
        logits: [B,K].
        mode: `hard`, one-hot at the argmax, not smoothed (DeiT section 3: "smoothing of true labels
            only"); or `soft`, softmax(logits / tau) (DeiT Eq. 2).
        tau: temperature of soft labels, above 0.

    Returns:
        [B,K] in fp32.
    """
    if mode == "hard":
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return (logits.float() / tau).softmax(dim=1)


@dataclass(frozen=True)
class TargetCodec:
    """Encodes target distributions over K classes as records of W unsigned 16-bit numbers.

    A record begins with a checksum. Hard: class + 1 follows. Soft: the probability of every class in
    float16 (three digits above 6e-5); with `topk` below K the indices of the `topk` likeliest classes
    and their probabilities, and the remaining probability is spread evenly over the other classes.
    """

    mode: str
    num_classes: int
    topk: int = 0

    def __post_init__(self) -> None:
        if self.num_classes > MAX_CLASSES:
            raise TeacherError(
                f"A teacher cache holds at most {MAX_CLASSES:,} classes, "
                f"the data has {self.num_classes:,}.",
                "Leave the cache out: --teacher-cache off.",
            )

    @property
    def num_kept(self) -> int:
        """Classes whose probability a soft record holds."""
        return min(self.topk, self.num_classes)

    @property
    def width(self) -> int:
        """Numbers of a record, W."""
        if self.mode == "hard":
            return 2
        return 1 + self.num_kept * (1 if self.num_kept == self.num_classes else 2)

    def encode(self, targets: Tensor) -> Records:
        """Encode distributions [B,K] as records [B,W]."""
        if self.mode == "hard":
            labels = targets.argmax(dim=1) + 1  # 0 is an empty record
            numbers = np.asarray(labels.cpu().numpy(), dtype=np.uint16)
            return np.stack([_compute_hard_checksums(numbers), numbers], axis=1)
        targets = targets.float().cpu()
        if self.num_kept == self.num_classes:
            body = targets.half().numpy().view(np.uint16)
        else:
            top = targets.topk(self.num_kept, dim=1)
            probabilities = top.values.half().numpy().view(np.uint16)
            body = np.concatenate([top.indices.numpy().astype(np.uint16), probabilities], axis=1)
        return np.concatenate([_compute_checksums(body)[:, None], body], axis=1)

    def decode(self, records: Records) -> Tensor:
        """Decode records [B,W] to distributions [B,K] in fp32, each of which sums to one."""
        if self.mode == "hard":
            labels = torch.from_numpy(records[:, 1].astype(np.int64) - 1)
            return F.one_hot(labels, self.num_classes).float()
        body = np.ascontiguousarray(records[:, 1:])
        if self.num_kept == self.num_classes:
            targets = torch.from_numpy(body.view(np.float16).astype(np.float32))
            return targets / targets.sum(dim=1, keepdim=True)
        indices = torch.from_numpy(body[:, : self.num_kept].astype(np.int64))
        values = np.ascontiguousarray(body[:, self.num_kept :]).view(np.float16)
        probabilities = torch.from_numpy(values.astype(np.float32))
        rest = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(min=0)
        rest = rest / (self.num_classes - self.num_kept)
        targets = rest.expand(-1, self.num_classes).clone().scatter_(1, indices, probabilities)
        return targets / targets.sum(dim=1, keepdim=True)

    def is_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds a target."""
        if self.mode == "hard":
            checksums, labels = records.T
            in_range = (labels > 0) & (labels <= self.num_classes)
            return np.asarray(in_range & (checksums == _compute_hard_checksums(labels)))
        # Indices and probabilities are checked besides the checksum, because a cache may be
        # crafted.
        body = records[:, 1:]
        valid = (records[:, 0] == _compute_checksums(body)) & body.any(axis=1)
        if self.num_kept < self.num_classes:
            valid &= (body[:, : self.num_kept] < self.num_classes).all(axis=1)
            body = body[:, self.num_kept :]
        return np.asarray(valid & (body < FLOAT16_INFINITY).all(axis=1))


def _compute_hard_checksums(labels: Records) -> Records:
    """Return a checksum in 1..65521 for each class + 1, [B], as `_compute_checksums`.

    No flipped bit, nor one in each of the two numbers, leads from a valid record to another.
    """
    # 40503 is 2^16 divided by the golden ratio, which scatters neighbors.
    return np.asarray(labels.astype(np.uint32) * 40503 % 65521 + 1, dtype=np.uint16)


def _compute_checksums(body: Records) -> Records:
    """Return a checksum in 1..65521 for each row: never 0 (empty) or 65535 (unreadable)."""
    # 65521 is the largest 16-bit prime (as in Adler-32); no weight is 0 modulo it, so every number
    # counts.
    weights = np.arange(body.shape[1], dtype=np.uint64) % 65520 + 1
    return np.asarray((body.astype(np.uint64) * weights).sum(axis=1) % 65521 + 1, dtype=np.uint16)
