"""The columns of a table are found by the names that people give them, or named in a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitctl.data.readers.column_names import reduce_name
from deitctl.data.readers.columns import find_columns
from deitctl.errors import DataError

TABLE = Path("t.csv")


def find(header: str, *rows: str) -> tuple[int, int | None, int | None]:
    columns = find_columns(TABLE, header.split(","), [row.split(",") for row in rows])
    return columns.path, columns.label, columns.split


@pytest.mark.parametrize(
    "header",
    [
        *(
            "path,label",
            "Path,Label",
            "PATH,LABEL",
            "image_id,label",
            "ImageId,Class",
            "img,target",
        ),
        *(
            "File Name,Category",
            "filename,species",
            "image_path,class_name",
            "id,breed",
            "image,tags",
        ),
        *(
            "filepaths,labels",
            "id_code,diagnosis",
            "image_id,dx",
            "file,class_id",
            "filenames,classes",
        ),
    ],
)
def test_the_names_that_people_use_are_known(header):
    assert find(header) == (0, 1, None)
    assert find(",".join(reversed(header.split(",")))) == (1, 0, None)


def test_the_exact_name_goes_before_others():
    assert find("filename,image,path,class,label,category") == (2, 4, None)


def test_what_could_have_been_meant_too_is_named():
    columns = find_columns(TABLE, ["file", "path", "class", "label", "class_id"], [])
    assert columns.notes == [
        "images by the column 'path', not 'file'",
        "classes by the column 'label', not 'class'",
    ]


def test_identifiers_stand_for_a_column_only_where_there_is_no_other():
    assert find("id,filename,class_id,class_name") == (1, 3, None)
    assert find("class id,filepaths,labels,data set,scientific name", "0,a,b,train,c") == (1, 2, 3)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ("filename,image,label", "'filename' and 'image' may be that of image files.*'path'"),
        ("path,class,category", "'class' and 'category' may be that of classes.*'label'"),
        ("colour,shape", "has the columns 'colour', 'shape'.*image files"),
        ("path,shape", "has the columns 'path', 'shape'.*classes"),
        ("label," + ",".join(f"pixel{n}" for n in range(64)), "columns are pixels"),
    ],
)
def test_what_is_ambiguous_or_missing_is_refused_with_the_columns(header, what):
    with pytest.raises(DataError, match=what):
        find(header)


def test_a_column_of_splits_has_many_names_and_holds_splits():
    for name in ("split", "subset", "Set", "partition", "dataset", "fold"):
        assert find(f"path,label,{name}", "1.jpg,a,Train", "2.jpg,b,valid")[2] == 2
    columns = find_columns(TABLE, ["path", "label", "fold"], [["1.jpg", "a", "0"]])
    assert (columns.split, columns.notes) == (None, ["no splits are in 'fold'"])
    assert find("path,label,is_valid", "1.jpg,a,False", "2.jpg,b,True")[2] == 2


def test_columns_of_0_and_1_are_the_classes_where_none_is_called_so():
    columns = find_columns(TABLE, ["image", "cat", "dog"], [["1", "1.0", "0.0"], ["2", "0", "1"]])
    assert (columns.label, columns.one_hot) == (None, (1, 2))
    with pytest.raises(DataError, match="'image', 'cat', 'age'"):
        find("image,cat,age", "1,1,34")


@pytest.mark.parametrize(
    ("name", "reduced"),
    [("Image ID", "imageid"), ("categories", "category"), ("Classes", "class"), ("x_y", "xy")],
)
def test_case_signs_and_plurals_make_no_other_name(name, reduced):
    assert reduce_name(name) == reduced


@pytest.mark.parametrize(
    "name", ["Usage", "purpose", "mode", "ImageSet", "ml_use", "Split Name", "train_or_test"]
)
def test_a_column_whose_values_all_are_parts_is_that_of_splits_whatever_it_is_called(name):
    header, rows = ["path", "label", "note", name], [["1", "a", "", "train"], ["2", "b", "", "Val"]]
    assert find_columns(TABLE, header, rows).notes == [f"splits by the column {name!r}"]
    late = [*[["1", "a", "train", "train"]] * 30, ["2", "b", "x", "test"]]
    assert find_columns(TABLE, header, late[:20], read_all=lambda _: late).split == 3


def test_values_are_parts_only_if_all_are_few_and_of_two_parts():
    header = "path,label,old"
    assert find(header, "1,a,train", "2,b,train")[2] is None
    assert find(header, "1,a,train", "2,b,val", "3,b,bullet")[2] is None
    ids = [f"{n},a,{['train', 'val'][n % 2]}_{n}" for n in range(12)]
    assert find(header, *ids)[2] is None
    assert find("path,label", "1,train", "2,test")[2] is None
    assert find("path,label,old,split", "1,a,train,test", "2,b,test,train")[2] == 3


def test_all_rows_are_looked_through_only_where_the_first_leave_open_what_a_column_is():
    read: list[list[int]] = []
    for row in (["1", "a", "3", "x"], ["1", "a", "", "train"]):
        find_columns(
            TABLE,
            ["path", "label", "note", "Usage"],
            [row],
            read_all=lambda p: read.append(p) or (),
        )
    assert read == [[2, 3]]


def test_two_columns_of_parts_are_refused():
    with pytest.raises(DataError, match="'Usage' and 'mode' may be that of splits.*'split'"):
        find("path,label,Usage,mode", "1,a,train,val", "2,b,val,train")
    with pytest.raises(DataError, match="'is_train' and 'mode' may be that of splits.*'split'"):
        find("path,label,mode,is_train", "1,a,train,1", "2,b,test,0")


@pytest.mark.parametrize(("name", "flag"), [("train", ("train", "val")), ("Val", ("val", "train"))])
def test_a_part_with_yes_and_no_is_a_column_of_splits_beside_one_of_classes(name, flag):
    columns = find_columns(TABLE, ["path", "label", name], [["1", "a", "0"], ["2", "b", "1"]])
    assert (columns.split, columns.flag) == (2, flag)
    columns = find_columns(TABLE, ["path", "car", name], [["1", "1", "0"], ["2", "0", "1"]])
    assert (columns.split, columns.one_hot) == (None, (1, 2))


@pytest.mark.parametrize(
    "name",
    ["choice", "Emotion", "annotations", "finding", "grade", "level", "fine_label", "my class"],
)
def test_other_words_for_a_class_are_taken_where_no_usual_one_is_there(name):
    columns = find_columns(TABLE, ["image", name, "width", "num_labels"], [])
    assert f"classes by the column {name!r}" in columns.notes
    assert find(f"image,{name},species")[1] == 2
    assert find(f"image,{name},class_id")[1] == 2


def test_two_other_words_or_two_columns_of_named_classes_are_refused():
    for label in ("fine_label", "Emotion"):
        with pytest.raises(DataError, match=f"'coarse_label' and '{label}' may be that of classes"):
            find(f"image,coarse_label,{label}")
    with pytest.raises(DataError, match="'artist' and 'style' may be that of classes.*'label'"):
        find_columns(TABLE, ["image", "artist", "style"], [], class_labels=[1, 2])
