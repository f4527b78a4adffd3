"""deitctl reproduce"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    count_units,
    print_json,
    print_line,
    print_table,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MACHINE
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.training.comparison import Parting
    from deitctl.training.reproduce import Reproduction

PARTED = 3
"""Exit code: the run was trained again, and parts from its record."""
MAX_ROWS = 12
AS_RUN = "as the run has it"
LIMITS = "How far"
"""Panel of `--help`."""


def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder; it is only read.",
            autocompletion=completion.complete_run,
        ),
    ],
    steps: Annotated[
        int | None, o.option("--steps", help="Compare that many steps alone.", panel=LIMITS, min=1)
    ] = None,
    epochs: Annotated[
        int | None,
        o.option("--epochs", help="Compare that many epochs alone.", panel=LIMITS, min=1),
    ] = None,
    to_end: Annotated[
        bool, o.option("--to-end", help="Go on after the first difference.", panel=LIMITS)
    ] = False,
    allow_changes: Annotated[
        bool,
        o.option(
            "--allow-changes",
            help="Train although data, initial weights or teacher have changed since.",
        ),
    ] = False,
    output: Annotated[
        str,
        o.option(
            "--output",
            help="Folder to train into.",
            default="a temporary one, which is deleted",
            metavar="DIR",
        ),
    ] = "",
    workers: Annotated[
        int | None, o.setting_option("workers", default=AS_RUN, panel=MACHINE, min=-1)
    ] = None,
    device: Annotated[str, o.setting_option("device", default=AS_RUN, panel=MACHINE)] = "",
    precision: Annotated[
        str, o.setting_option("precision", default="that of the run", panel=MACHINE)
    ] = "",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a run again, and compare it to the last bit: the exit code is 0 if it is equal, 3 if not.

    Example: deitctl reproduce runs/deit_tiny-photos --epochs 1
    """
    shape = choose_format(output_format, o.FORMATS)
    result = deitctl.reproduce(
        run,
        steps=steps,
        epochs=epochs,
        to_end=to_end,
        allow_changes=allow_changes,
        output=output or None,
        workers=workers,
        device=device or None,
        precision=precision or None,
        reporter=make_reporter(quiet),
    )
    print_json(to_object(result)) if shape == "json" else _print_result(result)
    if not result.is_equal:
        raise typer.Exit(PARTED)


def _print_result(result: Reproduction) -> None:
    compared, first = _describe_compared(result), result.first
    if first is None:
        print_line(f"{result.run} is reproduced, equal to the last bit: {compared}.")
        return
    print_line(f"{result.run} is not reproduced: it parts in {first.place}. Compared: {compared}.")
    print_table(
        "First difference" if len(result.partings) == 1 else "Differences, the first ones first",
        ("in", "value", "run", "again", "difference"),
        map(_make_row, result.partings[:MAX_ROWS]),
        2,
    )
    if (more := len(result.partings) - MAX_ROWS) > 0:
        print_line(f"{more:,} more: --format json has all of them.")


def _describe_compared(result: Reproduction) -> str:
    """Return in words what was compared, and how far the training went."""
    parts = [
        count_units(result.num_steps_compared, "logged step"),
        count_units(result.num_epochs_compared, "epoch"),
        count_units(result.num_tensors_compared, "tensor"),
    ]
    parts += ["the result"] if result.has_compared_result else []
    until = "" if result.is_whole else f", of {count_units(result.steps, 'step')}"
    return f"{', '.join(parts[:-1])} and {parts[-1]}{until}"


def _make_row(parting: Parting) -> tuple[str, ...]:
    share = ""
    if parting.num_values > 1:
        share = f"{parting.num_different:,} of {parting.num_values:,} values"
    return (
        parting.place,
        parting.name,
        share or _format(parting.recorded),
        _format(parting.reproduced),
        "" if parting.difference is None else f"{parting.difference:.3g}",
    )


def _format(value: float | str | None) -> str:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
