"""deitctl eval"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deitctl.cli import options as o


def evaluate(
    data: o.DataArg = None,
    model: o.ModelOpt = None,
    weights: o.WeightsOpt = None,
    head: o.HeadOpt = "auto",
    protocol: Annotated[
        str, typer.Option("--protocol", help="Whose preprocessing: native (the model's own), deit, timm or hf.")
    ] = "native",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")] = 64,
    img_size: o.ImgSizeOpt = None,
    on_bad_image: o.OnBadImageOpt = None,
    workers: o.WorkersOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Write a record a picture here, as JSON lines.", show_default=False),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Score a model on labelled pictures; labels are matched by class name or WordNet id.

    Example: deitctl eval imagenet/val --model deit_small_distilled
    """
    from deitctl.cli.console import choose_format, left_out_code, print_json, print_table
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.training import FORMATS

    shape = choose_format(output_format, FORMATS, "json")
    reporter = make_reporter(quiet)
    if not data:
        reporter.note("No data named: using the built-in 'digits'.")
    from deitctl.workflows.evaluate import evaluate_model
    from deitctl.world import main_process

    result = evaluate_model(
        data or "", model=model or "", weights=str(weights) if weights else "", head=head, protocol=protocol,
        batch_size=batch_size, img_size=img_size or 0, workers=-1 if workers is None else workers, device=device,
        precision=precision, predictions=str(predictions) if predictions else "", reporter=reporter,
        on_bad_image=on_bad_image or "skip",
    )  # fmt: skip
    exit_code = left_out_code(len(result.scores.unreadable))
    if not main_process():
        raise typer.Exit(exit_code)
    record = result.to_dict()
    if shape == "json":
        print_json(record)
    else:
        scores = result.scores
        rows = [
            ("top-1, %", f"{scores.top1:.2f}"), ("top-5, %", f"{scores.top5:.2f}"), ("loss", f"{scores.loss:.4f}"),
            ("expected calibration error", f"{scores.ece:.4f}"),
        ]  # fmt: skip
        if scores.top1_among is not None:
            rows.append((f"top-1 among the data's {len(result.match.rows)} classes, %", f"{scores.top1_among:.2f}"))
        rows += [(f"top-1 by {name}, %", f"{top1:.2f}") for name, top1 in (scores.heads or {}).items()]
        rows.append(("images/s", f"{scores.images_per_second:.1f}"))
        print_table(f"{record['model']} on {scores.images} pictures of {record['data']}", ("", "value"), rows)
        worst = sorted(record["per_class"].items(), key=lambda item: item[1]["top1"])[:10]
        weak = [(name, str(row["images"]), f"{row['top1']:.1f}") for name, row in worst]
        print_table("the classes it knows least", ("class", "images", "top-1, %"), weak)
    for index, why in result.scores.unreadable:
        reporter.warn(f"left out {result.source.name(index)}: {why}")
    raise typer.Exit(exit_code)
