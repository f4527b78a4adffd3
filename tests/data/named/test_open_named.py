"""Opening by name: what is on the hub, and what is said where it cannot be had."""

import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.named.open_named import open_named
from deitctl.data.readers.digits import load_digits
from deitctl.errors import DataError
from deitctl.events import SilentReporter

SILENT = SilentReporter()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path))


def refuse(address: str) -> dict[str, ImageDataset]:
    raise DataError(f"{address} is gated.", "Accept its terms.")


def test_imagenet_is_opened_on_the_hub() -> None:
    addresses = []

    def open_hub(address: str) -> dict[str, ImageDataset]:
        addresses.append(address)
        return {"train": load_digits()[0]}

    assert list(open_named("imagenet-1k", SILENT, open_hub)) == ["train"]
    assert addresses == ["hf://datasets/ILSVRC/imagenet-1k"]


def test_what_the_hub_refuses_has_another_way(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        open_named("imagenet-1k", SILENT, refuse)
    folder = tmp_path / "datasets" / "downloads" / "imagenet-1k"
    assert str(caught.value) == (
        "hf://datasets/ILSVRC/imagenet-1k is gated. Accept its terms. "
        "Or put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz of "
        f"https://image-net.org/challenges/LSVRC/2012/2012-downloads.php into {folder}."
    )


def test_archives_go_before_the_hub_and_the_others_are_named(tmp_path) -> None:
    folder = tmp_path / "datasets" / "downloads" / "imagenet-1k"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_val.tar").write_bytes(b"another file")
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val.tar is not the published file"):
        open_named("imagenet-1k", SILENT, refuse)


def test_a_class_that_torchvision_lacks_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no data set 'CIFAR12'. Did you mean 'CIFAR10'"):
        open_named("torchvision:CIFAR12", SILENT, refuse)
