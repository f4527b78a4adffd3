"""Teacher targets: hard or soft labels from a teacher's logits, and their compact form on disk.

Letters: B images, K classes, W 16-bit numbers per record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deitctl.errors import TeacherError

Records = NDArray[np.uint16]

MAX_CLASSES = 65_000  # a hard record has the class + 1 in 16 bits
FLOAT16_INFINITY = 0x7C00  # first bit pattern that is not a finite number from 0 on
FLOAT16_ONE = 0x3C00


class TeacherTargets(NamedTuple):
    """What a student learns of B images from its teachers."""

    labels: Tensor | None
    """[B,K]; logits of a teacher that is averaged with others; None where their features alone are learned."""
    features: tuple[Tensor, ...] = ()
    """[B,D] in fp32 of each teacher whose features are learned."""


def teacher_targets(logits: Tensor, mode: str, tau: float, is_multilabel: bool = False) -> Tensor:
    """Turn a teacher's logits into targets of the classes.

    Args:
        logits: [B,K].
        mode: `hard`, one-hot at the argmax, not smoothed (DeiT section 3: "smoothing of true labels
            only"); or `soft`, softmax(logits / tau) (DeiT Eq. 2).
        tau: temperature of soft labels, above 0.
        is_multilabel: each class by itself: `hard` is whether its probability is 1/2 or more, `soft`
            sigmoid(logits / tau).

    Returns:
        [B,K] in fp32; distributions over the classes, or of several labels 0..1 for each class.
    """
    if is_multilabel:
        return (logits >= 0).float() if mode == "hard" else (logits.float() / tau).sigmoid()
    if mode == "hard":
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return (logits.float() / tau).softmax(dim=1)


@dataclass(frozen=True)
class TargetCodec:
    """Encodes targets over K classes as records of W unsigned 16-bit numbers.

    A record begins with a checksum. Hard: class + 1 follows, or of several labels one bit a class. Logits, which are
    averaged with those of other teachers: two numbers a class, which are its logit in fp32, exactly. Soft:
    the probability of every class in float16 (three digits above 6e-5); with `topk` below K the indices
    of the `topk` likeliest classes and their probabilities, and the remaining probability is spread
    evenly over the other classes; of several labels, which have none that remains, the mean of the
    others' follows.
    """

    mode: str
    num_classes: int
    topk: int = 0
    is_multilabel: bool = False

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
    def keeps_all(self) -> bool:
        """Whether a soft record holds the probability of every class."""
        return self.num_kept == self.num_classes

    @property
    def width(self) -> int:
        """Numbers of a record, W."""
        if self.mode == "hard":
            return 1 + -(-self.num_classes // 16) if self.is_multilabel else 2
        if self.mode == "logits":
            return 1 + 2 * self.num_classes
        if self.keeps_all:
            return 1 + self.num_classes
        return 1 + 2 * self.num_kept + self.is_multilabel

    def encode(self, targets: Tensor) -> Records:
        """Encode targets [B,K] as records [B,W]."""
        targets = targets.float().cpu().contiguous()
        if self.mode == "hard" and not self.is_multilabel:
            labels = targets.argmax(dim=1) + 1  # 0 is an empty record
            numbers = np.asarray(labels.numpy(), dtype=np.uint16)
            return np.stack([_compute_hard_checksums(numbers), numbers], axis=1)
        if self.mode == "hard":
            body = _pack_bits(targets.numpy() >= 0.5)
        elif self.mode == "logits":
            body = targets.numpy().view(np.uint16)
        elif self.keeps_all:
            body = targets.half().numpy().view(np.uint16)
        else:
            body = self._encode_likeliest(targets)
        return np.concatenate([self._compute_checksums(body)[:, None], body], axis=1)

    def _encode_likeliest(self, targets: Tensor) -> Records:
        top = targets.topk(self.num_kept, dim=1)
        parts = [top.indices.numpy().astype(np.uint16), top.values.half().numpy().view(np.uint16)]
        if self.is_multilabel:
            others = targets.scatter(1, top.indices, 0.0).sum(dim=1, keepdim=True)
            mean = others / (self.num_classes - self.num_kept)
            parts.append(mean.half().numpy().view(np.uint16))
        return np.concatenate(parts, axis=1)

    def decode(self, records: Records) -> Tensor:
        """Decode records [B,W] to targets [B,K] in fp32; of one label an image each sums to one."""
        if self.mode == "hard" and not self.is_multilabel:
            labels = torch.from_numpy(records[:, 1].astype(np.int64) - 1)
            return F.one_hot(labels, self.num_classes).float()
        body = np.ascontiguousarray(records[:, 1:])
        if self.mode == "hard":
            return torch.from_numpy(_unpack_bits(body)[:, : self.num_classes]).float()
        if self.mode == "logits":
            return torch.from_numpy(body.view(np.float32))
        targets = read_halves(body) if self.keeps_all else self._decode_likeliest(body)
        return targets if self.is_multilabel else targets / targets.sum(dim=1, keepdim=True)

    def _decode_likeliest(self, body: Records) -> Tensor:
        count = self.num_kept
        indices = torch.from_numpy(body[:, :count].astype(np.int64))
        probabilities = read_halves(body[:, count : 2 * count])
        if self.is_multilabel:
            rest = read_halves(body[:, 2 * count :])
        else:
            rest = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(min=0)
            rest = rest / (self.num_classes - count)
        return rest.expand(-1, self.num_classes).clone().scatter_(1, indices, probabilities)

    def is_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds a target."""
        if self.mode == "hard" and not self.is_multilabel:
            checksums, labels = records.T
            in_range = (labels > 0) & (labels <= self.num_classes)
            return np.asarray(in_range & (checksums == _compute_hard_checksums(labels)))
        # Indices and probabilities are checked besides the checksum, because a cache may be
        # crafted.
        body = records[:, 1:]
        valid = records[:, 0] == self._compute_checksums(body)
        if self.mode == "hard":
            unused = _unpack_bits(np.ascontiguousarray(body))[:, self.num_classes :]
            return np.asarray(valid & ~unused.any(axis=1))
        if self.mode == "logits":
            numbers = np.ascontiguousarray(body).view(np.float32)
            return np.asarray(valid & np.isfinite(numbers).all(axis=1))
        if not self.is_multilabel:  # none of several labels may be likely
            valid &= body.any(axis=1)
        if not self.keeps_all:
            valid &= (body[:, : self.num_kept] < self.num_classes).all(axis=1)
            body = body[:, self.num_kept :]
        limit = FLOAT16_ONE + 1 if self.is_multilabel else FLOAT16_INFINITY
        return np.asarray(valid & (body < limit).all(axis=1))

    def _compute_checksums(self, body: Records) -> Records:
        # of few numbers, so that no flipped bit in each of two makes another record
        return sum_numbers(body, is_scattered=self.mode == "hard")


def sum_numbers(body: Records, *, is_scattered: bool = False) -> Records:
    """Return a checksum in 1..65521 for each row of 16-bit numbers: never 0 (empty) or 65535 (unreadable).

    Args:
        body: [B,W].
        is_scattered: whether neighbors have weights that are far apart.
    """
    # 65521 is the largest 16-bit prime (as in Adler-32); no weight is 0 modulo it, so every number
    # counts.
    weights = np.arange(body.shape[1], dtype=np.uint64) % 65520 + 1
    if is_scattered:
        weights = weights * 40503 % 65521
    sums = (body.astype(np.uint64) * weights).sum(axis=1)
    return np.asarray(sums % 65521 + 1, dtype=np.uint16)


def _pack_bits(labels: NDArray[np.bool_]) -> Records:
    """Return labels [B,K] as 16-bit numbers, class 0 the lowest bit of the first."""
    padded = np.pad(labels, ((0, 0), (0, -labels.shape[1] % 16)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u2").astype(np.uint16)


def _unpack_bits(numbers: Records) -> NDArray[np.uint8]:
    """Return the bits of 16-bit numbers [B,W], [B,16 W]."""
    data = numbers.astype("<u2").view(np.uint8)
    return np.unpackbits(data, axis=1, bitorder="little")


def read_halves(numbers: Records) -> Tensor:
    """Return float16 numbers [B,W] in fp32."""
    return torch.from_numpy(np.ascontiguousarray(numbers).view(np.float16).astype(np.float32))


def _compute_hard_checksums(labels: Records) -> Records:
    """Return a checksum in 1..65521 for each class + 1, [B], as `_compute_checksums`.

    No flipped bit, nor one in each of the two numbers, leads from a valid record to another.
    """
    # 40503 is 2^16 divided by the golden ratio, which scatters neighbors.
    return np.asarray(labels.astype(np.uint32) * 40503 % 65521 + 1, dtype=np.uint16)
