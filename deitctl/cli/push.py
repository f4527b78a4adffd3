"""deitctl push"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def push(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Run, model folder, or file or folder of export.",
            show_default=False,
        ),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="On the hub; made if it is not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", help="Branch; made if it is not there.", show_default="main"),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", help="Of the commit.", show_default="what was uploaded"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which files would go, without a network.")
    ] = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Upload a model or an export to the Hugging Face hub, in one commit.

    Example: deitctl push runs/deit_tiny-digits OWNER/NAME --dry-run
    """
    from deitctl.cli.console import choose_format, print_json, print_table
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    from deitctl.hub.push import push as run
    from deitctl.records import to_object

    result = run(
        path,
        repository,
        private=private,
        revision=revision or "",
        message=message or "",
        dry_run=dry_run,
        reporter=make_reporter(quiet),
    )
    if shape == "json":
        print_json(to_object(result))
        return
    rows = [*((file.path, file.bytes) for file in result.files), ("all", result.bytes)]
    title = f"pushed to {result.url}" if result.url else f"would be pushed to {repository}"
    print_table(title, ("file", "bytes"), [(name, f"{size:,}") for name, size in rows])
