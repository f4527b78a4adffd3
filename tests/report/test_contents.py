"""Pairs, classes and confusions are counted as by hand."""

from __future__ import annotations

from deitctl.report.contents import OUTSIDE, count_classes, count_pairs, list_confusions


def test_the_matrix_holds_every_pair_that_occurs_and_no_other(evaluated):
    labels, preds, images = count_pairs(evaluated())
    pairs = {(int(a), int(b)): int(n) for a, b, n in zip(labels, preds, images, strict=True)}
    assert pairs == {(0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 1, (1, OUTSIDE): 1, (2, 2): 2}


def test_recall_and_precision_come_from_images_correct_ones_and_predictions(evaluated):
    images, correct, predicted = count_classes(evaluated())
    assert images.tolist() == [3, 3, 2]
    assert correct.tolist() == [2, 1, 2]
    assert predicted.tolist() == [3, 2, 2]  # the fox counts for no class


def test_the_most_frequent_confusions_come_first_and_a_class_outside_has_its_title(evaluated):
    preds = [1, 1, 0, OUTSIDE, 0, 1, 2, 2]
    section = evaluated(preds=preds)
    assert list_confusions(section, 9) == [(0, 1, "", 2), (1, 0, "", 1), (1, OUTSIDE, "fox", 1)]
    assert list_confusions(section, 1) == [(0, 1, "", 2)]
    assert list_confusions(evaluated(preds=section.result.labels), 9) == []


def test_different_classes_outside_are_different_confusions(evaluated):
    section = evaluated(
        preds=[0, 0, 0, OUTSIDE, OUTSIDE, OUTSIDE, 2, 2], outside={3: "fox", 4: "fox", 5: "wolf"}
    )
    assert list_confusions(section, 9) == [(1, OUTSIDE, "fox", 2), (1, OUTSIDE, "wolf", 1)]


def test_the_losses_of_a_run_are_the_parts_in_its_log(curves):
    assert curves.losses == ["loss", "task_loss"]
    assert curves.heads == ["cls", "dist"]
