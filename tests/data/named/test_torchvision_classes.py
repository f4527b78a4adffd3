"""torchvision's classes: which parts and files they have, without a network."""

import re

import pytest

from deitctl.data.named.names import NAMED
from deitctl.data.named.torchvision_classes import describe_class, list_downloads
from deitctl.errors import DataError


def test_every_data_set_has_files_with_checksums() -> None:
    for data in NAMED:
        downloads = list_downloads(data)
        assert downloads, data.name
        for each in downloads:
            assert each.url.startswith(("https://", "http://")), each
            assert re.fullmatch(r"[0-9a-f]{32}", each.md5) or data.name == "aircraft", each
    assert (
        list_downloads(NAMED[0])[0].url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("usps", {"train": {"train": True}, "test": {"train": False}}),
        (
            "RenderedSST2",
            {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}},
        ),
        ("Semeion", {"": {}}),
    ],
)
def test_parts_of_any_class_are_those_that_it_has(name: str, parts: dict) -> None:
    data = describe_class(f"torchvision:{name}")
    assert {part: dict(split.arguments) for part, split in data.splits.items()} == parts


def test_what_does_not_open_by_its_name_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"torchvision:CocoDetection does not open by its name alone"
    ):
        describe_class("torchvision:CocoDetection")
    with pytest.raises(DataError, match=r"no data set 'CIFAR11'. Did you mean 'CIFAR10'"):
        describe_class("torchvision:CIFAR11")
