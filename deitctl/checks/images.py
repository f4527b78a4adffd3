"""Checks of images: unreadable, of another format than named, of extreme shapes, duplicates."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from deitctl.checks.duplicates import check_duplicates
from deitctl.checks.image_info import (
    EXTENSION_BY_FORMAT,
    ImageInfo,
    JoinedImages,
    format_of_name,
    inspect_images,
)
from deitctl.checks.issues import NUM_EXAMPLES, Issue, Remedies, Remedy, report
from deitctl.checks.survey import Split
from deitctl.data.near_duplicates import DIGEST_BYTES, HASH_BYTES, MIN_SIDE
from deitctl.events import Reporter

MAX_PIXELS = 20_000_000
MAX_ASPECT = 4
LOST = ("empty_file", "truncated")
"""Unreadable files without an image that could be recovered: they may be deleted."""
UNREADABLE = ("unreadable", "not_an_image", "other_format", "damaged")
"""The others are for a person: another program may read them, or a pointer lead to the image."""


def check_images(splits: Sequence[Split], workers: int, reporter: Reporter) -> Iterator[Issue]:
    """Decode every image once, then compare them.

    Of each image 34 bytes are kept, and its index under each issue that it has.
    """
    images = JoinedImages([split.dataset for split in splits])
    inspection = _Inspection(images)
    with reporter.task("read the images", len(images)) as task:
        for infos in inspect_images(images, workers, reporter):
            for info in infos:
                inspection.add(info)
            task.advance(len(infos))
    yield from inspection.report_issues()
    with reporter.task("find duplicates", None, "steps"):
        yield from check_duplicates(
            images,
            inspection.digests,
            inspection.hashes,
            inspection.readable,
            inspection.hashed,
        )


class _Inspection:
    """Digests and issues of all images, N of them, in order."""

    def __init__(self, images: JoinedImages) -> None:
        self.images = images
        self.digests = np.zeros((len(images), DIGEST_BYTES), dtype=np.uint8)
        self.hashes = np.zeros((len(images), HASH_BYTES), dtype=np.uint8)
        self.readable = np.zeros(len(images), dtype=bool)
        self.hashed = np.zeros(len(images), dtype=bool)
        self.by_code: dict[str, dict[str, array[int]]] = {}
        """Indices of images by issue, and within it by detail."""
        self.errors: dict[int, str] = {}
        """Why the first of them could not be read."""
        self.count = 0

    def add(self, info: ImageInfo) -> None:
        """Enter the next image."""
        index, self.count = self.count, self.count + 1
        if info.num_bands:
            self._enter("bands", str(info.num_bands), index)
        if info.issue:
            # messages of the examples only: there may be millions
            if self._enter(info.issue, info.kind, index) <= NUM_EXAMPLES:
                self.errors[index] = info.error
            return
        self.readable[index] = True
        self.digests[index] = np.frombuffer(info.digest, np.uint8)
        if info.hash:
            self.hashed[index] = True
            self.hashes[index] = np.frombuffer(info.hash, np.uint8)
        for code, detail in _find_issues(info, self.images.name(index)):
            self._enter(code, detail, index)

    def _enter(self, code: str, detail: str, index: int) -> int:
        indices = self.by_code.setdefault(code, {}).setdefault(detail, array("q"))
        indices.append(index)
        return len(indices)

    def report_issues(self) -> Iterator[Issue]:
        """Yield every kind of issue that images have."""
        by_bands = self.by_code.get("bands", {})
        if len(by_bands) > 1:
            rarest = min(by_bands, key=lambda bands: len(by_bands[bands]))
            names = [self.images.name(n) for n in by_bands[rarest][:NUM_EXAMPLES]]
            yield from report("uneven_bands", len(by_bands[rarest]), names)
        for code, by_detail in self.by_code.items():
            counts = [
                f"{detail}: {len(indices)}" for detail, indices in by_detail.items() if detail
            ]
            # examples of every detail, not of the first one alone
            per_detail = max(1, NUM_EXAMPLES // len(by_detail))
            examples = [i for indices in by_detail.values() for i in indices[:per_detail]]
            yield from report(
                code,
                sum(map(len, by_detail.values())),
                (self.errors.get(index) or self.images.name(index) for index in examples),
                details=[f"({', '.join(counts)})"] if counts else (),
                remedies=self._make_remedies(code),
            )

    def _make_remedies(self, code: str) -> Remedies:
        def make() -> Iterator[Remedy]:
            for detail, indices in self.by_code[code].items():
                for name in map(self.images.name, indices):
                    if code in LOST:
                        yield Remedy(name, code, "delete")
                    elif code in UNREADABLE or code == "blank":
                        yield Remedy(name, code, "review")
                    elif code == "wrong_extension" and detail in EXTENSION_BY_FORMAT:
                        renamed = PurePath(name).with_suffix(EXTENSION_BY_FORMAT[detail])
                        yield Remedy(name, code, "rename", str(renamed))

        return make


def _find_issues(info: ImageInfo, name: str) -> Iterator[tuple[str, str]]:
    """Yield the issues of a readable image, each with a detail to count by."""
    short, long = sorted(info.size)
    if info.format and format_of_name(name) not in ("", info.format):
        yield "wrong_extension", info.format
    if info.mode != "RGB":
        yield "color_modes", info.mode
    for code, present in (
        ("small_side", short < MIN_SIDE),
        ("many_pixels", short * long > MAX_PIXELS),
        ("long_shape", long > MAX_ASPECT * short),
        ("animated", info.animated),
        ("rotated", info.rotated),
        ("blank", info.blank),
    ):
        if present:
            yield code, ""
