"""Data sets by name, made here in their published forms: what is read, and what is refused."""

import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.named.install import find_archives, find_folder, install
from deitctl.data.named.names import NamedData, Split, find_named
from deitctl.data.named.open_named import open_named
from deitctl.data.named.stored import FILE, read_stored
from deitctl.data.readers.folder import open_folders
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from tests.data.named import published

SILENT = SilentReporter()
MAKERS = {
    "cifar10": published.make_cifar,
    "mnist": published.make_mnist,
    "flowers102": published.make_flowers,
    "oxford-pets": published.make_pets,
    "imagenette": published.make_imagenette,
    "tiny-imagenet": published.make_tiny_imagenet,
}
COUNTS = {
    "cifar10": {"train": 50, "test": 10},
    "mnist": {"train": 50, "test": 10},
    "flowers102": {"train": 3, "val": 3, "test": 3},
    "oxford-pets": {"train": 2, "test": 2},
    "imagenette": {"train": 9, "val": 3},
    "tiny-imagenet": {"train": 6, "val": 3},
}
FEW_CLASSES = {"oxford-pets": 2, "imagenette": 3, "tiny-imagenet": 3}


def describe(name: str, torch_class: type, counts: Mapping[str, int]) -> NamedData:
    """Return the description of a data set, with a small one's class and counts."""
    data = find_named(name)
    assert data is not None
    splits = {part: replace(split, count=counts[part]) for part, split in data.splits.items()}
    return replace(
        data,
        torch_class=torch_class,
        splits=splits,
        num_classes=FEW_CLASSES.get(name, data.num_classes),
    )


def put_archives(name: str) -> tuple[NamedData, Path]:
    """Write the archives of a small data set where the user would put them."""
    folder = find_folder(name, SILENT)
    torch_class = MAKERS[name](find_archives(folder))
    return describe(name, torch_class, COUNTS[name]), folder


def open_by_name(ref: str) -> Mapping[str, ImageDataset]:
    """Open data by its name, which nobody looks for on the hub."""

    def open_hub(address: str) -> Mapping[str, ImageDataset]:
        raise AssertionError(address)

    return open_named(ref, SILENT, open_hub)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=MAKERS)
def opened(request, tmp_path_factory) -> Iterator[tuple[str, dict[str, ImageDataset], Path]]:
    """A small data set of each kind, downloaded, unpacked and opened by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITCTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        data, folder = put_archives(request.param)
        install(data, folder, SILENT)
        yield request.param, open_by_name(request.param), folder


def test_parts_have_the_published_images(opened) -> None:
    name, parts, _ = opened
    assert {part: len(images.labels) for part, images in parts.items()} == COUNTS[name]
    for images in parts.values():
        assert images.read(0).mode == "RGB"
        assert images.num_bytes(1) == len(images.read_bytes(1))


def test_a_data_set_pickles_without_its_bytes(opened) -> None:
    for images in opened[1].values():
        pickled = pickle.dumps(images)
        assert len(pickled) < 30_000
        assert pickle.loads(pickled).read_bytes(1) == images.read_bytes(1)


def test_archives_that_somebody_put_there_stay(opened) -> None:
    _, _, folder = opened
    assert all(path.is_file() for path in find_archives(folder).iterdir())
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert {p.name for p in folder.parent.iterdir()} == {
        folder.name, f".{folder.name}.lock", "downloads",
    }  # fmt: skip


def test_pixels_are_those_of_the_published_arrays(cache) -> None:
    data, folder = put_archives("cifar10")
    install(data, folder, SILENT)
    parts = open_by_name("cifar10")
    first = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)[3]
    assert np.array_equal(
        np.asarray(parts["train"].read(3)), first.reshape(3, 32, 32).transpose(1, 2, 0)
    )
    assert parts["train"].class_names == tuple(published.CIFAR_CLASSES)
    assert parts["train"].labels.tolist() == list(range(10)) * 5
    assert parts["test"].relative_path(7) == "000007.ppm"
    assert [path.name for path in folder.iterdir()] == [FILE]  # it has all of it


def test_gray_digits_are_read_and_called_by_their_numbers() -> None:
    data, folder = put_archives("mnist")
    install(data, folder, SILENT)
    train = open_by_name("mnist")["train"]
    assert train.class_names == tuple("0123456789")
    assert train.read_bytes(0).startswith(b"P5\n28 28\n255\n")
    assert train.read(0).size == (28, 28)


def test_flowers_have_the_labels_and_names_of_their_lists() -> None:
    data, folder = put_archives("flowers102")
    install(data, folder, SILENT)
    parts = open_by_name("flowers102")
    names = [parts["train"].class_names[label] for label in parts["train"].labels]
    assert names == ["pink primrose", "hard-leaved pocket orchid", "blackberry lily"]
    assert parts["val"].relative_path(0) == "image_00004.jpg"
    assert parts["val"].read_bytes(0) == published.encode_jpeg(4)
    both = open_by_name("flowers102-trainval")
    assert {part: len(images.labels) for part, images in both.items()} == {"train": 6, "test": 3}
    assert both["train"].class_names == parts["train"].class_names
    assert both["train"].read_bytes(3) == parts["val"].read_bytes(0)


def test_imagenette_by_name_is_the_folder_that_it_unpacks_to() -> None:
    data, folder = put_archives("imagenette")
    install(data, folder, SILENT)
    named = open_by_name("imagenette")
    folders = open_folders(folder / "imagenette2", SILENT)
    for part in ("train", "val"):
        assert fingerprint_dataset(named[part], SILENT) == fingerprint_dataset(
            folders[part], SILENT
        )
        paths = [[x.relative_path(i) for i in range(3)] for x in (named[part], folders[part])]
        assert paths[0] == paths[1]


def test_validation_images_of_tiny_imagenet_have_the_labels_of_their_list() -> None:
    data, folder = put_archives("tiny-imagenet")
    install(data, folder, SILENT)
    val = open_by_name("tiny-imagenet")["val"]
    assert val.class_names == tuple(sorted(published.WNIDS))
    assert [val.read_bytes(i) for i in range(3)] == [
        published.encode_jpeg(100 + n) for n in range(3)
    ]
    assert not (folder / "tiny-imagenet-200" / "test").exists()


def test_a_data_set_that_is_there_needs_no_archive_and_moves(monkeypatch) -> None:
    data, folder = put_archives("imagenette")
    install(data, folder, SILENT)
    for archive in find_archives(folder).iterdir():
        archive.unlink()
    before = fingerprint_dataset(open_by_name("imagenette")["train"], SILENT)
    moved = folder.parent.parent.parent / "elsewhere"
    os.rename(folder.parent.parent, moved)
    monkeypatch.setenv("DEITCTL_CACHE", str(moved))
    train = open_by_name("imagenette")["train"]
    assert fingerprint_dataset(train, SILENT) == before
    assert isinstance(train, FileDataset)
    assert train.name(0).startswith(str(moved))


def test_fewer_images_than_published_are_an_error_and_leave_nothing() -> None:
    data, folder = put_archives("cifar10")
    data = replace(data, splits={"train": Split({"train": True}, 50_000)})
    with pytest.raises(DataError, match="cifar10 train has 50 images, and 50,000 were published"):
        install(data, folder, SILENT)
    assert {path.name for path in folder.parent.iterdir()} == {".cifar10.lock", "downloads"}


def test_files_that_a_list_names_and_the_archive_lacks_are_an_error() -> None:
    data, folder = put_archives("oxford-pets")
    archives = find_archives(folder)
    published.write_tar(archives / "images.tar.gz", {"images/Abyssinian_1.jpg": b"x"})
    checksum = published.md5(archives / "images.tar.gz")
    resources = ((data.torch_class._RESOURCES[0][0], checksum), data.torch_class._RESOURCES[1])
    data = replace(data, torch_class=type("Pets", (data.torch_class,), {"_RESOURCES": resources}))
    with pytest.raises(DataError, match="oxford-pets train has 1 images, and 2 were published"):
        install(data, folder, SILENT)


def test_other_classes_than_published_are_an_error() -> None:
    data, folder = put_archives("imagenette")
    with pytest.raises(DataError, match="imagenette train has 3 classes, and 10 were published"):
        install(replace(data, num_classes=10), folder, SILENT)


def test_a_pickle_with_code_is_an_error(cache) -> None:
    data, folder = put_archives("cifar10")

    class Hostile:
        def __reduce__(self):
            return os.mkdir, ("was-run",)

    content = pickle.dumps(Hostile(), protocol=2)
    archive = find_archives(folder) / "cifar-10-python.tar.gz"
    names = ["batches.meta", *(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    published.write_tar(archive, {f"cifar-10-batches-py/{name}": content for name in names})
    lists = {"train_list": [[n, published.md5(content)] for n in names[1:6]],
             "test_list": [["test_batch", published.md5(content)]]}  # fmt: skip
    torch_class = type("C", (data.torch_class,), {"tgz_md5": published.md5(archive), **lists})
    with pytest.raises(DataError, match=r"cifar10 cannot be unpacked: it names .*mkdir"):
        install(replace(data, torch_class=torch_class), folder, SILENT)
    assert not Path("was-run").exists()


def test_an_archive_that_writes_elsewhere_is_an_error(tmp_path) -> None:
    data, folder = put_archives("imagenette")
    archive = find_archives(folder) / "imagenette2.tgz"
    published.write_tar(archive, {"../../../../escaped": b"x"})
    archives = {"full": ("http://localhost/imagenette2.tgz", published.md5(archive))}
    torch_class = type("I", (data.torch_class,), {"_ARCHIVES": archives})
    with pytest.raises(DataError, match=r"imagenette cannot be unpacked: .*outside"):
        install(replace(data, torch_class=torch_class), folder, SILENT)
    assert not list(tmp_path.rglob("escaped"))


def test_a_folder_that_is_not_complete_is_named(cache) -> None:
    data, folder = put_archives("cifar10")
    folder.mkdir()
    with pytest.raises(DataError, match=r"cifar10 has no images.deitctl"):
        install(data, folder, SILENT)


def test_what_a_killed_start_left_is_removed() -> None:
    data, folder = put_archives("cifar10")
    killed, of_another = (folder.parent / f".{name}~x" for name in ("cifar10", "cifar10-corrupt"))
    killed.mkdir()
    of_another.mkdir()
    install(data, folder, SILENT)
    assert not killed.exists()
    assert of_another.exists()


def test_one_process_installs_and_another_waits_for_it() -> None:
    data, folder = put_archives("mnist")
    notes: list[str] = []

    class Reporter(SilentReporter):
        def note(self, message: str) -> None:
            notes.append(message)

    class Slow(data.torch_class):
        num_made = 0

        def __init__(self, root: str, **arguments) -> None:
            super().__init__(root, **arguments)
            Slow.num_made += 1  # of the parts that are complete
            if Slow.num_made == 1:
                second.start()
                while not notes:
                    second.join(0.01)

    Slow.__name__ = "MNIST"  # its folder
    slow = replace(data, torch_class=Slow)
    second = threading.Thread(target=install, args=(slow, folder, Reporter()))
    install(slow, folder, SILENT)
    second.join()
    assert notes == ["Another process downloads mnist: waiting for it."]
    assert Slow.num_made == 2
    assert len(open_by_name("mnist")["train"].labels) == 50


@pytest.mark.parametrize("damage", ["cut", "flipped", "other version"])
def test_a_damaged_file_is_named(damage: str) -> None:
    data, folder = put_archives("cifar10")
    install(data, folder, SILENT)
    content = bytearray((folder / FILE).read_bytes())
    if damage == "cut":
        content = content[:1000]
    elif damage == "flipped":
        content[-5] ^= 1
    else:
        content[:16] = b"deitctl images 9"
    (folder / FILE).write_bytes(content)
    with pytest.raises(
        DataError, match=r"images.deitctl cannot be read: .*Remove .*cifar10: the next start"
    ):
        read_stored(folder / FILE, "cifar10")


def test_images_of_one_size_of_any_class_are_stored(monkeypatch) -> None:
    from torchvision.datasets import VisionDataset

    class Squares(VisionDataset):
        def __init__(self, root: str, download: bool = False) -> None:
            super().__init__(root)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int):
            return Image.new("RGB", (6, 5), (index, 0, 0)), index % 2

    data = NamedData("torchvision:Squares", Squares, {"": Split({}, 0)}, 0)
    folder = find_folder(data.name, SILENT)
    install(data, folder, SILENT)
    images = read_stored(folder / FILE, data.name)[""]
    assert images.labels.tolist() == [0, 1, 0, 1]
    assert images.class_names == ("0", "1")
    assert images.read(3).getpixel((0, 0)) == (3, 0, 0)
    assert folder.name == "torchvision-Squares"
