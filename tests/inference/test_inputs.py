"""Inputs of every kind, folders and lists of names, and how far ahead they are read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.data.decode import decode
from deitctl.errors import DataError
from deitctl.inference.inputs import (
    Input,
    expand,
    is_image,
    is_url,
    load_batches,
    local_path,
    open_image,
    read_ahead,
    suggest_inputs,
)
from deitctl.models.model_config import Preprocessing


def loaded(name: str) -> Input:
    return Input(name, None, None)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("file:///a/b.jpg", "/a/b.jpg"),
        ("file://localhost/a%20b/%C3%A4.jpg", "/a b/ä.jpg"),
        ("FILE:///a.jpg", "/a.jpg"),
        ("file://elsewhere/a.jpg", "file://elsewhere/a.jpg"),
        ("file://[::1/a.jpg", "file://[::1/a.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),
        ("/file:/x", "/file:/x"),
    ],
)
def test_local_path_of_a_file_address(name, path):
    assert local_path(name) == path


def test_file_addresses_are_read_and_keep_their_name(image_folder):
    root = image_folder({"a b": 2})
    address = (root / "a b" / "0.png").as_uri()
    assert "%20" in address
    [[item]] = list(load_batches([address], Preprocessing(img_size=8), 1))
    assert (item.name, item.error) == (address, None)
    assert item.pixels is not None
    assert list(expand([(root / "a b").as_uri()], ())) == [
        str(root / "a b" / f"{n}.png") for n in range(2)
    ]


def test_is_url_ignores_case():
    assert is_url("http://x/y.jpg")
    assert is_url("HTTPS://x/y.jpg")
    assert not is_url("file:///x")
    assert not is_url("http.jpg")


def test_a_folder_is_expanded_in_sorted_order(tmp_path: Path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "sub/d.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [Path(n).relative_to(tmp_path).as_posix() for n in expand([str(tmp_path)], ())] == [
        "a.JPG",
        "b.png",
        "sub/d.png",
    ]


@pytest.mark.parametrize(("size", "ahead"), [(1, 1), (4, 8)])
def test_names_are_read_at_most_one_batch_ahead(size, ahead):
    """A million names are never in memory, and whoever waits for an answer before the next name gets it."""
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield str(n)

    yielded = 0
    for batch in read_ahead(names(), loaded, size):
        yielded += len(batch)
        assert taken <= yielded - len(batch) + ahead
    assert yielded == taken == 40


def test_batches_keep_the_order_and_the_last_may_be_smaller():
    batches = list(read_ahead(iter("abcdefg"), loaded, 3))
    assert [[i.name for i in batch] for batch in batches] == [
        ["a", "b", "c"],
        ["d", "e", "f"],
        ["g"],
    ]


def test_empty_folders_and_other_addresses_have_their_own_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), "ftp://somewhere/y.jpg", "gone.jpg"]
    (batch,) = load_batches(expand(names, ()), Preprocessing(img_size=8), 3)
    assert [item.name for item in batch] == names
    folder, address, gone = (str(item.error) for item in batch)
    assert folder.endswith("empty is a folder without images.")
    assert "ftp://somewhere/y.jpg is not read: addresses are http, https or file" in address
    assert "No such file" in gone


def test_a_folder_in_a_list_of_files_is_not_called_empty(image_folder):
    folder = str(image_folder({"in": 1}) / "in")
    (batch,) = load_batches(expand(["-"], [folder]), Preprocessing(img_size=8), 3)
    assert "in is a folder in a list of files. Name it as an argument" in str(batch[0].error)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_pillow_image_is_converted_as_its_file_is(mode, make_image):
    image = make_image(9, 7).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image
    data = encode(image)
    with Image.open(io.BytesIO(data)) as opened:
        assert open_image(opened).tobytes() == decode(data, "x").tobytes()
        assert opened.mode == mode  # the user's image is left alone


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_bytes_of_a_file_are_of_any_type(kind, make_image):
    data = encode(make_image(9, 7))
    assert open_image(kind(data)).tobytes() == decode(data, "x").tobytes()


def test_a_pillow_image_is_turned_upright(make_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_image(9, 7), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert open_image(opened).size == decode(data, "x").size == (7, 9)


def test_floats_are_the_inverse_of_to_tensor():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (
        array,
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
        array[:, ::-1][:, ::-1],
    ):
        assert np.array_equal(np.asarray(open_image(image)), array)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32 and shape .4, 4, 3.*uint8 and .H,W,3."),
        (np.zeros((3, 4, 4), np.uint8), "shape .3, 4, 4."),
        (np.zeros((4, 4), np.uint8), "shape .4, 4."),
        (np.zeros((0, 4, 3), np.uint8), "shape .0, 4, 3."),
        (torch.zeros(4, 4, 3), "torch.float32 and shape .4, 4, 3."),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "torch.int64"),
        (torch.full((3, 4, 4), 1.5), "values from 1.5 to 1.5.*0..1, not normalized"),
        (torch.full((3, 4, 4), float("nan")), "not normalized"),
        (b"", "is empty"),
        (b"no image", "is a text file, not an image"),
        (7, "is of type int"),
        (None, "is of type NoneType"),
        (io.BytesIO(b"no image"), r"is an open file\. .*file\.read\(\)"),
        (bytearray(b"no image"), "is a text file, not an image"),
        (np.array("a.png"), "dtype <U5 and shape \\[\\]"),
    ],
    ids=lambda v: str(v)[:20] if isinstance(v, str) else "",
)
def test_what_is_no_image_is_named(image, says):
    with pytest.raises(DataError, match=rf"image 5 .*{says}"):
        open_image(image, "image 5")


def test_one_image_is_distinguished_from_several():
    one = [
        "a.png",
        Path("a"),
        b"",
        bytearray(b"abc"),
        memoryview(b"abc"),
        Image.new("L", (1, 1)),
        np.zeros((2, 2, 3)),
        torch.zeros(3, 2, 2),
    ]
    several = (one, iter(one), np.zeros((1, 2, 2, 3)), {"a.png": 1})
    arrays_of_paths = (np.array(["a.png"]), np.array([Path("a")], dtype=object))
    assert all(is_image(image) for image in one)
    assert not any(is_image(images) for images in (*several, *arrays_of_paths))
    assert all(is_image(refused) for refused in (None, 5, io.StringIO("a.png\n"), np.array("a")))


def test_a_misspelled_input_gets_a_suggestion(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder({"photos": 2}))
    named = ["fotos", "photos", "photos/0.pgn", "-", "https://a.org/photo", "elsewhere.jpg"]
    assert list(suggest_inputs(named)) == [
        "There is no 'fotos'. Did you mean 'photos'?",
        "There is no 'photos/0.pgn'. Did you mean 'photos/0.png'?",
    ]
