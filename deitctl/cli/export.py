"""deitctl export"""

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


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=completion.complete_model),
    ],
    to: Annotated[
        str,
        o.option(
            "--to",
            help="onnx, torch (.pt2), coreml, executorch, aoti (compiled); folders: timm, transformers, openvino, web.",
            choices=completion.EXPORT_FORMATS,
        ),
    ],
    weights: o.WeightsOpt = "",
    classes: o.ClassesOpt = "",
    output: Annotated[
        str, o.option("--output", help="File or folder to write.", default="RUN/export/ or here")
    ] = "",
    task: o.ModelTaskOpt = "auto",
    head: o.HeadOpt = "auto",
    quantize: Annotated[
        str,
        o.option(
            "--quantize",
            help="fp16 (onnx, openvino, web), int8 or int8-static (onnx, web).",
            default="fp32",
            choices=("fp16", "int8", "int8-static"),
        ),
    ] = "",
    calibration_data: Annotated[
        str,
        o.option(
            "--calibration-data",
            help="Images for int8-static.",
            panel=o.VERIFICATION,
            default="the run's training images",
        ),
    ] = "",
    preprocess: Annotated[
        bool,
        o.option(
            "--preprocess/--no-preprocess",
            help="Normalization and probabilities inside, or the bare network; onnx.",
        ),
    ] = True,
    dynamic_size: Annotated[
        bool, o.option("--dynamic-size", help="Take images of any size, resized inside; onnx.")
    ] = False,
    image_folder: o.ImageFolderOpt = "",
    value_range: o.ValueRangeOpt = "auto",
    runtime: Annotated[
        str,
        o.option(
            "--runtime", help="A downloaded onnxruntime-web archive; web.", default="fetched once"
        ),
    ] = "",
    verify_data: o.VerifyDataOpt = "",
    num_images: o.NumImagesOpt = 64,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Write a model for another runtime, and verify on real images that its outputs agree.

    Example: deitctl export runs/deit_tiny-digits --to onnx --quantize int8
    """
    shape = choose_format(output_format, o.FORMATS)
    result = deitctl.export(
        model,
        to=to,
        output=output,
        weights=weights,
        classes=classes,
        task=task,
        head=head,
        verify_data=verify_data,
        num_images=num_images,
        quantize=quantize,
        calibration_data=calibration_data,
        preprocess=preprocess,
        dynamic_size=dynamic_size,
        image_folder=image_folder,
        value_range=value_range,
        runtime=runtime,
        reporter=make_reporter(quiet),
    )
    print_json(to_object(result)) if shape == "json" else print_record("exported", result)
    path = str(result.path)
    command = ["predict", "IMAGE", "--model", path] if path.endswith(".onnx") else ["verify", path]
    print_next(command, shape=shape, quiet=quiet)
