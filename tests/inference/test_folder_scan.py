"""A folder's images are found as training finds them, and what is passed over is counted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from deitctl.data import file_types
from deitctl.data.readers.folder import open_folder
from deitctl.data.trees import is_image_file
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.inputs import expand, open_image


@pytest.fixture
def png(tmp_path) -> bytes:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    return data


def write(root: Path, **files: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def scan(root: Path) -> tuple[list[str], FolderScan]:
    found = FolderScan()
    return [os.path.relpath(path, root) for path in found.list_images(str(root))], found


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path, png, reporter):
    real = write(tmp_path / "real", **{"1.png": png, "2.png": png})
    data = write(tmp_path / "data" / "class", **{"0.png": png})
    (data / "linked").symlink_to(real)
    (data / "once_more").symlink_to(real)
    (data / "parent").symlink_to(data.parent)
    (data / "self").symlink_to(data)
    (data / "a.png").symlink_to(real / "1.png")
    (data / "b.png").symlink_to(real / "1.png")
    names, found = scan(data.parent)
    assert names == [
        *("class/0.png", "class/a.png", "class/b.png"),
        *("class/linked/1.png", "class/linked/2.png"),
    ]
    assert found.describe() == ""
    # the same as training's
    assert sorted(open_folder(data.parent, reporter).paths) == sorted(
        str(data.parent / name) for name in names
    )


def test_a_link_to_nothing_is_an_input_if_it_is_named_like_an_image(tmp_path):
    write(tmp_path)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    names, found = scan(tmp_path)
    assert names == ["gone.jpg"]
    assert found.describe() == (
        "1 file is not read: 1 without an extension, a link that leads nowhere."
    )


def test_images_are_found_by_their_bytes_where_the_name_says_nothing(tmp_path, png):
    write(tmp_path, IMG_0001=png, **{"a.png_large": png, "b.png?w=600": png, "c.PNG": png})
    write(tmp_path, notes=b"notes", README=b"read me", **{"d.txt": png, "e.xyz": b"\3\x11"})
    names, found = scan(tmp_path)
    assert names == ["IMG_0001", "a.png_large", "b.png?w=600", "c.PNG"]
    assert found.describe() == "2 files are not read: 1 .xyz, 1 without an extension, a text file."


def test_training_and_check_find_the_same_files_by_their_bytes(tmp_path, png, reporter):
    names = ["scan", "scan.0001", "cat.jpg_large", "cat.jpg!d", "a.PNG", "b.png.part", "v1.2"]
    others = {"README": b"text", "notes.txt": png, "a.0002": b"no image", "b.dcm": png, ".c": png}
    data = write(tmp_path / "data" / "class", **dict.fromkeys(names, png), **others).parent
    found = scan(data)[0]
    assert found == [f"class/{name}" for name in sorted(names)]
    assert sorted(open_folder(data, reporter).paths) == [str(data / name) for name in found]
    assert [path for path in sorted(data.rglob("*")) if is_image_file(str(path))] == [
        data / "class" / ".c",  # junk, which its callers leave out
        *(data / name for name in found),
    ]


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_heic_file_has_a_row_and_other_formats_are_counted(
    tmp_path, png, monkeypatch, is_installed
):
    monkeypatch.setattr(file_types, "can_read_heic", lambda: is_installed)
    write(tmp_path, **{"a.png": png, "b.HEIC": b"x", "c.cr2": b"x", "d.CR2": b"x", "e.pdf": b"x"})
    names, found = scan(tmp_path)
    assert names == ["a.png", "b.HEIC"]
    assert found.describe().startswith("3 files are not read: 2 .cr2 (develop them to JPEG or PNG")


def test_files_of_systems_and_labels_are_passed_over_without_a_word(tmp_path, png):
    for folder in ("@eaDir", "#recycle", "$RECYCLE.BIN", ".thumbnails", "__MACOSX", "lost+found"):
        write(tmp_path / folder, **{"t.png": png})
    write(tmp_path, **{"._a.png": png, "Thumbs.db": b"x", "desktop.ini": b"x", ".DS_Store": b"x"})
    write(tmp_path, **{"a.png": png, "labels.csv": b"x", "a.xml": b"x", "a.json": b"x"})
    names, found = scan(tmp_path)
    assert (names, found.describe()) == (["a.png"], "")


def test_dicom_files_without_an_extension_are_named(tmp_path):
    slices = {f"IM{number:04}": bytes(128) + b"DICM" for number in range(3)}
    write(tmp_path / "series", **slices)
    [folder] = expand([str(tmp_path / "series")])
    with pytest.raises(Exception, match="3 without an extension, each a DICOM file") as error:
        open_image(folder)
    assert "series is a folder without images. 3 files are not read" in str(error.value)


def test_a_folder_without_images_says_what_it_has(tmp_path):
    write(tmp_path / "labels", **{"a.txt": b"", "b.txt": b"", "c.csv": b""})
    with pytest.raises(Exception, match=r"a folder without images\. It has 2 \.txt, 1 \.csv\.$"):
        open_image(str(tmp_path / "labels"))


def test_a_pipe_is_not_waited_for(tmp_path, png):
    write(tmp_path, **{"a.png": png})
    os.mkfifo(tmp_path / "pipe")
    names, found = scan(tmp_path)
    assert (names, found.unread) == (["a.png"], {"": 1})


def test_a_folder_that_vanishes_is_named(tmp_path, png):
    write(tmp_path, **{"a.png": png})
    write(tmp_path / "b", **{"b.png": png})
    found = FolderScan()
    images = found.list_images(str(tmp_path))
    next(images)
    shutil.rmtree(tmp_path / "b")
    assert list(images) == []
    assert found.describe() == f"1 folder cannot be listed: {tmp_path / 'b'}."


@pytest.mark.unprivileged
def test_a_folder_without_permission_is_named(tmp_path, png):
    write(tmp_path / "private", **{"a.png": png}).chmod(0)
    try:
        names, found = scan(tmp_path)
    finally:
        (tmp_path / "private").chmod(0o700)
    assert names == []
    assert "1 folder cannot be listed" in found.describe()
