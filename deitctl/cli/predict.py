"""deitctl predict"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.inference.predict import Prediction

FORMATS = ("table", "json", "jsonl", "csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
BAR = 20  # characters of a score of 1


def predict(
    inputs: o.InputsArg,
    model: o.ModelOpt = None,
    weights: o.WeightsOpt = None,
    topk: Annotated[int, typer.Option("--topk", "-k", min=1, help="How many classes to name.")] = 5,
    head: o.HeadOpt = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Pictures at a time.", show_default="16, from stdin 1")
    ] = None,
    img_size: o.ImgSizeOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="table, json, jsonl or csv.", show_default="table on a terminal, else jsonl"),
    ] = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Say what is in pictures.

    Example: deitctl predict cat.jpg --topk 5
    """
    from deitctl.cli.console import choose_format
    from deitctl.cli.progress import make_reporter

    shape = choose_format(output_format, FORMATS, "jsonl")
    from deitctl.workflows.predict import predict as run

    stream = run(
        inputs, model=model or "", weights=str(weights) if weights else "", topk=topk, head=head,
        batch_size=batch_size or (1 if "-" in inputs else 16), img_size=img_size or 0, device=device,
        precision=precision, stdin=sys.stdin, reporter=make_reporter(quiet),
    )  # fmt: skip
    failed = {"table": _table, "json": _json, "jsonl": _jsonl, "csv": _csv}[shape](stream)
    if failed:
        raise typer.Exit(3)


def _jsonl(stream: Iterable[Prediction]) -> int:
    from deitctl.cli.console import json_text

    failed = 0
    for prediction in stream:
        failed += prediction.error is not None
        sys.stdout.write(json_text(prediction.to_dict()) + "\n")
        sys.stdout.flush()
    return failed


def _json(stream: Iterable[Prediction]) -> int:
    from deitctl.cli.console import json_text

    failed, separator = 0, "[\n"
    for prediction in stream:
        failed += prediction.error is not None
        sys.stdout.write(separator + json_text(prediction.to_dict()))
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
            sys.stdout.write(f"{name},{rank},{guess.index},{cell(said(guess.label))},{guess.score:.6f},\n")
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
    from rich.console import Console

    from deitctl.cli.console import shown

    failed, console = 0, Console(highlight=False)
    for prediction in stream:
        console.print(f"[bold]{shown(prediction.input)}[/]", soft_wrap=True)
        if prediction.error is not None:
            failed += 1
            console.print(f"  [red]{shown(prediction.error)}[/]", soft_wrap=True)
        for guess in prediction.guesses:
            bar = "█" * round(guess.score * BAR)
            console.print(f"  {100 * guess.score:5.1f} % [cyan]{bar:<{BAR}}[/] {shown(guess.label)}", soft_wrap=True)
    return failed
