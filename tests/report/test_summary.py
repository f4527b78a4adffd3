"""The summary says the figures in words, and needs no JavaScript."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from deitctl.report.summary import percent, summary


def words(html: str) -> str:
    """The text of a piece of HTML, as it is read."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html))).strip()


def test_one_model_is_said_in_a_sentence_with_its_interval(contents, evaluated):
    assert "62.5 % top-1, 95 % interval 25.0 to 87.5, 8 images" in words(
        summary(contents(evaluated()))
    )


def test_a_figure_without_an_interval_has_none(contents, evaluated):
    said = words(summary(contents(evaluated(intervals={}))))
    assert "62.5 % top-1, 8 images" in said
    assert "interval" not in said


def test_each_head_has_a_row_and_a_plain_model_none(contents, evaluated, distilled):
    assert "distillation head 62.5 %" in words(summary(contents(distilled)))
    assert "head" not in words(summary(contents(evaluated())))


def test_intervals_of_heads_have_a_column_where_they_are_known(contents, distilled):
    assert "95 % interval" not in words(summary(contents(replace(distilled, intervals={}))))
    known = replace(distilled, intervals={"cls": (50.0, 90.0)})
    assert "class head 75.0 % 50.0 to 90.0" in words(summary(contents(known)))


def test_calibration_and_the_datas_own_classes_are_said_where_they_are_known(contents, distilled):
    said = words(summary(contents(distilled)))
    assert "calibration error at temperature 1.5 0.062" in said
    assert "top-1 among the data's 3 classes alone 100.0 %" in said


def test_several_stand_in_a_table_and_the_best_is_marked(contents, evaluated, distilled):
    html = summary(contents(evaluated(), distilled))
    assert "<strong>87.5 %</strong>" in html
    assert "<strong>62.5 %</strong>" not in html


def test_a_comparison_is_told_in_the_order_of_every_other_output(
    contents, evaluated, distilled, better
):
    said = words(summary(contents(evaluated(), distilled, comparisons=[better])))
    assert (
        "deit_tiny against distilled : −25.0 points of top-1, 95 % interval −50.0 to −5.0" in said
    )
    assert (
        "The first alone has 0 right, the second alone 2 (McNemar's exact test: p = 0.5)." in said
    )
    assert "No difference is shown" not in said


def test_names_in_a_comparison_stay_as_they_are_and_its_kind_is_said(
    contents, evaluated, distilled, better
):
    odd = replace(better, a="run -3e", b="x+0.05", interval=(-5.0, 0.01), among_classes=True)
    said = words(summary(contents(evaluated(), distilled, comparisons=[odd])))
    assert "run -3e against x+0.05" in said
    assert "points of top-1 among the data's classes, 95 % interval −5.0 to 0.0" in said


def test_a_difference_that_may_be_none_is_said_to_be_none(contents, evaluated, distilled, better):
    unclear = replace(better, interval=(-50.0, 5.0))
    assert "No difference is shown" in words(
        summary(contents(evaluated(), distilled, comparisons=[unclear]))
    )


def test_images_that_could_not_be_read_are_named_and_none_are_not_mentioned(
    contents, evaluated, animals
):
    broken = replace(animals, unreadable=[("val/dog/x.jpg", "it is cut off")])
    said = words(summary(contents(evaluated(data=broken))))
    assert (
        "1 image of animals could not be read and is left out val/dog/x.jpg : it is cut off" in said
    )
    assert "could not be read" not in words(summary(contents(evaluated())))


def test_of_thousands_that_could_not_be_read_a_part_is_named_and_the_rest_counted(
    contents, evaluated, animals
):
    broken = replace(animals, unreadable=[(f"{n}.jpg", "empty") for n in range(1200)])
    said = words(summary(contents(evaluated(data=broken))))
    assert "1,200 images" in said
    assert "and 1,000 more" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (100.0, "100.0 %"),
        (99.998, "99.99 %"),
        (99.96, "99.96 %"),
        (0.0, "0.0 %"),
        (0.001, "0.01 %"),
        (77.5, "77.5 %"),
    ],
)
def test_nearly_all_is_not_rounded_to_all(value, said):
    assert percent(value) == said


def test_names_cannot_become_markup(contents, evaluated):
    html = summary(
        contents(evaluated(name="<img src=x onerror=alert(1)>"), facts=(("<b>", "<i>"),))
    )
    assert "<img" not in html
    assert "<b>" not in html
    assert "<i>" not in html
