"""Names: folders, lists, addresses of files; and how far ahead they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deitctl.inference.inputs import Input, batches, expand, is_url, local_path, read_ahead
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
def test_an_address_of_a_file_means_its_path(name, path):
    assert local_path(name) == path


def test_addresses_of_a_file_and_of_a_folder_are_read_and_keep_their_name(image_folder):
    root = image_folder({"a b": 2})
    address = (root / "a b" / "0.png").as_uri()
    assert "%20" in address
    [[item]] = list(batches([address], Preprocessing(img_size=8), 1))
    assert (item.name, item.error) == (address, None)
    assert item.pixels is not None
    assert list(expand([(root / "a b").as_uri()], ())) == [
        str(root / "a b" / f"{n}.png") for n in range(2)
    ]


def test_the_web_is_recognized_in_any_case():
    assert is_url("http://x/y.jpg")
    assert is_url("HTTPS://x/y.jpg")
    assert not is_url("file:///x")
    assert not is_url("http.jpg")


def test_a_folder_is_in_the_order_of_its_names(tmp_path: Path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "sub/d.png", ".git/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [Path(n).relative_to(tmp_path).as_posix() for n in expand([str(tmp_path)], ())] == [
        "a.JPG",
        "b.png",
        "sub/d.png",
    ]


@pytest.mark.parametrize(("size", "ahead"), [(1, 1), (4, 8)])
def test_names_are_read_at_most_one_batch_ahead_and_not_at_all_one_at_a_time(size, ahead):
    """A million names are never in memory, and whoever waits for an answer before the next name gets it."""
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield str(n)

    given = 0
    for batch in read_ahead(names(), loaded, size):
        given += len(batch)
        assert taken <= given - len(batch) + ahead
    assert given == taken == 40


def test_batches_keep_the_order_and_the_last_may_be_smaller():
    found = list(read_ahead(iter("abcdefg"), loaded, 3))
    assert [[i.name for i in batch] for batch in found] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_a_folder_without_images_and_addresses_of_other_kinds_are_said_to_be_that(tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), "ftp://somewhere/y.jpg", "gone.jpg"]
    (batch,) = batches(expand(names, ()), Preprocessing(img_size=8), 3)
    assert [item.name for item in batch] == names
    folder, address, gone = (str(item.error) for item in batch)
    assert "is a folder without images" in folder
    assert "ftp://somewhere/y.jpg is not read: addresses are http, https or file" in address
    assert "No such file" in gone
