"""A fingerprint depends on content alone, and on all of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deitctl.data import fingerprint
from deitctl.data.fingerprint import (
    LENGTH,
    fingerprint_dataset,
    fingerprint_files,
    fingerprint_model,
)
from deitctl.data.open import open_for_evaluation
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.readers.folder import open_folder
from deitctl.data.splits import relabel
from deitctl.data.subsets import Subset, select
from deitctl.device import choose_device
from deitctl.errors import ModelError
from deitctl.events import SilentReporter

COUNTS = {"ant": 3, "bee": 2}


@pytest.fixture
def root(image_folder) -> Path:
    return image_folder(COUNTS)


@pytest.fixture
def of(reporter) -> Callable[[Path], str]:
    """The fingerprint of a folder of class folders."""
    return lambda folder: fingerprint_dataset(open_folder(folder, reporter), reporter)


def test_a_fingerprint_is_short_and_repeatable(root, of):
    assert of(root) == of(root)
    assert len(of(root)) == LENGTH
    int(of(root), 16)


def test_the_same_images_elsewhere_and_later_are_the_same(root, of, tmp_path):
    shutil.copytree(root, tmp_path / "else" / "where", copy_function=shutil.copyfile)
    os.utime(tmp_path / "else" / "where" / "ant" / "0.png", (1, 1))
    assert of(tmp_path / "else" / "where") == of(root)


def test_a_tar_of_the_folder_is_the_same(root, of, reporter, tmp_path):
    tar = shutil.make_archive(str(tmp_path / "packed"), "tar", root)
    assert fingerprint_dataset(open_for_evaluation(tar, reporter), reporter) == of(root)


def change_a_byte(root: Path) -> None:
    file = root / "ant" / "1.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lengthen(root: Path) -> None:
    file = root / "ant" / "1.png"
    file.write_bytes(file.read_bytes() + b"\0")


def swap(root: Path) -> None:
    a, b = root / "ant" / "0.png", root / "ant" / "1.png"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


CHANGES = {
    "byte": change_a_byte,
    "longer": lengthen,
    "name": lambda root: (root / "ant" / "2.png").rename(root / "ant" / "3.png"),
    "class name": lambda root: (root / "bee").rename(root / "cow"),
    "label": lambda root: (root / "ant" / "2.png").rename(root / "bee" / "2.png"),
    "left out": lambda root: (root / "ant" / "2.png").unlink(),
    "added": lambda root: shutil.copyfile(root / "ant" / "2.png", root / "ant" / "9.png"),
    "swapped": swap,
    "emptied": lambda root: (root / "bee" / "0.png").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_noticed(change, root, of):
    before = of(root)
    CHANGES[change](root)
    assert of(root) != before


def test_every_change_gives_another_fingerprint(root, of, tmp_path):
    seen = {of(root)}
    for name, change in CHANGES.items():
        shutil.copytree(root, tmp_path / name)
        change(tmp_path / name)
        seen.add(of(tmp_path / name))
    assert len(seen) == 1 + len(CHANGES)


def test_order_and_labels_count(digit_datasets, reporter):
    train, _ = digit_datasets
    some = select(train, [0, 1, 2, 3])
    turned, renamed = select(train, [1, 0, 2, 3]), relabel(some, tuple(reversed(some.class_names)))
    relabeled = Subset(train, some.indices, (some.labels + 1) % 10, some.class_names)
    prints = {fingerprint_dataset(s, reporter) for s in (some, turned, renamed, relabeled)}
    assert len(prints) == 4
    assert fingerprint_dataset(select(train, [0, 1, 2, 3]), reporter) in prints


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=6), data=st.data())
def test_any_one_changed_pixel_or_label_is_noticed(labels, data):
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 2, 2)
    dataset = ArrayDataset(images, np.array(labels, np.int64), ("a", "b", "c"), "made")
    place = data.draw(
        st.tuples(st.integers(0, len(labels) - 1), st.integers(0, 1), st.integers(0, 1))
    )
    other, moved = images.copy(), dataset.labels.copy()
    other[place] ^= data.draw(st.integers(1, 255))
    moved[place[0]] = (moved[place[0]] + data.draw(st.integers(1, 2))) % 3
    prints = {
        fingerprint_dataset(s, SilentReporter())
        for s in (
            dataset,
            ArrayDataset(other, dataset.labels, dataset.class_names, "made"),
            ArrayDataset(images, moved, dataset.class_names, "made"),
        )
    }
    assert len(prints) == 3


def test_names_that_are_not_unicode_have_a_fingerprint(root, of):
    os.rename(root / "ant" / "0.png", os.fsencode(root / "ant") + b"/\xff.png")
    first = of(root)
    os.rename(os.fsencode(root / "ant") + b"/\xff.png", os.fsencode(root / "ant") + b"/\xfe.png")
    assert of(root) != first


def test_a_fingerprint_stays_what_it_was(digit_datasets, tmp_path, of, reporter):
    """Teacher targets are cached by it."""
    for folder, count in (("ant", 3000), ("bee/x", 3), ("cow", 3)):
        (tmp_path / "d" / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "d" / folder / f"{number}.png").write_bytes(f"{folder} {number}".encode())
    os.rename(tmp_path / "d" / "cow" / "1.png", os.fsencode(tmp_path / "d" / "cow") + b"/\xff.png")
    assert of(tmp_path / "d") == "7bf0f8e6c990ff8c"
    assert [fingerprint_dataset(s, reporter) for s in digit_datasets] == [
        "48c4257315c6da1d",
        "954252b66ae1ac28",
    ]


def test_an_unreadable_image_counts(root, of):
    before = of(root)
    (root / "ant" / "0.png").unlink()
    (root / "ant" / "0.png").symlink_to(root / "nowhere")
    broken = of(root)
    assert broken != before
    assert of(root) == broken


class Counting(ArrayDataset):
    """Records which images were read."""

    def read_bytes(self, index: int) -> bytes:
        self.__dict__.setdefault("indices_read", []).append(index)
        return super().read_bytes(index)


def counting(images: np.ndarray) -> Counting:
    return Counting(images, np.zeros(len(images), np.int64), ("a",), "made")


@pytest.fixture
def images() -> np.ndarray:
    return np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)


def test_all_images_of_a_small_dataset_are_read(images, reporter):
    dataset = counting(images)
    fingerprint_dataset(dataset, reporter)
    assert dataset.indices_read == list(range(40))


def test_a_sample_of_a_large_dataset_is_read(images, reporter, monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_READ", 40 * 4 - 1)
    monkeypatch.setattr(fingerprint, "NUM_SAMPLED", 4)
    dataset = counting(images)
    whole = fingerprint_dataset(dataset, reporter)
    assert dataset.indices_read == [0, 13, 26, 39]  # evenly spread, both ends among them
    sampled, other = images.copy(), images.copy()
    sampled[13] += 1
    other[14] += 1
    assert fingerprint_dataset(counting(sampled), reporter) != whole
    assert fingerprint_dataset(counting(other), reporter) == whole  # the price


def test_all_names_and_sizes_of_a_large_dataset_count(root, of, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_READ", 1)
    monkeypatch.setattr(fingerprint, "NUM_SAMPLED", 2)
    before = of(root)
    change_a_byte(root)  # of ant/1, which is not in the sample of the first and the last
    assert of(root) == before
    for change in ("longer", "name", "label", "class name", "left out", "added"):
        shutil.copytree(root, tmp_path / change)
        CHANGES[change](tmp_path / change)
        assert of(tmp_path / change) != before, change


def test_files_count_by_content_and_order(tmp_path):
    a, b, c = (tmp_path / n for n in "abc")
    a.write_bytes(b"one"), b.write_bytes(b"two"), c.write_bytes(b"one")
    assert fingerprint_files([a, b]) == fingerprint_files([c, b])
    prints = {fingerprint_files(f) for f in ([a, b], [b, a], [a], [b], [a, a], [])}
    assert len(prints) == 6
    assert all(len(p) == LENGTH for p in prints)


def test_where_one_file_ends_and_the_next_begins_counts(tmp_path):
    for name, text in (("a", b"ab"), ("b", b"c"), ("c", b"a"), ("d", b"bc")):
        (tmp_path / name).write_bytes(text)
    pairs = [[tmp_path / "a", tmp_path / "b"], [tmp_path / "c", tmp_path / "d"]]
    assert fingerprint_files(pairs[0]) != fingerprint_files(pairs[1])


def test_an_unreadable_file_raises_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pth cannot be read: No such file"):
        fingerprint_files([tmp_path / "none.pth"])


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", list(convnet().state_dict()))
def test_any_tensor_of_a_model_counts(name):
    model, other = convnet(), convnet()
    assert fingerprint_model(model) == fingerprint_model(other)
    value = other.state_dict()[name].view(-1)
    value[-1] = value[-1] + 1
    assert fingerprint_model(model) != fingerprint_model(other)


def test_the_least_change_of_a_weight_counts(deit):
    model, other = deit(), deit()
    with torch.no_grad():
        weight = other.head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert fingerprint_model(model) != fingerprint_model(other)


def test_names_and_shapes_and_types_of_tensors_count():
    same = torch.arange(4.0)

    def holding(name: str, value: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, value)
        return module

    made = [
        holding("a", same),
        holding("b", same),
        holding("a", same.view(2, 2)),
        holding("a", same.view(torch.int32)),
    ]
    assert len({fingerprint_model(m) for m in made}) == 4


def test_how_a_model_is_used_does_not_count():
    """Memory format, mode and gradients are not weights."""
    model = timm.create_model("regnety_002", num_classes=3)
    before = fingerprint_model(model.train())
    model = choose_device("cpu", "fp32").to_device(model).eval().requires_grad_(False)
    assert fingerprint_model(model) == before


def test_half_precision_and_scalars_have_a_fingerprint():
    module = nn.Module()
    for number, dtype in enumerate((torch.bfloat16, torch.float16, torch.bool, torch.int64)):
        module.register_buffer(f"x{number}", torch.ones((), dtype=dtype))
    assert len(fingerprint_model(module)) == LENGTH


def test_temperatures_and_layout_of_a_config_change_nothing_and_all_else_does(tmp_path):
    def name_of(model_config, **layout):
        (tmp_path / "config.json").write_text(json.dumps(model_config, **layout))
        return fingerprint_files([tmp_path / "config.json"])

    model_config = {"architecture": "deit_tiny", "deitctl": {"head": "cls"}}
    plain = name_of(model_config)
    assert (
        name_of({**model_config, "deitctl": {"head": "cls", "temperatures": {"cls": 2.0}}}) == plain
    )
    assert name_of(model_config, indent=2) == plain
    assert name_of({**model_config, "deitctl": {"head": "dist"}}) != plain
    assert name_of({**model_config, "num_classes": 3}) != plain
    (tmp_path / "config.json").write_text("no config")
    assert fingerprint_files([tmp_path / "config.json"]) not in ("", plain)
