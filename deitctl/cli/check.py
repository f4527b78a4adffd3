"""deitctl check"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.checks.check import CheckResult
    from deitctl.checks.issues import Issue

NUM_EXAMPLES = 3  # in a table's cell


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
    write_manifest: Annotated[
        Path | None,
        typer.Option(
            "--write-manifest",
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
    """Find issues in a data set: unreadable, leaked and mislabeled images. Changes nothing in it.

    Exits with 3 if an issue is an error.

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
    from deitctl.records import to_object

    result = run(
        data or "",
        ground_truth=str(ground_truth or ""),
        fix_list=str(fix_list or ""),
        write_manifest=str(write_manifest or ""),
        workers=-1 if workers is None else workers,
        reporter=reporter,
    )
    if shape == "json":
        print_json(to_object(result))
    else:
        _print(result)
    raise typer.Exit(3 if result.num_errors else 0)


def _print(result: CheckResult) -> None:
    from deitctl.cli.console import print_table

    sizes = [
        (name, str(split.num_images), str(split.num_classes))
        for name, split in result.splits.items()
    ]
    summary = f"{len(result.issues)} kinds of issues, {result.num_errors} of them errors"
    print_table(
        f"{result.data}: {summary if result.issues else 'no issues found'}",
        ("split", "images", "classes"),
        sizes,
    )
    if result.issues:
        rows = [
            (issue.severity, issue.code, _describe(issue, result.data), str(issue.count))
            for issue in result.issues
        ]
        print_table("issues", ("severity", "code", "what, where, what to do", "count"), rows, 3)


def _describe(issue: Issue, data: str) -> str:
    from deitctl.checks.issues import escape

    examples = [escape(e.replace(f"{data}/", "")) for e in issue.examples[:NUM_EXAMPLES]]
    more = ["..."] if issue.count > len(examples) else []
    return "\n".join([issue.message, *(f"  {line}" for line in (*examples, *more)), issue.fix])
