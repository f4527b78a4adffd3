"""deitctl verify"""

from __future__ import annotations

from typing import Annotated

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_next, print_record
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP
from deitctl.records import to_object


def verify(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File or folder that `deitctl export` wrote.")
    ],
    model: Annotated[
        str,
        o.option(
            "--model",
            help=f"What to compare with. {MODEL_HELP}",
            default="the run that PATH lies in",
            complete=completion.complete_model,
        ),
    ] = "",
    weights: o.WeightsOpt = "",
    classes: o.ClassesOpt = "",
    verify_data: o.VerifyDataOpt = "",
    num_images: o.NumImagesOpt = 64,
    image_folder: o.ImageFolderOpt = "",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Run an exported file in a fresh process, and verify that its outputs agree with its model's.

    Without a model, its golden sample alone is verified.

    Example: deitctl verify runs/deit_tiny-digits/export/deit_tiny-digits.onnx --verify-data images/
    """
    shape = choose_format(output_format, o.FORMATS)
    result = deitctl.verify(
        path,
        verify_data=verify_data,
        model=model,
        weights=weights,
        classes=classes,
        num_images=num_images,
        image_folder=image_folder,
        reporter=make_reporter(quiet),
    )
    print_json(to_object(result)) if shape == "json" else print_record("verified", result)
    print_next(["push", path, "OWNER/NAME"], shape=shape, quiet=quiet)
