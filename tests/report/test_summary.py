"""The summary says the figures in words, and needs no JavaScript."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from deitctl.evaluation.intervals import Interval
from deitctl.report.summary import format_percent, render_summary


def read_text(html: str) -> str:
    """The text of a piece of HTML, as it is read."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html))).strip()


def test_top1_of_one_model_stands_in_a_line_with_its_interval(contents, evaluated):
    assert "62.5 % top-1, 95 % interval 25.0 to 87.5, 8 images" in read_text(
        render_summary(contents(evaluated()))
    )


def test_a_model_of_five_classes_or_fewer_has_no_top_5(contents, evaluated):
    few, many = evaluated(top5=None, top5_interval=None), evaluated()
    assert "top-5" not in read_text(render_summary(contents(few)))
    assert "top-5" not in read_text(render_summary(contents(few, few)))
    assert "top-5 accuracy 100.0 % 95 %: 70.0 to 100.0" in read_text(render_summary(contents(many)))
    assert "top-5" in read_text(render_summary(contents(few, many)))


def test_the_split_and_training_images_among_the_images_are_named(contents, evaluated):
    held_out = read_text(render_summary(contents(evaluated(split="val", num_train_images=0))))
    assert "8 images of animals (val, held out of training)" in held_out
    assert "say nothing" not in held_out
    trained_on = read_text(render_summary(contents(evaluated(split="all", num_train_images=6))))
    assert "8 images of animals (all, 6 of them trained on)" in trained_on
    assert "6 of the 8 images are training images of deit_tiny" in trained_on


def test_each_head_has_a_row_and_a_plain_model_none(contents, evaluated, distilled):
    assert "distillation head 62.5 %" in read_text(render_summary(contents(distilled)))
    assert "head" not in read_text(render_summary(contents(evaluated())))


def test_each_head_has_its_interval(contents, distilled):
    assert "class head 75.0 % 50.0 to 90.0" in read_text(render_summary(contents(distilled)))


def test_calibration_and_the_datas_own_classes_are_reported_where_they_are_available(
    contents, distilled
):
    text = read_text(render_summary(contents(distilled)))
    assert "calibration error with fitted temperature 1.5 0.062" in text
    assert "top-1 among the data's 3 classes only 100.0 %" in text


def test_several_stand_in_a_table_and_the_best_is_marked(contents, evaluated, distilled):
    html = render_summary(contents(evaluated(), distilled))
    assert "<strong>87.5 %</strong>" in html
    assert "<strong>62.5 %</strong>" not in html


def test_a_comparison_is_listed_in_the_order_of_every_other_output(
    contents, evaluated, distilled, better
):
    text = read_text(render_summary(contents(evaluated(), distilled, comparisons=[better])))
    assert "deit_tiny minus distilled : −25.0 points of top-1, 95 % interval −50.0 to −5.0" in text
    assert (
        "Only deit_tiny correct: 0; only distilled correct: 2 (McNemar's exact test: p = 0.5)."
        in text
    )
    assert "Not significant" not in text


def test_names_in_a_comparison_stay_as_they_are_and_its_kind_is_reported(
    contents, evaluated, distilled, better
):
    odd = replace(
        better, a="run -3e", b="x+0.05", interval=Interval(-5.0, 0.01), among_classes=True
    )
    text = read_text(render_summary(contents(evaluated(), distilled, comparisons=[odd])))
    assert "run -3e minus x+0.05" in text
    assert "points of top-1 among the data's classes, 95 % interval −5.0 to 0.0" in text


def test_a_difference_that_may_be_none_is_reported_to_be_none(
    contents, evaluated, distilled, better
):
    unclear = replace(better, interval=Interval(-50.0, 5.0))
    assert "Not significant" in read_text(
        render_summary(contents(evaluated(), distilled, comparisons=[unclear]))
    )


def test_images_that_could_not_be_read_are_named_and_none_are_not_mentioned(contents, evaluated):
    broken = evaluated(read_errors=[("val/dog/x.jpg", "it is cut off")])
    text = read_text(render_summary(contents(broken)))
    assert (
        "1 image of animals could not be read and is left out val/dog/x.jpg : it is cut off" in text
    )
    assert "could not be read" not in read_text(render_summary(contents(evaluated())))


def test_of_thousands_that_could_not_be_read_a_part_is_named_and_the_rest_counted(
    contents, evaluated
):
    broken = evaluated(read_errors=[(f"{n}.jpg", "empty") for n in range(1200)])
    text = read_text(render_summary(contents(broken)))
    assert "1,200 images" in text
    assert "and 1,000 more" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (100.0, "100.0 %"),
        (99.998, "99.99 %"),
        (99.96, "99.96 %"),
        (0.0, "0.0 %"),
        (0.001, "0.01 %"),
        (77.5, "77.5 %"),
    ],
)
def test_nearly_all_is_not_rounded_to_all(value, text):
    assert format_percent(value) == text


def test_names_cannot_become_markup(contents, evaluated):
    html = render_summary(
        contents(evaluated(name="<img src=x onerror=alert(1)>"), facts=(("<b>", "<i>"),))
    )
    assert "<img" not in html
    assert "<b>" not in html
    assert "<i>" not in html
