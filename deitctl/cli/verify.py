"""deitctl verify"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def verify(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File or folder that `deitctl export` wrote.")
    ],
    images: Annotated[
        str | None,
        typer.Option(
            "--with", help="Images to prove it on.", show_default="the run's data, or digits"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"What to compare with. {o.MODEL_HELP}",
            show_default="the run that PATH lies in",
        ),
    ] = None,
    weights: o.WeightsOpt = None,
    count: o.CountOpt = 64,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Run an exported file again in a fresh process, and prove that it answers as its model does.

    Without a model the golden sample inside the file is looked at alone.

    Example: deitctl verify runs/deit_tiny-digits/export/deit_tiny-digits.onnx --with images/
    """
    from deitctl.cli.console import choose_format, print_json
    from deitctl.cli.export import print_export
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    from deitctl.exporters.verify import verify_export
    from deitctl.records import to_object

    result = verify_export(
        path,
        verify_data=images or "",
        model=model or "",
        weights=str(weights) if weights else "",
        num_images=count,
        reporter=make_reporter(quiet),
    )
    record = to_object(result)
    if shape == "json":
        print_json(record)
    else:
        print_export("verified", record)
