"""deitctl export"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=o.MODEL_HELP)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, torch (.pt2), timm, transformers or openvino (folders), coreml, executorch, aoti (compiled).",
        ),
    ],
    weights: o.WeightsOpt = None,
    output: Annotated[
        str | None, typer.Option("--output", help="File or folder to write.", show_default="RUN/export/ or here")
    ] = None,
    head: o.HeadOpt = "auto",
    verify_with: Annotated[
        str | None,
        typer.Option("--verify-with", help="Pictures to prove the file on.", show_default="the run's data, or digits"),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many pictures to prove it on.")] = 64,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="fp16 (half the bytes; ONNX, OpenVINO) or int8 (a quarter, faster; ONNX).",
            show_default="fp32",
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess/--no-preprocess", help="Normalisation and softmax inside, or the bare network; ONNX."
        ),
    ] = True,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Write a model for other programs, and prove on real pictures that it answers the same.

    Example: deitctl export runs/deit_tiny-digits --to onnx --quantize int8
    """
    from deitctl.cli.console import choose_format, print_json, print_table
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    from deitctl.workflows.export import export as run

    result = run(
        model, to=to, output=output or "", weights=str(weights) if weights else "", head=head,
        verify_with=verify_with or "", count=count, quantize=quantize or "", preprocess=preprocess,
        reporter=make_reporter(quiet),
    )  # fmt: skip
    record = result.to_dict()
    if shape == "json":
        print_json(record)
        return
    rows = [
        (name.replace("_", " "), f"{v:.3g}" if isinstance(v, float) else str(v))
        for name, v in record.items()
        if v is not None
    ]
    print_table("exported", ("what", "value"), rows, 2)
