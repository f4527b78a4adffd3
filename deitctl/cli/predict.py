"""deitctl predict"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, escape_control, json_text, pause_gc, print_records
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.errors import ConfigError
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.events import Reporter
    from deitctl.inference.classifier import Prediction

FORMATS = ("table", "json", "jsonl", "csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that a spreadsheet takes for a formula."""


def predict(
    images: o.ImagesArg,
    model: Annotated[
        str,
        o.option(
            "--model",
            help=f"{MODEL_HELP} Or an exported ONNX file.",
            default="",
            complete=completion.complete_model,
        ),
    ] = "",
    weights: o.WeightsOpt = "",
    topk: Annotated[int, o.option("--topk", "-k", help="Classes in each prediction.", min=1)] = 5,
    head: o.HeadOpt = "auto",
    batch_size: Annotated[
        int | None,
        o.option("--batch-size", help="Images at a time.", default="16, from stdin 1", min=1),
    ] = None,
    img_size: o.ImgSizeOpt = 0,
    show_image: Annotated[
        bool | None,
        o.option(
            "--show-image/--no-show-image",
            help="Show images in the terminal, as the model sees them.",
            default="for one file or address",
            panel=o.OUTPUT,
        ),
    ] = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: Annotated[
        str | None,
        o.option(
            "--format",
            help="table, json, jsonl or csv.",
            default="table on a terminal, else jsonl",
            panel=o.OUTPUT,
            complete=completion.complete_values(*FORMATS),
        ),
    ] = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Classify images.

    Example: deitctl predict cat.jpg --topk 5
    """
    shape, reporter = choose_format(output_format, FORMATS, "jsonl"), make_reporter(quiet)
    if show_image and shape != "table":
        raise ConfigError(f"--show-image goes with a table, not with {shape}.")
    keep_pixels = shape == "table" and _can_show_images(show_image, images, reporter)
    with pause_gc():
        predictions = deitctl.predict(
            images,
            model=model,
            weights=weights,
            topk=topk,
            head=head,
            batch_size=batch_size or (1 if "-" in images else 16),
            img_size=img_size,
            device=device,
            precision=precision,
            stdin=sys.stdin,
            keep_pixels=keep_pixels,
            reporter=reporter,
        )
    printers = {
        "table": _print_table,
        "json": _print_json,
        "jsonl": print_records,
        "csv": _print_csv,
    }
    if printers[shape](predictions):
        raise typer.Exit(3)


def _can_show_images(show_image: bool | None, images: list[str], reporter: Reporter) -> bool:
    """Return whether the table has images: as requested, else for a single one, and where the terminal has colors."""
    from deitctl.cli.prediction_table import can_show, make_stdout_console
    from deitctl.inference.inputs import STDIN, is_folder

    is_single = len(images) == 1 and images[0] != STDIN and not is_folder(images[0])
    if not (is_single if show_image is None else show_image):
        return False
    has_colors = can_show(make_stdout_console())
    if show_image and not has_colors:
        reporter.warn("Images need a terminal with 256 colors or more, which this is not.")
    return has_colors


def _print_json(predictions: Iterable[Prediction]) -> int:
    num_failed, separator = 0, "[\n"
    for prediction in predictions:
        num_failed += prediction.error is not None
        sys.stdout.write(separator + json_text(to_object(prediction)))
        sys.stdout.flush()
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
    return num_failed


def _print_csv(predictions: Iterable[Prediction]) -> int:
    num_failed = 0
    # exact in a file; a terminal would obey control characters
    clean = escape_control if sys.stdout.isatty() else str
    sys.stdout.write("input,rank,index,label,score,error\n")
    for prediction in predictions:
        num_failed += prediction.error is not None
        name = quote_cell(clean(prediction.input))
        for rank, scored in enumerate(prediction.predictions, start=1):
            sys.stdout.write(
                f"{name},{rank},{scored.index},{quote_cell(clean(scored.label))},{scored.score:.6f},\n"
            )
        if prediction.error is not None:
            sys.stdout.write(f"{name},,,,,{quote_cell(clean(prediction.error))}\n")
        sys.stdout.flush()
    return num_failed


def quote_cell(text: str) -> str:
    """Return a text for a table that a spreadsheet may open: an apostrophe keeps it from being taken for a formula.

    Numbers of our own are written as they are; a class or file called `-5` becomes `'-5`. Every end of a line is
    quoted: Python's own writer leaves carriage returns bare, and a reader then finds another row.
    """
    text = f"'{text}" if text.startswith(FORMULA) else text
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(c in text for c in ',"\r\n') else text


def _print_table(predictions: Iterable[Prediction]) -> int:
    from deitctl.cli.prediction_table import make_stdout_console, print_prediction

    num_failed, console = 0, make_stdout_console()
    for prediction in predictions:
        num_failed += prediction.error is not None
        print_prediction(prediction, console)
    return num_failed
