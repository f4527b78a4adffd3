"""Small data sets in the published forms, made for tests: archives, tables, pickles and idx files."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, MNIST, Flowers102, Imagenette, OxfordIIITPet

from deitctl.data.named.own_classes import TinyImagenet

CIFAR_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
WNIDS = ("n01440764", "n02102040", "n03888257")
NUM_TRAIN, NUM_TEST = 50, 10
"""Images of the small CIFAR-10 and MNIST."""


def encode_jpeg(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """Return a JPEG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def encode_mat(**values: Any) -> bytes:
    """Return a MATLAB file."""
    buffer = io.BytesIO()
    savemat(buffer, values)
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a tar, compressed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def md5(data: bytes | Path) -> str:
    """Return the MD5 of bytes, or of a file."""
    return hashlib.md5(data.read_bytes() if isinstance(data, Path) else data).hexdigest()


def make_cifar(folder: Path, url: str = "http://localhost/") -> type:
    """Write the archive of a small CIFAR-10, and return the class that has its checksums."""
    random = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": CIFAR_CLASSES}, protocol=2)}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        batch = {"data": random.integers(0, 256, (10, 3072), np.uint8), "labels": list(range(10))}
        files[name] = pickle.dumps(batch, protocol=2)
    path = folder / "cifar-10-python.tar.gz"
    write_tar(path, {f"cifar-10-batches-py/{name}": data for name, data in files.items()})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
    checksums = {
        "url": url + path.name,
        "tgz_md5": md5(path),
        "meta": meta,
        "train_list": [[n, md5(files[n])] for n in files if n.startswith("data")],
        "test_list": [["test_batch", md5(files["test_batch"])]],
    }
    return type("CIFAR10", (CIFAR10,), checksums)


def make_mnist(folder: Path) -> type:
    """Write the files of a small MNIST, and return the class that has their checksums."""
    random, resources = np.random.default_rng(1), []
    for name, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
        labels = bytes(n % 10 for n in range(count))
        for file, data in (
            (f"{name}-images-idx3-ubyte.gz", struct.pack(">4i", 2051, count, 28, 28) + pixels),
            (f"{name}-labels-idx1-ubyte.gz", struct.pack(">2i", 2049, count) + labels),
        ):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(gzip.compress(data, mtime=0))
            resources.append((file, md5(folder / file)))
    return type("MNIST", (MNIST,), {"resources": resources})


def make_flowers(folder: Path) -> type:
    """Write the files of 9 flowers of 102 classes, 3 a part, and return the class that has their checksums."""
    write_tar(
        folder / "102flowers.tgz", {f"jpg/image_{n:05d}.jpg": encode_jpeg(n) for n in range(1, 10)}
    )
    (folder / "imagelabels.mat").write_bytes(encode_mat(labels=[[1, 2, 102] * 3]))
    ids = {"trnid": [[3, 1, 2]], "valid": [[4, 5, 6]], "tstid": [[7, 8, 9]]}
    (folder / "setid.mat").write_bytes(encode_mat(**ids))
    names = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    files = {key: (name, md5(folder / name)) for key, name in names.items()}
    return type("Flowers102", (Flowers102,), {"_file_dict": files})


def make_pets(folder: Path) -> type:
    """Write the archives of 4 pets, and return the class that has their checksums."""
    names = ["Abyssinian_1", "american_bulldog_1", "Abyssinian_2", "american_bulldog_2"]
    images = {f"images/{name}.jpg": encode_jpeg(n) for n, name in enumerate(names)}
    lines = [f"{name} {n % 2 + 1} {n % 2 + 1} 1" for n, name in enumerate(names)]
    write_tar(folder / "images.tar.gz", images)
    lists = {"trainval": lines[:2], "test": lines[2:]}
    write_tar(
        folder / "annotations.tar.gz",
        {f"annotations/{name}.txt": "\n".join(rows).encode() for name, rows in lists.items()},
    )
    resources = tuple(
        (f"http://localhost/{name}", md5(folder / name))
        for name in ("images.tar.gz", "annotations.tar.gz")
    )
    return type("OxfordIIITPet", (OxfordIIITPet,), {"_RESOURCES": resources})


def make_imagenette(folder: Path) -> type:
    """Write the archive of an Imagenette of 12 images in 3 classes, and return its class."""
    places = [
        (part, wnid, n)
        for part, count in (("train", 3), ("val", 1))
        for wnid in WNIDS
        for n in range(count)
    ]
    files = {
        f"imagenette2/{part}/{wnid}/{wnid}_{part}_{n}.JPEG": encode_jpeg(number)
        for number, (part, wnid, n) in enumerate(places)
    }
    write_tar(folder / "imagenette2.tgz", files)
    archives = {"full": ("http://localhost/imagenette2.tgz", md5(folder / "imagenette2.tgz"))}
    return type("Imagenette", (Imagenette,), {"_ARCHIVES": archives})


def make_tiny_imagenet(folder: Path) -> type:
    """Write the archive of a Tiny ImageNet of 9 images in 3 classes, and return its class."""
    files = {"wnids.txt": "\n".join(reversed(WNIDS)).encode()}
    for number, wnid in enumerate(WNIDS):
        for n in range(2):
            files[f"train/{wnid}/images/{wnid}_{n}.JPEG"] = encode_jpeg(10 * number + n)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        files[f"val/images/val_{2 - number}.JPEG"] = encode_jpeg(100 + number)
    rows = [f"val_{2 - number}.JPEG\t{wnid}\t0\t0\t9\t9" for number, wnid in enumerate(WNIDS)]
    files["val/val_annotations.txt"] = "\n".join(rows).encode()
    files["test/images/test_0.JPEG"] = encode_jpeg(200)
    path = folder / "tiny-imagenet-200.zip"
    write_zip(path, {f"tiny-imagenet-200/{name}": data for name, data in files.items()})
    return type("TinyImagenet", (TinyImagenet,), {"md5": md5(path)})
