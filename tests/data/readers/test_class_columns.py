"""Columns of 0 and 1 are those of classes, also with a few other fields; these are refused by row and column."""

from __future__ import annotations

import pytest

from deitctl.data.open import open_dataset
from deitctl.data.readers.class_columns import find_class_columns
from deitctl.errors import DataError

ROWS = ["1,0,0", "0,1,1", "0,0,1", "1,1,0"] * 5


@pytest.fixture
def opened(tmp_path, reporter):
    """Open a table of as many images as there are rows."""

    def write(head, rows, task="auto"):
        for number in range(len(rows)):
            (tmp_path / f"{number}.png").touch()
        lines = [f"{number}.png,{row}" for number, row in enumerate(rows)]
        (tmp_path / "t.csv").write_text("\n".join([head, *lines]))
        return open_dataset(str(tmp_path / "t.csv"), reporter, task=task).unsplit

    return write


@pytest.mark.parametrize("task", ["auto", "multilabel"])
@pytest.mark.parametrize(
    ("field", "error"),
    [
        ("", "row 6 is blank in the column 'saw'.*0 where a blank means no"),
        ("2", "row 6 has '2' in the column 'saw'"),
        ("-1.0", "row 6 has '-1.0' in the column 'saw'.*either one where -1 means uncertain"),
    ],
)
def test_a_field_that_is_neither_is_refused_and_its_class_not_dropped(field, error, task, opened):
    with pytest.raises(DataError, match=error):
        opened("path,fish,dog,saw", [*ROWS[:4], f"0,1,{field}", *ROWS], task)


def test_all_rows_say_which_columns_are_of_classes(opened):
    late = [*(f"{row}," for row in ROWS[:20]), *["1,0,0,1"] * 3]  # blank in all of the first rows
    with pytest.raises(DataError, match="row 2 is blank in the column 'rare'"):
        opened("path,fish,dog,saw,rare", late, "multilabel")


def test_beside_other_columns_they_are_taken_where_that_is_said_and_all_are_named(opened, reporter):
    rows = [f"p{number % 7},{number % 5},{row}" for number, row in enumerate(ROWS)]
    with pytest.raises(
        DataError, match=r"'fish', 'dog' hold 0 and 1; 'path', 'patient', 'count', 's"
    ):
        opened("path,patient,count,fish,dog,saw", [f"{row}.5" for row in rows])
    dataset = opened("path,patient,count,fish,dog,saw", rows, "multilabel")
    assert dataset.class_names == ("dog", "fish", "saw")
    assert "3 columns of 0 and 1: 'fish', 'dog', 'saw'; not those of other" in reporter.notes[0]
    assert "values: 'patient', 'count'; task" in reporter.notes[0]


def test_numbers_of_folds_and_answers_of_yes_and_no_are_known(opened, reporter):
    assert opened(
        "path,fold,fish,dog,saw", [f"{n % 2},{r}" for n, r in enumerate(ROWS)]
    ).is_multilabel
    assert "no splits are in 'fold'" in reporter.notes[0]
    dataset = opened("path,fish,dog", ["Yes,no", "no,Yes", "Yes,Yes"])
    assert dataset.labels.tolist() == [[False, True], [True, False], [True, True]]


def test_few_other_values_are_mistakes_and_many_are_another_column():
    def find(*values):
        return find_class_columns([(value, "1", "0") for value in values], [0, 1, 2], lambda _: ())

    assert find(*"01012") == {0: ["2"], 1: [], 2: []}
    assert find(*"0101", "", "", "") == {0: [""], 1: [], 2: []}
    assert all(
        0 not in find(*values) for values in ("01234", "0122", "0123" * 9, ("34", "1", "28"))
    )


def test_tables_of_radiology_are_read(tmp_path, opened, reporter):
    rows = ["No Finding,1", "Edema|Mass,1", "Mass,2", "Edema,3"]
    dataset = opened("Image Index,Finding Labels,Patient ID", rows)
    assert dataset.class_names == ("Edema", "Mass", "No Finding")
    rows = ["Male,60,1.0,,", "Female,70,0.0,1.0,-1.0", "Male,65,,1.0,0.0"]
    with pytest.raises(DataError, match="'Edema' hold 0 and 1, but for blanks and '-1.0' in"):
        opened("Path,Sex,Age,No Finding,Mass,Edema", rows)
