"""deitctl predict"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.events import Reporter
    from deitctl.inference.predict import Prediction

FORMATS = ("table", "json", "jsonl", "csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def predict(
    inputs: o.InputsArg,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help=f"{o.MODEL_HELP} Or an exported .onnx file.", show_default=False
        ),
    ] = None,
    weights: o.WeightsOpt = None,
    topk: Annotated[int, typer.Option("--topk", "-k", min=1, help="How many classes to name.")] = 5,
    head: o.HeadOpt = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Images at a time.", show_default="16, from stdin 1"
        ),
    ] = None,
    img_size: o.ImgSizeOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, json, jsonl or csv.",
            show_default="table on a terminal, else jsonl",
        ),
    ] = None,
    image: Annotated[
        bool | None,
        typer.Option(
            "--image/--no-image",
            help="Show images in the terminal, as the model sees them.",
            show_default="for one file or address",
        ),
    ] = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Say what is in images.

    Example: deitctl predict cat.jpg --topk 5
    """
    from deitctl.cli.console import choose_format, print_records
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.startup import without_garbage
    from deitctl.errors import ConfigError

    shape = choose_format(output_format, FORMATS, "jsonl")
    if image and shape != "table":
        raise ConfigError(f"--image goes with a table, not with {shape}.")
    reporter = make_reporter(quiet)
    shown = shape == "table" and _show_images(image, inputs, reporter)
    with without_garbage():
        from deitctl.inference.classify import predict as run

        stream = run(
            inputs,
            model=model or "",
            weights=str(weights) if weights else "",
            topk=topk,
            head=head,
            batch_size=batch_size or (1 if "-" in inputs else 16),
            img_size=img_size or 0,
            device=device,
            precision=precision,
            stdin=sys.stdin,
            keep_pixels=shown,
            reporter=reporter,
        )
    failed = {"table": _table, "json": _json, "jsonl": print_records, "csv": _csv}[shape](stream)
    if failed:
        raise typer.Exit(3)


def _show_images(asked: bool | None, inputs: list[str], reporter: Reporter) -> bool:
    """Decide whether the table has images: as asked, else for a single one, and only where a terminal has colors."""
    from deitctl.cli.prediction_table import terminal
    from deitctl.cli.terminal_image import can_show
    from deitctl.inference.inputs import STDIN, is_folder

    single = len(inputs) == 1 and inputs[0] != STDIN and not is_folder(inputs[0])
    if not (single if asked is None else asked):
        return False
    able = can_show(terminal())
    if asked and not able:
        reporter.warn("Images need a terminal with 256 colors or more, which this is not.")
    return able


def _json(stream: Iterable[Prediction]) -> int:
    from deitctl.cli.console import json_text

    failed, separator = 0, "[\n"
    for prediction in stream:
        failed += prediction.error is not None
        sys.stdout.write(separator + json_text(prediction.to_dict()))
        sys.stdout.flush()
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
    return failed


def _csv(stream: Iterable[Prediction]) -> int:
    from deitctl.cli.console import printable

    failed = 0
    said = printable if sys.stdout.isatty() else str  # exact in a file; a terminal would obey
    sys.stdout.write("input,rank,index,label,score,error\n")
    for prediction in stream:
        failed += prediction.error is not None
        name = cell(said(prediction.input))
        for rank, guess in enumerate(prediction.guesses, start=1):
            sys.stdout.write(
                f"{name},{rank},{guess.index},{cell(said(guess.label))},{guess.score:.6f},\n"
            )
        if prediction.error is not None:
            sys.stdout.write(f"{name},,,,,{cell(said(prediction.error))}\n")
        sys.stdout.flush()
    return failed


def cell(text: str) -> str:
    """Return a text for a table that a spreadsheet may open: an apostrophe keeps it from being taken for a formula.

    Numbers of our own are written as they are; a class or file called `-5` becomes `'-5`. Every end of a line is
    quoted: Python's own writer leaves carriage returns bare, and a reader then finds another row.
    """
    text = f"'{text}" if text.startswith(FORMULA) else text
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if any(c in text for c in ',"\r\n') else text


def _table(stream: Iterable[Prediction]) -> int:
    from deitctl.cli.prediction_table import print_prediction, terminal

    failed, console = 0, terminal()
    for prediction in stream:
        failed += prediction.error is not None
        print_prediction(prediction, console)
    return failed
