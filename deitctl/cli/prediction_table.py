"""A prediction for a person: the image where the terminal can show it, scores as bars, names of any length."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from deitctl.cli.console import printable
from deitctl.cli.terminal_image import can_show, half_blocks
from deitctl.inference.predict import Guess, Prediction

BAR = 20
"""Characters of a score of 1, where there is room."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
IMAGE = 32
"""Characters of an image's width."""
NUMBER = 10
"""Characters of `   86.4 % `."""
LABEL = 16
"""Characters that a name should have in a line; it gets half as many at least."""


def terminal() -> Console:
    """Return the console for the answer: stdout, honoring NO_COLOR."""
    return Console(highlight=False)


def print_prediction(prediction: Prediction, console: Console) -> None:
    """Print one input: its name, its image if the prediction has one, and its classes or why there are none.

    The image is beside the classes where the terminal has the width for both, else above them.
    """
    console.print(Text(printable(prediction.input), style="bold"), soft_wrap=True)
    image = []
    if prediction.pixels is not None and can_show(console):
        image = half_blocks(prediction.pixels, min(IMAGE, console.width - 2))
    beside = bool(image) and console.width >= IMAGE + 2 + NUMBER + BAR // 2 + LABEL
    width = console.width - (IMAGE + 2 if beside else 0)
    lines = [line for guess in prediction.guesses for line in _guess(guess, width, console)]
    if prediction.error is not None:
        why = prediction.error.removeprefix(prediction.input).lstrip(": ")  # the name stands above
        lines = [Text.assemble("  ", (printable(why), "red"))]
    if not beside:
        lines = [Text.assemble("  ", row) for row in image] + lines
        image = []
    for n in range(max(len(lines), len(image))):
        left = (
            Text.assemble("  ", image[n] if n < len(image) else " " * IMAGE) if beside else Text()
        )
        console.print(Text.assemble(left, lines[n] if n < len(lines) else ""), soft_wrap=True)


def _guess(guess: Guess, width: int, console: Console) -> list[Text]:
    """Return a class as lines of at most `width` characters; where nobody sees the width, as one line."""
    room = max(4, min(BAR, width - NUMBER - 1 - LABEL))
    label = Text(printable(guess.label))
    parts = [label]
    if console.is_terminal:
        parts = list(
            label.wrap(console, max(LABEL // 2, width - NUMBER - room - 1), overflow="fold")
        )
    first = Text.assemble(
        f"  {100 * guess.score:5.1f} % ", (bar(guess.score, room, console), "cyan"), " ", parts[0]
    )
    return [first, *(Text.assemble(" " * (NUMBER + room + 1), part) for part in parts[1:])]


def bar(score: float, width: int, console: Console) -> str:
    """Return a score, 0..1, as a bar of `width` characters in steps of an eighth of one."""
    if console.options.ascii_only:
        return ("#" * round(score * width)).ljust(width)
    whole, rest = divmod(round(score * width * 8), 8)
    return ("█" * whole + EIGHTHS[rest].strip()).ljust(width)
