"""What is counted: pairs, classes, confusions; against counting by hand."""

from __future__ import annotations

from deitctl.report.contents import OUTSIDE, confusion, most_confused, per_class


def test_the_matrix_holds_every_pair_that_occurs_and_no_other(evaluated):
    labels, answers, images = confusion(evaluated())
    found = {(int(a), int(b)): int(n) for a, b, n in zip(labels, answers, images, strict=True)}
    assert found == {(0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 1, (1, OUTSIDE): 1, (2, 2): 2}


def test_recall_and_precision_come_from_images_right_ones_and_answers(evaluated):
    images, right, answers = per_class(evaluated())
    assert images.tolist() == [3, 3, 2]
    assert right.tolist() == [2, 1, 2]
    assert answers.tolist() == [
        3,
        2,
        2,
    ]  # one dog is taken for a cat, one cat for a dog; the fox is nobody's


def test_the_most_often_confused_come_first_and_an_answer_outside_has_its_name(evaluated):
    e = evaluated(predicted=[1, 1, 0, OUTSIDE, 0, 1, 2, 2])
    assert most_confused(e, 9) == [(0, 1, "", 2), (1, OUTSIDE, "fox", 1), (1, 0, "", 1)]
    assert most_confused(e, 1) == [(0, 1, "", 2)]
    assert most_confused(evaluated(predicted=e.data.labels), 9) == []


def test_the_losses_of_a_run_are_those_parts_of_its_log(curves):
    assert curves.losses == ["loss", "labels"]
    assert curves.heads == ["cls", "dist"]
