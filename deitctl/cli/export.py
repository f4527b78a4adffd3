"""deitctl export"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deitctl.cli import options as o


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, torch (.pt2), timm, transformers, openvino or web (folders), coreml, executorch, aoti (compiled).",
        ),
    ],
    weights: o.WeightsOpt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="File or folder to write.", show_default="RUN/export/ or here"
        ),
    ] = None,
    head: o.HeadOpt = "auto",
    verify_with: Annotated[
        str | None,
        typer.Option(
            "--verify-with",
            help="Images to prove the file on.",
            show_default="the run's data, or digits",
        ),
    ] = None,
    count: o.CountOpt = 64,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="fp16 (half the bytes; onnx, openvino, web), int8 (a quarter, faster) or int8-static (both onnx, web).",
            show_default="fp32",
        ),
    ] = None,
    calibrate_with: Annotated[
        str | None,
        typer.Option(
            "--calibrate-with",
            help="Images for int8-static.",
            show_default="what the run was trained on",
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess/--no-preprocess",
            help="Normalization and softmax inside, or the bare network; ONNX.",
        ),
    ] = True,
    any_size: Annotated[
        bool,
        typer.Option(
            "--any-size", help="Whole images of any size in, resized inside the file; ONNX."
        ),
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--runtime",
            help="Of web: a downloaded onnxruntime-web archive.",
            show_default="fetched once",
        ),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Write a model for other programs, and prove on real images that it answers the same.

    Example: deitctl export runs/deit_tiny-digits --to onnx --quantize int8
    """
    from deitctl.cli.console import choose_format, print_json
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    from deitctl.exporters.export import export as run
    from deitctl.records import to_object

    result = run(
        model,
        to=to,
        output=output or "",
        weights=str(weights) if weights else "",
        head=head,
        verify_data=verify_with or "",
        num_images=count,
        quantize=quantize or "",
        calibration_data=calibrate_with or "",
        preprocess=preprocess,
        dynamic_size=any_size,
        runtime=str(runtime) if runtime else "",
        reporter=make_reporter(quiet),
    )
    record = to_object(result)
    if shape == "json":
        print_json(record)
    else:
        print_export("exported", record)


def print_export(title: str, record: Mapping[str, Any]) -> None:
    """Print what is known of an export as a table."""
    from deitctl.cli.console import print_table

    rows = [
        (name.replace("_", " "), _shown(value))
        for name, value in record.items()
        if value not in (None, [])
    ]
    print_table(title, ("what", "value"), rows, 2)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
