"""deitctl explain"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, escape_markup, print_next, print_records
from deitctl.cli.progress import make_reporter

if TYPE_CHECKING:
    from deitctl.explanation.explanation import Explanation

FORMATS = ("table", "jsonl")
METHODS = ("gradient", "rollout", "last-layer")


def explain(
    images: o.ImagesArg,
    model: o.ModelOpt = "",
    weights: o.WeightsOpt = "",
    classes: o.ClassesOpt = "",
    task: o.ModelTaskOpt = "auto",
    method: Annotated[
        str,
        o.option(
            "--method",
            help="gradient, rollout or last-layer.",
            choices=METHODS,
        ),
    ] = "gradient",
    class_name: Annotated[
        str | None,
        o.option(
            "--class",
            help="Class to explain: a label, synonym, WordNet id or number; for gradient.",
            default="each head's prediction, or each label",
        ),
    ] = None,
    token: Annotated[
        str,
        o.option(
            "--token",
            help="cls, dist, or both that the model has.",
            choices=("cls", "dist", "both"),
        ),
    ] = "both",
    only_disagreements: Annotated[
        bool, o.option("--only-disagreements", help="Leave out images on which the heads agree.")
    ] = False,
    output: Annotated[
        str, o.option("--output", help="Folder of the drawings; no file in it is replaced.")
    ] = "explained",
    batch_size: Annotated[
        int | None,
        o.option("--batch-size", help="Images at a time.", default="8, from stdin 1", min=1),
    ] = None,
    img_size: o.ImgSizeOpt = 0,
    device: o.DeviceOpt = "auto",
    output_format: Annotated[
        str | None,
        o.option(
            "--format",
            help="table or jsonl.",
            default="table on a terminal, else jsonl",
            panel=o.OUTPUT,
            choices=FORMATS,
        ),
    ] = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Draw where a DeiT attends, for its class token and its distillation token.

    Example: deitctl explain cat.jpg --class lynx
    """
    shape = choose_format(output_format, FORMATS, "jsonl")
    reporter = make_reporter(quiet)
    from deitctl.inference.inputs import suggest_inputs

    for suggestion in suggest_inputs(images):
        reporter.warn(suggestion)
    explanations = deitctl.explain(
        images,
        model=model,
        weights=weights,
        classes=classes,
        task=task,
        method=method,
        token=token,
        class_name=class_name,
        output=output,
        batch_size=batch_size or (1 if "-" in images else 8),
        img_size=img_size,
        device=device,
        only_disagreements=only_disagreements,
        stdin=sys.stdin,
        reporter=reporter,
    )
    num_failed = {"table": _print_table, "jsonl": print_records}[shape](explanations)
    # a run knows the images that it was not trained on
    options = o.spell_model(model, weights, classes)
    print_next(["eval", *([] if o.is_run(model) else ["DATA"]), *options], shape=shape, quiet=quiet)
    if num_failed:
        raise typer.Exit(3)


def _print_table(explanations: Iterable[Explanation]) -> int:
    from rich.console import Console

    num_failed, console = 0, Console(highlight=False, soft_wrap=True)
    for explanation in explanations:
        console.print(f"[bold]{escape_markup(explanation.input)}[/]")
        if explanation.error is not None:
            num_failed += 1
            console.print(f"  [red]{escape_markup(explanation.error)}[/]")
            continue
        for token, prediction in explanation.tokens.items():
            of_class = ""
            if prediction.class_score is not None:
                label = escape_markup(str(explanation.class_name))
                of_class = f"  ({label}: {100 * prediction.class_score:.1f} %)"
            first = f"{100 * prediction.score:5.1f} % {escape_markup(prediction.label)}"
            console.print(f"  {token:<4} {first}{of_class}")
        if explanation.disagree:
            console.print("  [yellow]the two heads disagree[/]")
        console.print(f"  [dim]{escape_markup(str(explanation.image))}[/]")
    return num_failed
