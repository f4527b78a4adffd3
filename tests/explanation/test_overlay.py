"""Maps over images: bright where they are high, in the right place, and readable at any size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deitctl.explanation.overlay import (
    TokenPanel,
    choose_panel_side,
    compute_total_variation,
    draw_difference,
    draw_heatmap,
    draw_panels,
    truncate,
)

GRAY = np.full((3, 32, 32), 128, np.uint8)
TOP_RIGHT = np.array([[0.0, 1.0], [0.0, 0.0]])
LEFT = np.array([[1.0, 0.0], [1.0, 0.0]])


def corner(image: Image.Image, row: int, column: int) -> np.ndarray:
    side = image.width - 1
    return np.asarray(image, dtype=float)[row * side, column * side]


def test_a_map_is_brightest_where_it_is_highest() -> None:
    image = draw_heatmap(GRAY, TOP_RIGHT)
    corners = {(r, c): corner(image, r, c).sum() for r in (0, 1) for c in (0, 1)}
    assert max(corners, key=corners.get) == (0, 1)
    assert corners[0, 0] == corners[1, 0] == corners[1, 1]


def test_a_map_of_nothing_and_one_patch_can_be_drawn() -> None:
    assert np.ptp(np.asarray(draw_heatmap(GRAY, np.zeros((2, 2))))) < 100
    assert draw_heatmap(GRAY, np.ones((1, 1))).size == (224, 224)


def test_the_scale_does_not_matter() -> None:
    assert draw_heatmap(GRAY, TOP_RIGHT) == draw_heatmap(GRAY, TOP_RIGHT * 1e-6)


def test_a_constant_offset_of_a_map_changes_nothing() -> None:
    """A rollout gives something to every patch, which would tint the whole image."""
    assert draw_heatmap(GRAY, TOP_RIGHT) == draw_heatmap(GRAY, TOP_RIGHT + 3)
    assert draw_heatmap(GRAY, np.full((2, 2), 0.5)) == draw_heatmap(GRAY, np.zeros((2, 2)))


def test_the_difference_is_red_where_the_distillation_token_looks_more_and_blue_where_less() -> (
    None
):
    image = draw_difference(GRAY, LEFT, TOP_RIGHT)
    red, _, blue = corner(image, 0, 1)
    assert red > blue
    red, _, blue = corner(image, 0, 0)
    assert blue > red
    same = np.asarray(draw_difference(GRAY, LEFT, 7 * LEFT), dtype=int)
    # maps of another scale but one shape do not differ
    assert np.ptp(same[..., 0] - same[..., 2]) == 0


def test_total_variation_is_the_fraction_of_weight_to_move() -> None:
    assert compute_total_variation(LEFT, LEFT * 3) == 0
    assert compute_total_variation(LEFT, TOP_RIGHT) == pytest.approx(1)
    assert compute_total_variation(LEFT, np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("input_side", "side"), [(16, 224), (32, 224), (96, 288), (224, 224), (384, 384), (2048, 512)]
)
def test_panel_sides_are_integer_multiples_of_small_inputs(input_side: int, side: int) -> None:
    assert choose_panel_side(input_side) == side
    assert draw_heatmap(np.zeros((3, input_side, input_side), np.uint8), TOP_RIGHT).size == (
        side,
        side,
    )


def test_one_token_has_two_panels_and_two_have_a_difference_too() -> None:
    one = draw_panels(
        GRAY, [TokenPanel("class token", "7 90 %", LEFT)], name="a.png", note="rollout"
    )
    two = draw_panels(
        GRAY,
        [TokenPanel(t, "7 90 %", LEFT) for t in ("class token", "distillation token")],
        name="",
        note="",
    )
    assert two.width - one.width == one.width - 8
    assert one.height == two.height


def test_every_attention_head_has_its_place() -> None:
    """Twelve heads below two panels are three rows of four; the eighth, alone in looking anywhere, ends the second."""
    heads = np.zeros((12, 2, 2))
    heads[7] = TOP_RIGHT
    token = TokenPanel("class token", "7", LEFT, head_maps=heads)
    without = draw_panels(GRAY, [token._replace(head_maps=None)], name="", note="")
    sheet = draw_panels(GRAY, [token], name="", note="")
    assert sheet.width == without.width
    below = np.asarray(sheet.crop((0, without.height, sheet.width, sheet.height)), dtype=int)
    y, x = np.argwhere(below[..., 0] - below[..., 2] > 60).mean(axis=0)  # where it is yellow
    assert 1 / 3 < y / len(below) < 2 / 3
    assert x / sheet.width > 3 / 4


def test_truncate_cuts_long_texts_and_replaces_control_characters() -> None:
    assert truncate("tench", 200) == "tench"
    short = truncate("a name that goes on and on and on and on", 100)
    assert short.endswith("…")
    assert short[:6] == "a name"
    assert truncate("two\nlines\x1b[31m", 400) == "two?lines?[31m"
    assert truncate("anything", 1) == "…"


def test_maps_that_are_alike_have_a_difference_without_color() -> None:
    a = np.linspace(0.5, 1, 16).reshape(4, 4)
    gray = np.asarray(draw_difference(GRAY, a, 3 * a)).astype(int)  # the same map in another unit
    nearly = np.asarray(draw_difference(GRAY, a, a + 1e-4 * np.eye(4))).astype(int)
    turned = np.asarray(draw_difference(GRAY, np.eye(4), np.eye(4)[::-1])).astype(int)
    assert np.abs(nearly - gray).max() <= 3
    assert np.abs(turned - gray).max() > 30
