"""A prediction on a terminal: the image where the terminal can show it, scores as bars, names of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from deitctl.cli.console import escape_control
from deitctl.inference.classifier import Prediction, ScoredClass, ScoredLabel
from deitctl.models.tasks import choose_labels

if TYPE_CHECKING:
    from deitctl.data.eval_transform import Pixels

BAR_WIDTH = 20
"""Characters of a score of 1, where there is room."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
HALF_BLOCK = "▀"
IMAGE_WIDTH = 32
"""Characters of an image's width."""
NUMBER_WIDTH = 10
"""Characters of `   86.4 % `."""
LABEL_WIDTH = 16
"""Characters that a name should have in a line; it gets half as many at least."""


def make_stdout_console() -> Console:
    """Return the console for predictions."""
    return Console(highlight=False)


def list_printed(prediction: Prediction, only_labels: bool) -> tuple[ScoredClass, ...]:
    """Return the classes to print: of several labels those that are predicted, or the likeliest."""
    return (prediction.labels or ()) if only_labels else prediction.predictions


def print_prediction(
    prediction: Prediction, console: Console, *, only_labels: bool = False
) -> None:
    """Print one input: its name, its image if the prediction has one, and its classes or why there are none.

    The image is beside the classes where the terminal has the width for both, else above them.
    """
    console.print(Text(escape_control(prediction.input), style="bold"), soft_wrap=True)
    image = []
    if prediction.pixels is not None and can_show(console):
        image = to_half_blocks(prediction.pixels, min(IMAGE_WIDTH, console.width - 2))
    beside = (
        bool(image)
        and console.width >= IMAGE_WIDTH + 2 + NUMBER_WIDTH + BAR_WIDTH // 2 + LABEL_WIDTH
    )
    width = console.width - (IMAGE_WIDTH + 2 if beside else 0)
    classes = list_printed(prediction, only_labels)
    lines = [line for scored in classes for line in _format_class(scored, width, console)]
    if not classes and prediction.labels is not None:
        lines = _describe_no_label(prediction, width, console)
    if prediction.error is not None:
        why = prediction.error.removeprefix(prediction.input).lstrip(": ")  # the name stands above
        lines = [Text.assemble("  ", (escape_control(why), "red"))]
    if not beside:
        lines = [Text.assemble("  ", row) for row in image] + lines
        image = []
    for n in range(max(len(lines), len(image))):
        left = (
            Text.assemble("  ", image[n] if n < len(image) else " " * IMAGE_WIDTH)
            if beside
            else Text()
        )
        console.print(Text.assemble(left, lines[n] if n < len(lines) else ""), soft_wrap=True)


def _format_class(scored: ScoredClass, width: int, console: Console) -> list[Text]:
    """Return a class as lines of at most `width` characters; where nobody sees the width, as one line."""
    number = f"  {100 * scored.score:5.1f} % "
    if isinstance(scored, ScoredLabel):
        number += f"{_compare(scored, console)} {100 * scored.threshold:5.1f} % "
    room = max(4, min(BAR_WIDTH, width - len(number) - 1 - LABEL_WIDTH))
    label = Text(escape_control(scored.label))
    parts = [label]
    if console.is_terminal:
        parts = list(
            label.wrap(
                console, max(LABEL_WIDTH // 2, width - len(number) - room - 1), overflow="fold"
            )
        )
    first = Text.assemble(
        number,
        (draw_bar(scored.score, room, console), "cyan"),
        " ",
        parts[0],
    )
    return [first, *(Text.assemble(" " * (len(number) + room + 1), part) for part in parts[1:])]


def _compare(scored: ScoredLabel, console: Console) -> str:
    """Return how a probability compares with its threshold."""
    if not choose_labels(np.array([scored.score], np.float32), (scored.threshold,)).all():
        return "<"
    return ">" if console.options.ascii_only else "≥"


def _describe_no_label(prediction: Prediction, width: int, console: Console) -> list[Text]:
    """Say that no class reaches its threshold, and which is the likeliest."""
    first = Text("  No class reaches its threshold; the likeliest is", style="dim")
    wrapped = first.wrap(console, width) if console.is_terminal else [first]
    return [*wrapped, *_format_class(prediction.predictions[0], width, console)]


def draw_bar(score: float, width: int, console: Console) -> str:
    """Return a score, 0..1, as a bar of `width` characters in steps of an eighth of one."""
    if console.options.ascii_only:
        return ("#" * round(score * width)).ljust(width)
    full, rest = divmod(round(score * width * 8), 8)
    return ("█" * full + EIGHTHS[rest].strip()).ljust(width)


def can_show(console: Console) -> bool:
    """Return whether a console is a terminal with enough colors for an image, which NO_COLOR does not forbid."""
    plain = console.no_color or console.is_dumb_terminal or console.options.ascii_only
    return console.is_terminal and not plain and console.color_system in ("256", "truecolor")


def to_half_blocks(pixels: Pixels, width: int) -> list[Text]:
    """Return an image, uint8 [C,H,W], as lines of `width` characters; two rows of pixels are a line."""
    width -= width % 2
    lines = max(1, round(width * pixels.shape[1] / pixels.shape[2] / 2))
    colors = np.resize(pixels, (3, *pixels.shape[1:])).transpose(
        1, 2, 0
    )  # gray is three times the same
    small = Image.fromarray(np.ascontiguousarray(colors)).resize((width, 2 * lines))
    rows = np.asarray(small).reshape(lines, 2, width, 3).tolist()
    return [Text.assemble(*map(_join_pixels, top, bottom)) for top, bottom in rows]


def _join_pixels(upper: list[int], lower: list[int]) -> tuple[str, Style]:
    return HALF_BLOCK, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
