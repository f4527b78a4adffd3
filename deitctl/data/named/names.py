"""Data sets by name: what each is called, its published splits, and which class of torchvision's reads it.

Counts are those of the pages that each entry names; docs/named-data.md has the table with licenses.
Nothing is imported here that takes time: the shell completes these names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

OWN = "deitctl.data.named.own_classes"
TORCHVISION = "torchvision:"
"""Before the name of a class: `torchvision:DTD`."""
TRAINVAL = "-trainval"
"""Behind the name of data with three parts: `flowers102-trainval`."""
PARTS = ("train", "val", "test")
HUB = "hf://datasets/"
MIN_SIMILARITY = 0.75
"""Of a misspelled name to the one that was meant, 0..1, as difflib counts it."""


@dataclass(frozen=True)
class Split:
    """A published part of a data set."""

    arguments: Mapping[str, Any]
    """With which its class opens the part."""
    count: int
    """Images, as published; 0: not checked."""


@dataclass(frozen=True)
class NamedData:
    """A data set that has a name."""

    name: str
    torch_class: str | type
    """Reads it: a class of `torchvision.datasets`, or `MODULE:CLASS`."""
    splits: Mapping[str, Split]
    """By our name of the part: train, val, test; empty: data without parts."""
    num_classes: int
    """As published; 0: not checked."""
    aliases: tuple[str, ...] = ()
    """Other spellings; case, hyphens and underscores do not count."""
    hints: tuple[str, ...] = ()
    """Words for which it is suggested: they may as well be a folder that is not there."""
    class_names: tuple[str, ...] = ()
    """In the place of those that the class gives."""
    hub: str = ""
    """Where the hub has it, for data that no one may pass on."""


def _split(**counts: int) -> dict[str, Split]:
    """Return parts that are called as torchvision calls them."""
    return {name: Split({"split": name}, count) for name, count in counts.items()}


def _train(train: int, test: int) -> dict[str, Split]:
    """Return parts that torchvision tells apart by `train=True`."""
    return {"train": Split({"train": True}, train), "test": Split({"train": False}, test)}


def _imagenette(name: str, size: str) -> NamedData:
    """Return a size of Imagenette: github.com/fastai/imagenette, counted in the archives."""
    counts = {"train": 9_469, "val": 3_925}
    splits = {part: Split({"split": part, "size": size}, n) for part, n in counts.items()}
    return NamedData(name, "Imagenette", splits, 10)


def _inaturalist(name: str, train: str, count: int, *aliases: str) -> NamedData:
    """Return an iNaturalist of 2021: github.com/visipedia/inat_comp/tree/master/2021."""
    splits = {
        "train": Split({"version": train}, count),
        "val": Split({"version": "2021_valid"}, 100_000),
    }
    return NamedData(name, "INaturalist", splits, 10_000, aliases)


DIGITS = tuple("0123456789")
SIGNS = tuple(str(number) for number in range(43))

NAMED = (
    # www.cs.toronto.edu/~kriz/cifar.html
    NamedData("cifar10", "CIFAR10", _train(50_000, 10_000), 10),
    NamedData("cifar100", "CIFAR100", _train(50_000, 10_000), 100),
    # yann.lecun.com/exdb/mnist; torchvision calls its classes `0 - zero`
    NamedData("mnist", "MNIST", _train(60_000, 10_000), 10, class_names=DIGITS),
    # github.com/zalandoresearch/fashion-mnist
    NamedData("fashion-mnist", "FashionMNIST", _train(60_000, 10_000), 10),
    # github.com/rois-codh/kmnist
    NamedData("kmnist", "KMNIST", _train(60_000, 10_000), 10),
    # ufldl.stanford.edu/housenumbers
    NamedData(
        *("svhn", "SVHN", _split(train=73_257, test=26_032), 10),
        class_names=DIGITS,
    ),
    # cs.stanford.edu/~acoates/stl10; its 100,000 images without labels are left out
    NamedData("stl10", "STL10", _split(train=5_000, test=8_000), 10),
    # www.robots.ox.ac.uk/~vgg/data/pets
    NamedData(
        "oxford-pets",
        "OxfordIIITPet",
        {"train": Split({"split": "trainval"}, 3_680), "test": Split({"split": "test"}, 3_669)},
        37,
        aliases=("oxford-iiit-pet", "oxford-iiit-pets"),
        hints=("pets",),
    ),
    # www.robots.ox.ac.uk/~vgg/data/flowers/102
    NamedData(
        "flowers102",
        "Flowers102",
        _split(train=1_020, val=1_020, test=6_149),
        102,
        aliases=("oxford-flowers102",),
        hints=("flowers", "oxford-flowers"),
    ),
    # data.vision.ee.ethz.ch/cvl/datasets_extra/food-101
    NamedData("food101", "Food101", _split(train=75_750, test=25_250), 101),
    # the page that had it is gone; torchvision's documentation
    NamedData(
        "stanford-cars",
        f"{OWN}:Cars",
        _split(train=8_144, test=8_041),
        196,
        hints=("cars", "cars196"),
    ),
    # www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft
    NamedData(
        "aircraft",
        "FGVCAircraft",
        _split(train=3_334, val=3_333, test=3_333),
        100,
        aliases=("fgvc-aircraft",),
    ),
    # www.robots.ox.ac.uk/~vgg/data/dtd; the first of its ten divisions, as torchvision's default
    NamedData("dtd", "DTD", _split(train=1_880, val=1_880, test=1_880), 47),
    # github.com/phelber/EuroSAT
    NamedData("eurosat", "EuroSAT", {"": Split({}, 27_000)}, 10),
    # data.caltech.edu/records/mzrjq-6wc02; without its class of background
    NamedData("caltech101", "Caltech101", {"": Split({}, 8_677)}, 101),
    # vision.princeton.edu/projects/2010/SUN
    NamedData("sun397", "SUN397", {"": Split({}, 108_754)}, 397),
    # benchmark.ini.rub.de; the training images of its online competition, as torchvision has them
    NamedData(
        *("gtsrb", "GTSRB", _split(train=26_640, test=12_630), 43),
        class_names=SIGNS,
    ),
    # github.com/openai/CLIP/blob/main/data/country211.md
    NamedData(
        "country211",
        "Country211",
        {
            "train": Split({"split": "train"}, 31_650),
            "val": Split({"split": "valid"}, 10_550),
            "test": Split({"split": "test"}, 21_100),
        },
        211,
    ),
    _imagenette("imagenette", "full"),
    _imagenette("imagenette-320", "320px"),
    _imagenette("imagenette-160", "160px"),
    # places2.csail.mit.edu: its images of 256 pixels
    NamedData(
        "places365",
        "Places365",
        {
            "train": Split({"split": "train-standard", "small": True}, 1_803_460),
            "val": Split({"split": "val", "small": True}, 36_500),
        },
        365,
    ),
    # cs231n.stanford.edu; its test images have no labels
    NamedData(
        "tiny-imagenet",
        f"{OWN}:TinyImagenet",
        _split(train=100_000, val=10_000),
        200,
        aliases=("tiny-imagenet-200",),
    ),
    _inaturalist("inat2021", "2021_train", 2_686_843, "inaturalist"),
    _inaturalist("inat2021-mini", "2021_train_mini", 500_000),
    # image-net.org/challenges/LSVRC/2012
    NamedData(
        "imagenet-1k",
        f"{OWN}:Ilsvrc2012",
        _split(train=1_281_167, val=50_000),
        1_000,
        hints=("imagenet", "ilsvrc2012"),
        hub=f"{HUB}ILSVRC/imagenet-1k",
    ),
)


def _reduce(name: str) -> str:
    """Return a name as names compare: without case, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")


def find_named(ref: str) -> NamedData | None:
    """Return the data set that a reference names, in any spelling; None for other references."""
    reduced = _reduce(ref.removeprefix(TORCHVISION).removesuffix(TRAINVAL))
    if ref.startswith(TORCHVISION) and reduced == "imagenet":
        reduced = "imagenet1k"
    for data in NAMED:
        if reduced in map(_reduce, (data.name, *data.aliases)):
            has_parts = len(data.splits) == len(PARTS)
            return data if has_parts or not ref.endswith(TRAINVAL) else None
    return None


def is_named(ref: str) -> bool:
    """Return whether a reference names a data set; a file or folder of that name goes before it."""
    is_class = ref.startswith(TORCHVISION)
    return is_class or (find_named(ref) is not None and not os.path.exists(ref))


def spell(ref: str) -> str:
    """Return the one spelling of a name."""
    if (data := find_named(ref)) is not None:
        return data.name + (TRAINVAL if ref.endswith(TRAINVAL) else "")
    return ref


def list_names() -> list[str]:
    """Return all names, in the order of the documentation."""
    joined = [data.name + TRAINVAL for data in NAMED if len(data.splits) == len(PARTS)]
    return [data.name for data in NAMED] + joined


def suggest_names(ref: str) -> str:
    """Return `Did you mean 'x'?` for names that are spelled nearly so; empty if there are none."""
    spellings = {
        _reduce(name): data.name
        for data in NAMED
        for name in (data.name, *data.aliases, *data.hints)
    }
    near = get_close_matches(_reduce(ref), spellings, n=2, cutoff=MIN_SIMILARITY)
    names = dict.fromkeys(repr(spellings[name]) for name in near)
    return f"Did you mean {' or '.join(names)}?" if names else ""
