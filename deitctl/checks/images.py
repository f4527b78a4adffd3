"""What is wrong with the images of a data set: unreadable, mislabeled, repeated, of extreme shapes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

import numpy as np

from deitctl.checks.duplicates import DuplicateGroups, Index, exact_twins, near_twins
from deitctl.checks.findings import EXAMPLES, Finding, Remedies, Remedy, found
from deitctl.checks.image_info import (
    DIGEST,
    EXTENSION_OF,
    HASH,
    LEAST_SIDE,
    ImageInfo,
    Images,
    look_at_all,
    promised_format,
)
from deitctl.checks.survey import Split
from deitctl.events import Reporter

MANY_PIXELS = 20_000_000
LONG = 4  # times as long as wide
DELETED = ("unreadable", "empty_file", "not_an_image", "truncated", "damaged")


def check_images(parts: Sequence[Split], workers: int, reporter: Reporter) -> Iterator[Finding]:
    """Look at every image once, then for copies among them.

    Of each image 40 bytes are kept, and its number under each check that it fails.
    """
    images = Images([part.source for part in parts])
    ledger = _Ledger(images)
    with reporter.task("look at the images", len(images)) as task:
        for looks in look_at_all(images, workers):
            for one in looks:
                ledger.add(one)
            task.advance(len(looks))
    yield from ledger.findings()
    with reporter.task("look for copies", None, "steps") as task:
        yield from _copies(parts, images, ledger)


class _Ledger:
    """What the looks at the images amount to."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.digests = np.zeros((len(images), DIGEST), dtype=np.uint8)
        self.hashes = np.zeros((len(images), HASH), dtype=np.uint8)
        self.readable = np.zeros(len(images), dtype=bool)
        self.hashed = np.zeros(len(images), dtype=bool)
        self.failed: dict[str, dict[str, array[int]]] = {}
        """Numbers of images by check, and within it by detail."""
        self.reasons: dict[int, str] = {}
        """Why the first of them could not be read."""
        self.done = 0

    def add(self, seen: ImageInfo) -> None:
        """Enter the look at the next image."""
        index, self.done = self.done, self.done + 1
        if seen.problem:
            if self._enter(seen.problem, "", index) <= EXAMPLES:
                self.reasons[index] = seen.why
            return
        self.readable[index] = True
        self.digests[index] = np.frombuffer(seen.digest, np.uint8)
        if seen.hash:
            self.hashed[index] = True
            self.hashes[index] = np.frombuffer(seen.hash, np.uint8)
        for check, detail in _odd(seen, self.images.name(index)):
            self._enter(check, detail, index)

    def _enter(self, check: str, detail: str, index: int) -> int:
        numbers = self.failed.setdefault(check, {}).setdefault(detail, array("q"))
        numbers.append(index)
        return len(numbers)

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for every check that images failed."""
        for check, by_detail in self.failed.items():
            details = [
                f"{detail}: {len(numbers)}" for detail, numbers in by_detail.items() if detail
            ]
            each = max(1, EXAMPLES // len(by_detail))
            numbers = [i for some in by_detail.values() for i in some[:each]]
            yield from found(
                check,
                sum(map(len, by_detail.values())),
                map(self._example, numbers),
                detail=f"({', '.join(details)})" if details else "",
                remedies=self._remedies(check),
            )

    def _example(self, index: int) -> str:
        return self.reasons.get(index) or self.images.name(index)

    def _remedies(self, check: str) -> Remedies:
        def make() -> Iterator[Remedy]:
            for detail, numbers in self.failed[check].items():
                for name in map(self.images.name, numbers):
                    if check in DELETED:
                        yield Remedy(name, check, "delete")
                    elif check == "wrong_extension" and detail in EXTENSION_OF:
                        yield Remedy(
                            name,
                            check,
                            "rename",
                            str(PurePath(name).with_suffix(EXTENSION_OF[detail])),
                        )
                    elif check == "blank":
                        yield Remedy(name, check, "review")

        return make


def _odd(seen: ImageInfo, name: str) -> Iterator[tuple[str, str]]:
    """Name the checks that a readable image fails, each with a detail to count by."""
    short, long = sorted(seen.size)
    if seen.format and promised_format(name) not in ("", seen.format):
        yield "wrong_extension", seen.format
    if short < LEAST_SIDE:
        yield "small_side", ""
    if short * long > MANY_PIXELS:
        yield "many_pixels", ""
    if long > LONG * short:
        yield "long_shape", ""
    if seen.mode != "RGB":
        yield "color_modes", seen.mode
    for check, odd in (
        ("animated", seen.animated),
        ("rotated", seen.rotated),
        ("blank", seen.blank),
    ):
        if odd:
            yield check, ""


def _copies(parts: Sequence[Split], images: Images, ledger: _Ledger) -> Iterator[Finding]:
    part_of = np.repeat(np.arange(len(parts)), images.counts)
    labels = _common_labels(parts)
    readable = np.flatnonzero(ledger.readable)
    exact = exact_twins(ledger.digests[readable], part_of[readable], labels[readable])
    yield from _twins("duplicate", exact, images, readable, " = ")
    hashed = np.flatnonzero(ledger.hashed)
    near = near_twins(
        ledger.hashes[hashed], ledger.digests[hashed], part_of[hashed], labels[hashed]
    )
    yield from _twins("near_duplicate", near, images, hashed, " ~ ")


def _common_labels(parts: Sequence[Split]) -> Index:
    """Number the classes of all parts by name; images without classes are of one class."""
    names = sorted({name for part in parts for name in part.source.class_names})
    number = {name: i for i, name in enumerate(names)}
    own = [
        np.array([number[n] for n in p.source.class_names] or [-1], dtype=np.int64)[p.source.labels]
        for p in parts
    ]
    return np.concatenate(own) if own else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _Copies:
    """Images, and a twin of each, by number."""

    check: str
    some: Index
    others: Index
    images: Images

    def pairs(self) -> Iterator[tuple[str, str]]:
        for a, b in zip(self.some.tolist(), self.others.tolist(), strict=True):
            yield self.images.name(a), self.images.name(b)

    def remedies(self) -> Iterator[Remedy]:
        for image, twin in self.pairs():
            if self.check == "duplicate_across_parts":
                yield self._delete(
                    twin, image
                )  # from training: validation stays what others validate on
            elif self.check == "duplicate_in_class":
                yield self._delete(image, twin)
            else:
                yield Remedy(image, self.check, "review", twin)

    def _delete(self, extra: str, kept: str) -> Remedy:
        """Delete one of two, unless they are one file, listed twice or behind a link."""
        one = extra == kept or (
            os.path.realpath(extra) == os.path.realpath(kept) and not os.path.islink(extra)
        )
        return (
            Remedy(extra, self.check, "review", kept)
            if one
            else Remedy(extra, self.check, "delete")
        )

    def finding(self, sign: str) -> Iterator[Finding]:
        examples = (f"{image}{sign}{twin}" for image, twin in self.pairs())
        return found(self.check, len(self.some), examples, remedies=self.remedies)


def _twins(
    kind: str, twins: DuplicateGroups, images: Images, numbers: Index, sign: str
) -> Iterator[Finding]:
    for relation, (some, others) in asdict(twins).items():
        yield from _Copies(f"{kind}_{relation}", numbers[some], numbers[others], images).finding(
            sign
        )
