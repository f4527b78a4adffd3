"""deitctl explain"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.explanation.explain import Explanation

FORMATS = ("table", "jsonl")


def explain(
    inputs: o.InputsArg,
    model: o.ModelOpt = None,
    weights: o.WeightsOpt = None,
    method: Annotated[
        str, typer.Option("--method", help="gradient, rollout or last-layer.")
    ] = "gradient",
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Ask why (not) this class: a label, synonym, WordNet id or number; for gradient.",
            show_default="each head's own first class",
        ),
    ] = None,
    token: Annotated[
        str, typer.Option("--token", help="cls, dist, or both that the model has.")
    ] = "both",
    only_disagreements: Annotated[
        bool,
        typer.Option("--only-disagreements", help="Leave out images on which the two heads agree."),
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", help="Folder of the drawings; no file in it is replaced.")
    ] = Path("explained"),
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Images at a time.", show_default="8, from stdin 1"
        ),
    ] = None,
    img_size: o.ImgSizeOpt = None,
    device: o.DeviceOpt = "auto",
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="table or jsonl.", show_default="table on a terminal, else jsonl"
        ),
    ] = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Draw where a DeiT looks, for its class token and its distillation token.

    Example: deitctl explain cat.jpg --class lynx
    """
    from deitctl.cli.console import choose_format, print_records
    from deitctl.cli.progress import make_reporter

    shape = choose_format(output_format, FORMATS, "jsonl")
    from deitctl.explanation.explain import explain as run

    stream = run(
        inputs,
        model=model or "",
        weights=str(weights) if weights else "",
        method=method,
        token=token,
        class_name=class_name,
        output=output,
        batch_size=batch_size or (1 if "-" in inputs else 8),
        img_size=img_size or 0,
        device=device,
        only_disagreements=only_disagreements,
        stdin=sys.stdin,
        reporter=make_reporter(quiet),
    )
    failed = {"table": _table, "jsonl": print_records}[shape](stream)
    if failed:
        raise typer.Exit(3)


def _table(stream: Iterable[Explanation]) -> int:
    from rich.console import Console

    from deitctl.cli.console import shown

    failed, console = 0, Console(highlight=False)
    for explanation in stream:
        console.print(f"[bold]{shown(explanation.input)}[/]", soft_wrap=True)
        if explanation.error is not None:
            failed += 1
            console.print(f"  [red]{shown(explanation.error)}[/]", soft_wrap=True)
            continue
        for token, answer in explanation.tokens.items():
            asked = (
                ""
                if answer.asked is None
                else f"  ({shown(str(explanation.asked))}: {100 * answer.asked:.1f} %)"
            )
            said = f"{100 * answer.first.score:5.1f} % {shown(answer.first.label)}{asked}"
            console.print(f"  {token:<4} {said}", soft_wrap=True)
        if explanation.disagree:
            console.print("  [yellow]the two heads disagree[/]")
        console.print(f"  [dim]{shown(str(explanation.image))}[/]", soft_wrap=True)
    return failed
