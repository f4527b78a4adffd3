"""Data sets that torchvision does not download: classes in its manner, whose archives are verified as its are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageNet, StanfordCars
from torchvision.datasets import utils as downloads
from torchvision.datasets.imagenet import ARCHIVE_META


class TinyImagenet:
    """Tiny ImageNet: 200 classes of ImageNet's at 64 pixels, of a course at Stanford (cs231n.stanford.edu)."""

    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"

    def __init__(self, root: str, split: str, download: bool = False) -> None:
        self.folder = Path(root) / "tiny-imagenet-200"
        if download and not self.folder.is_dir():
            downloads.download_and_extract_archive(self.url, root, md5=self.md5)
            shutil.rmtree(self.folder / "test", ignore_errors=True)  # has no labels
        self.wnids = sorted((self.folder / "wnids.txt").read_text().split())
        self.samples = self._list_train() if split == "train" else self._list_val()

    def _list_train(self) -> list[tuple[str, int]]:
        return [
            (str(file), label)
            for label, wnid in enumerate(self.wnids)
            for file in (self.folder / "train" / wnid / "images").glob("*.JPEG")
        ]

    def _list_val(self) -> list[tuple[str, int]]:
        """Put each image into the folder of its class, as the training images are."""
        folder = self.folder / "val"
        label_of = {wnid: label for label, wnid in enumerate(self.wnids)}
        samples = []
        for line in (folder / "val_annotations.txt").read_text().splitlines():
            name, wnid = line.split("\t")[:2]
            place = folder / wnid / os.path.basename(name)
            if not place.exists():
                place.parent.mkdir(exist_ok=True)
                (folder / "images" / os.path.basename(name)).rename(place)
            samples.append((str(place), label_of[wnid]))
        return samples


class Cars(StanfordCars):  # type: ignore[misc]
    """Stanford Cars, whose page is gone: the archives that it had, with their published checksums.

    They are those of torchvision 0.15, the last that downloaded them.
    """

    archives = (
        (
            "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
            "c3b158d763b6e2245038c8ad08e45376",
        ),
        (
            "https://ai.stanford.edu/~jkrause/car196/cars_train.tgz",
            "065e5b463ae28d29e77c1b4b166cfe61",
        ),
        (
            "https://ai.stanford.edu/~jkrause/car196/cars_test.tgz",
            "4ce7ebf6a94d07f1952d94dd34c4d501",
        ),
        (
            "https://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",
            "b0a2b23655a3edd16d84508592a98d10",
        ),
    )

    def download(self) -> None:
        """Unpack the archives, unless they are."""
        if self._check_exists():
            return
        for url, md5 in self.archives:
            if url.endswith(".tgz"):
                downloads.download_and_extract_archive(url, str(self._base_folder), md5=md5)
            else:
                downloads.download_url(url, str(self._base_folder), md5=md5)


class Ilsvrc2012(ImageNet):  # type: ignore[misc]
    """ImageNet-1k from the official archives, which image-net.org gives to those who have an account."""

    page = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"

    def __init__(self, root: str, split: str, download: bool = False, **options: Any) -> None:
        if download:
            for name, md5 in ARCHIVE_META.values():
                downloads.download_url(self.page, root, filename=name, md5=md5)
        super().__init__(root, split, **options)
