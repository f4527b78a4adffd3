"""The figures as PNG: which are drawn, and that what they show is in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deitctl.report.contents import OUTSIDE, Example
from deitctl.report.drawings import (
    draw_class_bars,
    draw_comparison,
    draw_confusion_matrix,
    draw_gallery,
    draw_reliability,
    to_plain_text,
)
from deitctl.report.figures import draw_figures


def texts(axes) -> list[str]:
    return [t.get_text() for t in axes.texts]


def test_every_figure_of_a_distilled_run_is_written(contents, distilled, curves, tmp_path):
    paths = draw_figures(contents(distilled, curves=curves), tmp_path / "figures")
    names = [
        "confusion",
        "per_class",
        "reliability",
        "mistakes",
        "unsure",
        "disagreements",
        "curves",
    ]
    assert [p.name for p in paths] == [f"{name}.png" for name in names]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 5, path  # something is drawn


def test_several_are_numbered_and_set_side_by_side(contents, evaluated, distilled, tmp_path):
    plain = [evaluated(name=name, galleries={}) for name in ("one", "other")]
    paths = draw_figures(contents(*plain), tmp_path)
    kinds = ("confusion", "per_class", "reliability")
    assert [p.stem for p in paths] == [
        "comparison",
        *(f"{kind}-{n}" for n in (1, 2) for kind in kinds),
    ]


def test_a_gallery_without_images_is_not_drawn(contents, evaluated, tmp_path):
    perfect = evaluated(galleries={})
    assert [p.stem for p in draw_figures(contents(perfect), tmp_path)] == [
        "confusion",
        "per_class",
        "reliability",
    ]


def test_the_matrix_has_the_number_of_each_pair_in_its_place(evaluated):
    (axes,) = draw_confusion_matrix(evaluated()).axes
    placed = {t.get_position(): t.get_text() for t in axes.texts}
    assert placed == {(0, 0): "2", (1, 0): "1", (0, 1): "1", (1, 1): "1", (3, 1): "1", (2, 2): "2"}
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "cat",
        "dog",
        "owl",
        "not in the data",
    ]


def test_a_matrix_of_many_classes_is_dots_and_a_list_of_the_confusions(evaluated):
    labels = np.arange(1000)
    section = evaluated(
        classes=[f"class {n}" for n in labels],
        labels=labels,
        preds=np.where(labels == 7, 9, labels),
        confidences=np.full(1000, 0.8),
        galleries={},
    )
    dots, confusions = draw_confusion_matrix(section).axes
    assert dots.collections[0].get_offsets().tolist() == [[9, 7]]  # the one mistake
    assert len(dots.collections[1].get_offsets()) == 999
    assert texts(confusions) == ["1", "class 7 predicted as class 9"]


def test_the_bars_are_the_recalls_the_lowest_on_top(evaluated):
    (axes,) = draw_class_bars(evaluated()).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["dog (3)", "cat (3)", "owl (2)"]
    assert [p.get_width() for p in axes.patches] == pytest.approx([100 / 3, 200 / 3, 100])
    assert list(axes.lines[0].get_xdata()) == pytest.approx([50, 200 / 3, 100])


def test_a_class_without_images_and_without_predictions_is_drawn_without_a_warning(evaluated):
    section = evaluated(classes=("cat", "dog", "owl", "yak"), galleries={})
    (axes,) = draw_class_bars(section).axes
    assert axes.get_yticklabels()[-1].get_text() == "yak (0)"


def test_the_reliability_diagram_of_the_fitted_temperature_stands_beside_the_models(distilled):
    model, fitted, counts, _ = draw_reliability(distilled).axes
    tops = {round(p.get_x()): p.get_y() + p.get_height() for p in model.patches if p.get_height()}
    assert set(tops) == {50, 75}
    assert [t.get_text() for t in counts.texts] == ["4", "4"]
    assert fitted.get_title() == "0.062 with fitted temperature 1.5"


def test_the_gallery_shows_each_image_above_its_maps(evaluated):
    axes = draw_gallery(evaluated(), "mistakes").axes
    shown = [a for a in axes if a.images]
    assert len(shown) == 9  # three mistakes, two maps each
    assert axes[0].get_title() == "labeled dog\nfox, 95 %\ndog, 10 %"
    assert axes[3].get_title() == "class token"


def test_a_map_that_is_not_opaque_lies_on_its_image(evaluated):
    def png(mode, color):
        file = io.BytesIO()
        Image.new(mode, (8, 8), color).save(file, "PNG")
        return file.getvalue()

    example = Example(
        index=0,
        guesses=[("cat", 0.9)],
        thumbnail=png("RGB", "white"),
        maps={"class token": png("RGBA", (0, 0, 255, 0))},
        heads={},
    )
    _, below = draw_gallery(evaluated(galleries={"mistakes": [example]}), "mistakes").axes
    assert below.images[0].get_array()[0, 0].tolist() == [255, 255, 255, 255]


def test_models_side_by_side_have_their_intervals_and_heads(evaluated, distilled):
    (axes,) = draw_comparison([evaluated(), distilled]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["deit_tiny", "distilled"]
    assert sorted(axes.get_legend_handles_labels()[1]) == ["class head", "distillation head"]


def test_a_name_is_drawn_as_it_is_and_not_as_a_formula(evaluated):
    section = evaluated(
        data=r"$\frac{1",
        classes=("$x^2$", "a_b", "\n\x00"),
        name="$",
        preds=[OUTSIDE] * 8,
        galleries={},
    )
    figure = draw_confusion_matrix(section)
    figure.savefig(io.BytesIO())
    assert to_plain_text("a" * 50) == "a" * 27 + "…"
