"""deitctl check"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.checks.check import CheckResult
    from deitctl.checks.findings import Finding

SHOWN = 3  # examples in a table's cell


def check(
    data: o.DataArg = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--ground-truth",
            show_default=False,
            help="Labels of a val without class folders: ImageNet's devkit, LOC_val_solution.csv, or rows of file,label.",
        ),
    ] = None,
    fix_list: Annotated[
        Path | None,
        typer.Option(
            "--fix-list",
            help="Write what to delete, move and rename here, as CSV.",
            show_default=False,
        ),
    ] = None,
    write_table: Annotated[
        Path | None,
        typer.Option(
            "--write-table",
            help="Write a path,label,split table of it here, to train on as DATA.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Decoding processes.", show_default="one a core"),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Say whether a data set is sound: what would go unread, leak or be mislabeled. Changes nothing in it.

    Exits with 3 if there is an error among the findings.

    Example: deitctl check photos/ --fix-list fixes.csv
    """
    from deitctl.cli.console import choose_format, print_json
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    reporter = make_reporter(quiet)
    if not data:
        reporter.note("No data named: using the built-in 'digits'.")
    from deitctl.checks.check import check as run

    result = run(
        data or "",
        ground_truth=str(ground_truth or ""),
        fix_list=str(fix_list or ""),
        write_table=str(write_table or ""),
        workers=-1 if workers is None else workers,
        reporter=reporter,
    )
    if shape == "json":
        print_json(result.to_dict())
    else:
        _print(result)
    raise typer.Exit(0 if result.sound else 3)


def _print(result: CheckResult) -> None:
    from deitctl.cli.console import print_table

    counts = [
        (name, str(part["images"]), str(part["classes"])) for name, part in result.parts.items()
    ]
    print_table(
        f"{result.data} is {'sound' if result.sound else 'not sound'}",
        ("part", "images", "classes"),
        counts,
    )
    if result.findings:
        rows = [
            (f.severity, f.check, _words(f, result.data), str(f.count)) for f in result.findings
        ]
        print_table("findings", ("", "check", "what, where, what to do", "count"), rows, 3)


def _words(finding: Finding, data: str) -> str:
    from deitctl.checks.fix_list import safe

    shown = [safe(e.replace(f"{data}/", "")) for e in finding.examples[:SHOWN]]
    more = ["..."] if finding.count > len(shown) else []
    return "\n".join([finding.message, *(f"  {line}" for line in (*shown, *more)), finding.fix])
