"""A table's images are found where its paths lead, in one way for all rows, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitctl.data.arrays import StringArray
from deitctl.data.readers.image_places import ImagePlaces, find_images
from deitctl.errors import DataError


def find(root: Path, *values: str, images: Path | str = "") -> ImagePlaces:
    return find_images(root / "t.csv", StringArray.from_strings(values), str(images))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def relative(places: ImagePlaces) -> list[str]:
    return [name.removeprefix(places.root) for name in places.names]


def test_paths_that_are_there_are_taken_as_they_are_written_without_a_word(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "images/a/1.jpg")
    places = find(tmp_path, "a/1.jpg", str(tmp_path / "b/2.jpg"))
    assert list(places.names) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/b/2.jpg"]
    assert (places.root, places.notes) == (f"{tmp_path}/", ())
    assert not places.is_missing.any()


@pytest.mark.parametrize("folder", ["images", "train_images", "img", "train", "jpg", "JPEGImages"])
def test_names_alone_are_found_in_a_folder_beside_the_table(folder, tmp_path):
    touch(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg", "notes/1.jpg", "train_masks/1.jpg")
    places = find(tmp_path, "1.jpg", "2.jpg")
    assert places.root == f"{tmp_path}/{folder}/"
    assert relative(places) == ["1.jpg", "2.jpg"]
    assert "not there as written" in places.notes[0]
    assert folder in places.notes[0]


def test_images_may_be_parted_over_folders_if_each_is_in_one(tmp_path):
    touch(tmp_path, "images_part_1/1.jpg", "images_part_2/2.jpg")
    assert relative(find(tmp_path, "1", "2")) == ["images_part_1/1.jpg", "images_part_2/2.jpg"]
    touch(tmp_path, "images_part_2/1.jpg")
    with pytest.raises(DataError, match=r"may be .*images_part_1/1.jpg.* or .*--images"):
        find(tmp_path, "1", "2")


def test_extensions_are_added_as_the_files_have_them(tmp_path):
    touch(tmp_path, "1.jpg", "2.PNG", "3.v2.jpeg", "1.txt")
    places = find(tmp_path, "1", "2", "3.v2")
    assert relative(places) == ["1.jpg", "2.PNG", "3.v2.jpeg"]
    assert places.notes == (".PNG or .jpeg or .jpg is added to its names",)
    touch(tmp_path, "1.png")
    with pytest.raises(DataError, match="'1' may be .*1.jpg.* or .*1.png"):
        find(tmp_path, "1", "2")


def test_case_and_the_form_of_unicode_are_those_of_the_files(tmp_path):
    touch(tmp_path, "img1.jpg", "cafe\u0301.jpg")
    places = find(tmp_path, "IMG1.JPG", "caf\u00e9.jpg")
    assert relative(places) == ["img1.jpg", "cafe\u0301.jpg"]
    assert places.notes == ("2 of its names are spelled otherwise than the files",)
    with pytest.raises(DataError, match=r"may be 'IMG1.jpg' or 'img1.JPG'"):
        find(tmp_path, "IMG1.jpg", "img1.JPG")


def test_the_separators_of_windows_are_read_where_files_are_so(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    places = find(tmp_path, "a\\1.jpg", ".\\a\\2.jpg")
    assert relative(places) == ["a/1.jpg", "./a/2.jpg"]
    assert "with / for \\" in places.notes[0]


def test_paths_may_be_relative_to_a_folder_above_the_table(tmp_path):
    touch(tmp_path, "project/data/images/1.jpg")
    places = find(tmp_path / "project/data", "data/images/1.jpg")
    assert places.root == f"{tmp_path}/project/"


@pytest.mark.parametrize("value", ["/home/bob/data/train/{}.jpg", "C:\\Users\\bob\\train\\{}.jpg"])
@pytest.mark.parametrize("folder", ["", "train"])
def test_paths_of_another_machine_are_found_by_their_ends_in_a_named_folder(
    value, folder, tmp_path
):
    touch(tmp_path, "here/train/1.jpg", "here/train/2.jpg")
    values = [value.format(number) for number in (1, 2)]
    assert find(tmp_path, *values).is_missing.all()
    places = find(tmp_path, *values, images=tmp_path / "here" / folder)
    assert [Path(name).name for name in places.names] == ["1.jpg", "2.jpg"]
    assert not places.is_missing.any()


def test_ends_that_two_paths_share_find_nothing(tmp_path):
    touch(tmp_path, "here/1.jpg")
    with pytest.raises(DataError, match="may be"):
        find(tmp_path, "/x/train/1.jpg", "/x/test/1.jpg", images=tmp_path / "here")


def test_ends_of_two_lengths_that_lead_to_different_files_are_refused(tmp_path):
    touch(tmp_path, "here/1.jpg", "here/train/1.jpg")
    (tmp_path / "here/1.jpg").write_bytes(b"another")
    with pytest.raises(DataError, match="may be"):
        find(tmp_path, "/x/train/1.jpg", images=tmp_path / "here")


def test_with_a_named_folder_absolute_paths_that_exist_are_not_taken(tmp_path):
    touch(tmp_path, "old/1.jpg", "new/1.jpg")
    places = find(tmp_path, str(tmp_path / "old/1.jpg"), images=tmp_path / "new")
    assert list(places.names) == [f"{tmp_path}/new/1.jpg"]


def test_missing_files_are_counted_row_by_row_and_stay_as_they_are_written(tmp_path):
    touch(tmp_path, "1.jpg")
    places = find(tmp_path, "1.jpg", "2.jpg", "nowhere/3.jpg", "a\0b.jpg")
    assert places.is_missing.tolist() == [False, True, True, True]
    assert relative(places)[1:] == ["2.jpg", "nowhere/3.jpg", "a\0b.jpg"]


def test_each_folder_is_listed_once_however_many_rows_name_it(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{folder}/{n}.jpg" for folder in "ab" for n in range(50)))
    listed = []
    scandir = __import__("os").scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(str(path)) or scandir(path))
    find(tmp_path, *(f"{folder}/{n}.jpg" for folder in "ab" for n in range(50)))
    assert sorted(listed) == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_a_folder_is_no_image(tmp_path):
    touch(tmp_path, "images/1/other.png", "images/1.png", "images/2.png", "3.png/other.png")
    places = find(tmp_path, "1", "2", images=tmp_path / "images")
    assert relative(places) == ["1.png", "2.png"]
    assert find(tmp_path, "images/1.png", "3.png", "images/1").is_missing.tolist() == [0, 1, 0]


def test_blanks_around_a_path_are_none_of_it_unless_a_file_has_them(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "images/3.png ")
    places = find(tmp_path, "images/1.png ", " images/2.png", "images/3.png ")
    assert relative(places) == ["images/1.png", "images/2.png", "images/3.png "]
    assert places.notes == ("2 of its names are spelled otherwise than the files",)
    assert not places.is_missing.any()


@pytest.mark.parametrize("start", ["file://", "file://localhost", "file:", " FILE://"])
def test_addresses_of_files_are_paths(start, tmp_path):
    touch(tmp_path, "a b/1.jpg", "a b/2.jpg")
    values = [f"{start}{tmp_path}/a%20b/{number}.jpg" for number in (1, 2)]
    assert relative(find(tmp_path, *values)) == ["a b/1.jpg", "a b/2.jpg"]
    windows = ["file:///C:/x/a%20b/1.jpg", "file:///C:/x/a%20b/2.jpg"]
    assert relative(find(tmp_path, *windows, images=tmp_path)) == ["a b/1.jpg", "a b/2.jpg"]


def test_images_that_were_converted_are_found_by_their_names_and_said(tmp_path):
    touch(tmp_path, "images/1.JPG", "images/2.JPG")
    for values in (["images/1.jpeg", "images/2.png"], ["1.jpeg", "2.jpeg "]):
        places = find(tmp_path, *values)
        assert relative(places)[-1].endswith("2.JPG")
        assert "without their extensions" in places.notes[0]
        assert ".JPG is added" in places.notes[1]
    places = find(tmp_path, "/x/1.jpeg", "/x/2.jpeg", images=tmp_path / "images")
    assert relative(places) == ["1.JPG", "2.JPG"]


def test_another_extension_is_no_image_where_others_are_as_written_or_it_is_not_the_only_one(
    tmp_path,
):
    touch(tmp_path, "1.jpg", "2.png", "3.png", "3.gif")
    assert find(tmp_path, "1.jpg", "2.jpg").is_missing.tolist() == [False, True]
    with pytest.raises(DataError, match="'3' may be .*3.gif.* or .*3.png"):
        find(tmp_path, "2.jpg", "3.jpg")
    with pytest.raises(DataError, match=r"2.png.* may be '2.gif' or '2.jpg'"):
        find(tmp_path, "2.gif", "2.jpg")
