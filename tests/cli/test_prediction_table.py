"""What a person sees: bars in eighths, names folded where they end, the image where the terminal has colors."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from rich.console import Console

from deitctl.cli.predict import _print_csv
from deitctl.cli.prediction_table import (
    BAR_WIDTH,
    HALF_BLOCK,
    IMAGE_WIDTH,
    can_show,
    draw_bar,
    print_prediction,
    to_half_blocks,
)
from deitctl.data.eval_transform import Pixels
from deitctl.inference.classifier import Prediction, ScoredClass, ScoredLabel

LONG = "black and gold garden spider, Argiope aurantia, of the family of the orb-weaving spiders"


def terminal(width: int = 80, colors: str = "truecolor", **options: object) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        color_system=colors,
        highlight=False,
        legacy_windows=False,
        **options,
    )


def printed(console: Console, prediction: Prediction, **options: bool) -> list[str]:
    print_prediction(prediction, console, **options)
    text = console.file.getvalue()
    return re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()


@pytest.fixture
def quarters() -> Pixels:
    """Red, green, blue and white quarters, 64 x 64."""
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[0, :32, :32] = pixels[1, :32, 32:] = pixels[2, 32:, :32] = 255
    pixels[:, 32:, 32:] = 255
    return pixels


def guesses(*scores: float, label: str = "cat") -> tuple[ScoredClass, ...]:
    return tuple(ScoredClass(n, label, score) for n, score in enumerate(scores))


@pytest.mark.parametrize(
    ("score", "drawn"),
    [
        (0.0, ""),
        (1.0, "█" * 10),
        (0.5, "█████"),
        (0.55, "█████▌"),
        (1 / 80, "▏"),
        (0.0001, ""),
        (0.9999, "█" * 10),
    ],
)
def test_a_bar_has_steps_of_an_eighth(score, drawn):
    assert draw_bar(score, 10, terminal()) == drawn.ljust(10)


def test_bars_are_in_proportion_and_never_longer_than_their_room():
    bars = [draw_bar(s / 100, 20, terminal()) for s in range(101)]
    lengths = [8 * b.count("█") + " ▏▎▍▌▋▊▉".index((b.replace("█", "") + " ")[0]) for b in bars]
    assert {len(b) for b in bars} == {20}
    assert lengths == [round(s / 100 * 160) for s in range(101)]


def test_a_terminal_without_block_characters_gets_ascii():
    console = Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), force_terminal=True, width=80
    )
    assert draw_bar(0.5, 10, console) == "#####     "
    assert not can_show(console)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_letter_is_lost(width, quarters):
    prediction = Prediction("p.jpg", guesses(1.0, 0.001, label=LONG), None, quarters)
    lines = printed(terminal(width), prediction)
    assert all(len(line) <= width for line in lines)
    letters = re.sub("[^a-zA-Z,-]", "", "".join(lines))
    assert letters.count(re.sub("[^a-zA-Z,-]", "", LONG)) == 2


def test_what_is_no_terminal_gets_one_line_a_class():
    console = Console(file=io.StringIO(), width=40)
    lines = printed(console, Prediction("p.jpg", guesses(0.5, 0.25, label=LONG), None))
    assert len(lines) == 3
    assert all(line.endswith(LONG) for line in lines[1:])


def test_the_image_is_beside_the_classes_or_above_them_where_it_is_narrow(quarters):
    prediction = Prediction("p.jpg", guesses(0.9, 0.1), None, quarters)
    wide, narrow = printed(terminal(80), prediction), printed(terminal(40), prediction)
    assert len(wide) == 1 + IMAGE_WIDTH // 2
    assert wide[1].startswith("  " + HALF_BLOCK * IMAGE_WIDTH + "   90.0 % " + "█" * 17 + "▏")
    assert wide[1].rstrip().endswith("cat")
    assert len(narrow) == 1 + IMAGE_WIDTH // 2 + 2
    assert narrow[1].strip() == HALF_BLOCK * IMAGE_WIDTH
    assert "90.0 %" in narrow[-2]


def test_more_classes_than_the_image_is_high_go_on_below_it(quarters):
    lines = printed(terminal(80), Prediction("p.jpg", guesses(*[0.05] * 20), None, quarters))
    assert len(lines) == 21
    assert lines[-1].startswith(" " * (IMAGE_WIDTH + 2))
    assert all("5.0 %" in line for line in lines[1:])


def test_two_pixels_a_character_with_the_colors_of_the_image(quarters):
    lines = to_half_blocks(quarters, 4)
    assert [line.plain for line in lines] == [HALF_BLOCK * 4] * 2
    first, last = ([span.style for span in line.spans] for line in lines)
    red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

    def colors(styles: list[object]) -> list[tuple[int, ...]]:
        return [tuple(c.triplet) for s in styles for c in (s.color, s.bgcolor)]

    def near(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> bool:
        # resizing rings at the edges
        return bool(np.abs(np.array(found) - np.array(wanted)).max() <= 40)

    assert near(colors(first), [red] * 4 + [green] * 4)
    assert near(colors(last), [blue] * 4 + [white] * 4)


@pytest.mark.parametrize(
    ("colors", "red", "said"),
    [
        ("truecolor", 251, "\x1b[38;2;251;0;0;48;2;251;0;0m"),
        ("256", 252, "\x1b[38;5;196;48;5;196m"),
    ],
)
def test_colors_reach_the_terminal_as_they_are_or_as_the_nearest_of_256(colors, red, said):
    console = terminal(80, colors)
    pixels = np.zeros((3, 8, 8), np.uint8)
    pixels[0] = red  # two reds, because Rich remembers how it wrote a style
    print_prediction(Prediction("p.jpg", guesses(0.9), None, pixels), console)
    assert said in console.file.getvalue()


@pytest.mark.parametrize(
    ("console", "able"),
    [
        (terminal(), True),
        (terminal(colors="256"), True),
        (terminal(colors="standard"), False),
        (terminal(no_color=True), False),
        (terminal(_environ={"TERM": "dumb"}), False),
        (terminal(_environ={"NO_COLOR": "1"}), False),
        (Console(file=io.StringIO()), False),
    ],
    ids=["truecolor", "256", "16", "no color", "dumb", "NO_COLOR", "pipe"],
)
def test_only_a_terminal_with_colors_shows_an_image(console, able, quarters):
    assert can_show(console) is able
    lines = printed(console, Prediction("p.jpg", guesses(0.9), None, quarters))
    assert any(HALF_BLOCK in line for line in lines) is able


def test_a_name_is_named_once_where_it_cannot_be_read():
    lines = printed(
        terminal(),
        Prediction("/a/b.jpg", (), "/a/b.jpg cannot be read: No such file or directory."),
    )
    assert [line.strip() for line in lines] == [
        "/a/b.jpg",
        "cannot be read: No such file or directory.",
    ]
    lines = printed(
        terminal(),
        Prediction("x.jpg", (), "x.jpg: the model's scores are not numbers."),
    )
    assert lines[1].strip() == "the model's scores are not numbers."


def test_markup_in_a_label_is_text():
    lines = printed(terminal(), Prediction("[b]x[/b]", guesses(0.5, label="[red]cat[/red]"), None))
    assert lines[0] == "[b]x[/b]"
    assert lines[1].endswith("[red]cat[/red]")
    assert BAR_WIDTH == 20


def several(*scores: float) -> Prediction:
    """An image under a multi-label model whose thresholds are one half."""
    classes = tuple(
        ScoredLabel(n, LONG if n else "cat", score, 0.5) for n, score in enumerate(scores)
    )
    return Prediction("p.jpg", classes, None, labels=tuple(c for c in classes if c.score >= 0.5))


@pytest.mark.parametrize("width", [30, 80, 120])
def test_of_several_labels_those_that_are_predicted_are_printed_beside_their_threshold(width):
    lines = printed(terminal(width), several(0.9, 0.5, 0.25), only_labels=True)
    assert lines[1].startswith("   90.0 % ≥  50.0 % ")
    assert sum("%" in line for line in lines) == 2
    assert all(len(line) <= max(width, 34) for line in lines)
    likeliest = printed(terminal(width), several(0.9, 0.5, 0.25))
    assert "   25.0 % <  50.0 % " in "\n".join(likeliest)


def test_an_image_with_no_label_says_so_and_names_the_likeliest_class():
    lines = printed(terminal(), several(0.3, 0.2), only_labels=True)
    assert lines[1] == "  No class reaches its threshold; the likeliest is"
    assert lines[2].split() == ["30.0", "%", "<", "50.0", "%", "██████", "cat"]
    assert len(lines) == 3


def test_csv_of_several_labels_has_their_thresholds_and_a_row_for_an_image_without(capsys):
    rows = [several(0.9, 0.6, 0.1), several(0.3), Prediction("gone.jpg", (), "gone")]
    assert _print_csv(rows, is_multilabel=True, only_labels=True) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "input,rank,index,label,score,threshold,error"
    assert lines[1] == "p.jpg,1,0,cat,0.900000,0.500000,"
    assert lines[3:] == ["p.jpg,,,,,,", "gone.jpg,,,,,,gone"]
    assert {len(row) for row in csv.reader(lines)} == {7}
