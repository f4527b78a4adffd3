"""deitctl push"""

from __future__ import annotations

from typing import Annotated

import typer

import deitctl
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_next, print_table
from deitctl.cli.progress import make_reporter
from deitctl.records import to_object

WEIGHTS = "model.safetensors"
"""The file that makes a repository a MODEL."""


def push(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Run, model folder, or file or folder of export.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="On the hub; created if it is missing.")
    ],
    private: Annotated[
        bool, o.option("--private", help="Create the repository as a private one.")
    ] = False,
    revision: Annotated[
        str, o.option("--revision", help="Branch; created if it is missing.", default="main")
    ] = "",
    message: Annotated[
        str, o.option("--message", help="Message of the commit.", default="what was uploaded")
    ] = "",
    dry_run: Annotated[
        bool, o.option("--dry-run", help="List the files, without a network.")
    ] = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Upload a model or an export to the Hugging Face hub, in one commit.

    Example: deitctl push runs/deit_tiny-digits OWNER/NAME --dry-run
    """
    shape = choose_format(output_format, o.FORMATS)
    result = deitctl.push(
        path,
        repository,
        private=private,
        revision=revision,
        message=message,
        dry_run=dry_run,
        reporter=make_reporter(quiet),
    )
    if shape == "json":
        print_json(to_object(result))
        return
    rows = [
        *((file.path, f"{file.bytes:,}") for file in result.files),
        ("all", f"{result.bytes:,}"),
    ]
    title = f"pushed to {result.url}" if result.url else f"would be pushed to {repository}"
    print_table(title, ("file", "bytes"), rows)
    if dry_run:
        print_next(["push", path, repository], shape=shape, quiet=quiet)
    elif any(file.path == WEIGHTS for file in result.files):
        command = ["predict", "IMAGE", "--model", f"hf-hub:{repository}"]
        print_next(command, shape=shape, quiet=quiet)
