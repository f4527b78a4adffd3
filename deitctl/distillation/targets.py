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
        return to_one_hot(logits.argmax(dim=1), logits.shape[1])
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
        return self.seal(to_records(self.pack(targets)))

    def decode(self, records: Records) -> Tensor:
        """Decode records [B,W] to targets [B,K] in fp32; of one label an image each sums to one."""
        return self.unpack(to_numbers(records))

    def seal(self, records: Records) -> Records:
        """Return records [B,W] with their checksums."""
        if self.mode == "hard" and not self.is_multilabel:
            checksums = _compute_hard_checksums(records[:, 1])
        else:
            checksums = self._compute_checksums(records[:, 1:])
        return np.concatenate([checksums[:, None], records[:, 1:]], axis=1)

    def pack(self, targets: Tensor) -> Tensor:
        """Return targets [B,K] as the bits of records, int16 [B,W] on their device, the checksums 0."""
        targets = targets.float()
        if self.mode == "hard" and not self.is_multilabel:
            body = (targets.argmax(dim=1, keepdim=True) + 1).to(torch.int16)  # 0 is an empty record
        elif self.mode == "hard":
            body = _pack_bits(targets >= 0.5)
        elif self.mode == "logits":
            body = targets.contiguous().view(torch.int16)
        elif self.keeps_all:
            body = targets.half().contiguous().view(torch.int16)
        else:
            body = self._pack_likeliest(targets)
        return F.pad(body, (1, 0))

    def _pack_likeliest(self, targets: Tensor) -> Tensor:
        top = targets.topk(self.num_kept, dim=1)
        parts = [top.indices.to(torch.int16), top.values.half().view(torch.int16)]
        if self.is_multilabel:
            others = targets.scatter(1, top.indices, 0.0).sum(dim=1, keepdim=True)
            mean = others / (self.num_classes - self.num_kept)
            parts.append(mean.half().view(torch.int16))
        return torch.cat(parts, dim=1)

    def unpack(self, numbers: Tensor) -> Tensor:
        """Return the targets [B,K] in fp32, on their device, whose records have these bits, int16 [B,W]."""
        body = numbers[:, 1:]
        if self.mode == "hard":
            if self.is_multilabel:
                return _unpack_bits(body)[:, : self.num_classes].float()
            return to_one_hot(read_unsigned(body[:, 0]) - 1, self.num_classes)
        if self.mode == "logits":
            # A copy, even where one record counts as contiguous: it begins in the middle of a number.
            return body.clone(memory_format=torch.contiguous_format).view(torch.float32)
        targets = read_halves(body) if self.keeps_all else self._unpack_likeliest(body)
        return targets if self.is_multilabel else targets / targets.sum(dim=1, keepdim=True)

    def _unpack_likeliest(self, body: Tensor) -> Tensor:
        count = self.num_kept
        indices = read_unsigned(body[:, :count])
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
            used = (1 << (self.num_classes - 1) % 16 + 1) - 1  # bits of the last number
            return np.asarray(valid & (body[:, -1] <= used))
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


def to_one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return classes, int64 [B], as distributions [B,K] in fp32."""
    # `F.one_hot` looks at the values, for which a host waits.
    zeros = torch.zeros(len(labels), num_classes, device=labels.device)
    return zeros.scatter_(1, labels[:, None], 1.0)


def to_numbers(records: Records) -> Tensor:
    """Return the bits of records [B,W] as int16: torch computes little with unsigned numbers."""
    return torch.from_numpy(np.array(records, order="C").view(np.int16))


def to_records(numbers: Tensor) -> Records:
    """Return records [B,W] of these bits, int16."""
    return numbers.cpu().contiguous().numpy().view(np.uint16)


def read_unsigned(numbers: Tensor) -> Tensor:
    """Return 16 bits each as a number from 0 to 65535, int64."""
    return numbers.long() & 0xFFFF


def read_halves(numbers: Tensor) -> Tensor:
    """Return 16 bits each as a number of float16, in fp32."""
    return numbers.view(torch.float16).float()


def _pack_bits(labels: Tensor) -> Tensor:
    """Return labels, bool [B,K], as the bits of int16 numbers, class 0 the lowest of the first."""
    padded = F.pad(labels.int(), (0, -labels.shape[1] % 16)).reshape(len(labels), -1, 16)
    packed: Tensor = (padded << _count_bits(labels)).sum(dim=2)
    return packed.to(torch.int16)


def _unpack_bits(numbers: Tensor) -> Tensor:
    """Return the bits of int16 numbers [B,W], int32 [B,16 W]."""
    return (numbers.int()[:, :, None] >> _count_bits(numbers) & 1).flatten(1)


def _count_bits(like: Tensor) -> Tensor:
    return torch.arange(16, dtype=torch.int32, device=like.device)


def _compute_hard_checksums(labels: Records) -> Records:
    """Return a checksum in 1..65521 for each class + 1, [B], as `_compute_checksums`.

    No flipped bit, nor one in each of the two numbers, leads from a valid record to another.
    """
    # 40503 is 2^16 divided by the golden ratio, which scatters neighbors.
    return np.asarray(labels.astype(np.uint32) * 40503 % 65521 + 1, dtype=np.uint16)
