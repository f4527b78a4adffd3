"""Maps over images: bright where they are high, in the right place, and readable at any size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deitctl.explanation.overlay import TokenView, cut, difference, heat, moved, panel_side, panels

GRAY = np.full((3, 32, 32), 128, np.uint8)
TOP_RIGHT = np.array([[0.0, 1.0], [0.0, 0.0]])
LEFT = np.array([[1.0, 0.0], [1.0, 0.0]])


def corner(image: Image.Image, row: int, column: int) -> np.ndarray:
    side = image.width - 1
    return np.asarray(image, dtype=float)[row * side, column * side]


def test_a_map_is_brightest_where_it_is_highest() -> None:
    image = heat(GRAY, TOP_RIGHT)
    corners = {(r, c): corner(image, r, c).sum() for r in (0, 1) for c in (0, 1)}
    assert max(corners, key=corners.get) == (0, 1)
    assert corners[0, 0] == corners[1, 0] == corners[1, 1]


def test_a_map_of_nothing_and_one_patch_can_be_drawn() -> None:
    assert np.ptp(np.asarray(heat(GRAY, np.zeros((2, 2))))) < 100
    assert heat(GRAY, np.ones((1, 1))).size == (224, 224)


def test_the_scale_does_not_matter() -> None:
    assert heat(GRAY, TOP_RIGHT) == heat(GRAY, TOP_RIGHT * 1e-6)


def test_what_all_patches_have_alike_does_not_matter() -> None:
    """A rollout gives something to every patch, which would tint the whole image."""
    assert heat(GRAY, TOP_RIGHT) == heat(GRAY, TOP_RIGHT + 3)
    assert heat(GRAY, np.full((2, 2), 0.5)) == heat(GRAY, np.zeros((2, 2)))


def test_the_difference_is_red_where_the_distillation_token_looks_more_and_blue_where_less() -> (
    None
):
    image = difference(GRAY, LEFT, TOP_RIGHT)
    red, _, blue = corner(image, 0, 1)
    assert red > blue
    red, _, blue = corner(image, 0, 0)
    assert blue > red
    same = np.asarray(difference(GRAY, LEFT, 7 * LEFT), dtype=int)
    assert (
        np.ptp(same[..., 0] - same[..., 2]) == 0
    )  # maps of another scale but one shape do not differ


def test_moved_is_the_share_of_the_weight_that_lies_elsewhere() -> None:
    assert moved(LEFT, LEFT * 3) == 0
    assert moved(LEFT, TOP_RIGHT) == pytest.approx(1)
    assert moved(LEFT, np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("input_side", "side"), [(16, 224), (32, 224), (96, 288), (224, 224), (384, 384), (2048, 512)]
)
def test_small_inputs_are_enlarged_by_whole_numbers_and_large_ones_held_back(
    input_side: int, side: int
) -> None:
    assert panel_side(input_side) == side
    assert heat(np.zeros((3, input_side, input_side), np.uint8), TOP_RIGHT).size == (side, side)


def test_one_token_has_two_panels_and_two_have_a_difference_too() -> None:
    one = panels(GRAY, [TokenView("class token", "7 90 %", LEFT)], name="a.png", note="rollout")
    two = panels(
        GRAY,
        [TokenView(t, "7 90 %", LEFT) for t in ("class token", "distillation token")],
        name="",
        note="",
    )
    assert two.width - one.width == one.width - 8
    assert one.height == two.height


def test_every_attention_head_has_its_place() -> None:
    """Twelve heads below two panels are three rows of four; the eighth, alone in looking anywhere, ends the second."""
    heads = np.zeros((12, 2, 2))
    heads[7] = TOP_RIGHT
    token = TokenView("class token", "7", LEFT, heads=heads)
    without = panels(GRAY, [token._replace(heads=None)], name="", note="")
    sheet = panels(GRAY, [token], name="", note="")
    assert sheet.width == without.width
    below = np.asarray(sheet.crop((0, without.height, sheet.width, sheet.height)), dtype=int)
    y, x = np.argwhere(below[..., 0] - below[..., 2] > 60).mean(axis=0)  # where it is yellow
    assert 1 / 3 < y / len(below) < 2 / 3
    assert x / sheet.width > 3 / 4


def test_long_names_are_cut_and_what_would_not_print_is_not_drawn() -> None:
    assert cut("tench", 200) == "tench"
    short = cut("a name that goes on and on and on and on", 100)
    assert short.endswith("…")
    assert short[:6] == "a name"
    assert cut("two\nlines\x1b[31m", 400) == "two?lines?[31m"
    assert cut("anything", 1) == "…"


def test_maps_that_are_alike_have_a_difference_without_color(pixels):
    seen, a = pixels(0), np.linspace(0.5, 1, 16).reshape(4, 4)
    gray = np.asarray(difference(seen, a, 3 * a)).astype(int)  # the same map in another unit
    nearly = np.asarray(difference(seen, a, a + 1e-4 * np.eye(4))).astype(int)
    turned = np.asarray(difference(seen, np.eye(4), np.eye(4)[::-1])).astype(int)
    assert np.abs(nearly - gray).max() <= 3
    assert np.abs(turned - gray).max() > 30
