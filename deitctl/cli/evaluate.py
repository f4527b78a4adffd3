"""deitctl eval"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.evaluation.records import EvalResult, EvalResults


def evaluate(
    data: o.DataArg = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help=f"{o.MODEL_HELP} Or an ONNX file of export. May be repeated: all are scored side by side.",
            show_default=False,
        ),
    ] = None,
    weights: o.WeightsOpt = None,
    head: o.HeadOpt = "auto",
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            help="Whose preprocessing: native (the model's own), deit, timm or hf. May be repeated, or a,b.",
            show_default="native",
        ),
    ] = None,
    real_labels: Annotated[
        Path | None,
        typer.Option(
            "--real-labels",
            help="real.json: all the labels that are right for ImageNet's val (ReaL).",
            show_default=False,
        ),
    ] = None,
    save_temperature: Annotated[
        bool,
        typer.Option(
            "--save-temperature",
            help="Keep the temperature that mends the confidences with the model.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 64,
    img_size: o.ImgSizeOpt = None,
    on_bad_image: o.OnBadImageOpt = None,
    workers: o.WorkersOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="Write a record an image here, as JSON lines.", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Write a page to look at, one .html file that opens offline.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures", help="Draw the same as PNG into this folder.", show_default=False
        ),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Score models on labeled images; labels are matched by class name or WordNet id.

    Example: deitctl eval imagenet/val --model deit_small_distilled
    """
    from deitctl.cli.console import choose_format, left_out_code, print_json
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS
    from deitctl.cli.startup import without_garbage

    shape = choose_format(output_format, FORMATS, "json")
    reporter = make_reporter(quiet)
    if not data:
        reporter.note("No data named: using the built-in 'digits'.")
    with without_garbage():
        from deitctl.distributed import is_main_process
        from deitctl.evaluation.score_models import evaluate_models

    protocols = [
        name.strip() for part in protocol or ["native"] for name in part.split(",") if name.strip()
    ]
    found = evaluate_models(
        data or "",
        models=model or [""],
        weights=_path(weights),
        head=head,
        protocols=protocols,
        batch_size=batch_size,
        img_size=img_size or 0,
        workers=-1 if workers is None else workers,
        device=device,
        precision=precision,
        predictions=_path(predictions),
        report=_path(report),
        figures=_path(figures),
        command=shlex.join(["deitctl", *sys.argv[1:]]),
        real_labels=_path(real_labels),
        save_temperature=save_temperature,
        reporter=reporter,
        on_bad_image=on_bad_image or "skip",
    )
    first = found.results[0]
    exit_code = left_out_code(len(first.scores.unreadable))
    if not is_main_process():
        raise typer.Exit(exit_code)
    if shape == "json":
        print_json(found.to_dict())
    else:
        _print_scores(found)
        _print_differences(found)
        for result in found.results:
            _print_classes(result, several=len(found.results) > 1)
    for index, why in first.scores.unreadable:
        reporter.warn(f"left out {first.dataset.name(index)}: {why}")
    if save_temperature and first.calibration is None:
        exit_code = 1  # all was said, and what was asked for is not done
    raise typer.Exit(exit_code)


def _path(given: Path | None) -> str:
    return str(given) if given else ""


def _print_scores(found: EvalResults) -> None:
    from deitctl.cli.console import print_table

    first = found.results[0]
    columns = [dict(_rows(result)) for result in found.results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    title = f"{first.scores.num_images} images of {first.data}"
    if len(columns) == 1:
        print_table(f"{first.name} on {title}", ("", "value"), [(n, columns[0][n]) for n in names])
    else:
        print_table(
            title,
            ("", *(r.name for r in found.results)),
            [(n, *(c.get(n, "") for c in columns)) for n in names],
        )


def _rows(result: EvalResult) -> list[tuple[str, str]]:
    s, kept = result.scores, result.calibration
    low = {name: f"{a:.2f} to {b:.2f}" for name, (a, b) in result.intervals.items()}
    rows = [
        ("top-1, %", f"{s.top1:.2f}"),
        ("  95 % interval", low["top1"]),
        ("top-5, %", f"{s.top5:.2f}"),
        ("loss", f"{s.loss:.4f}"),
        ("expected calibration error", f"{s.ece:.4f}"),
    ]
    if result.contender.temperature != 1:
        rows.append(("  with the model's temperature", f"{result.contender.temperature:.3f}"))
    if kept is not None:
        rows += [
            ("  a temperature that fits", f"{kept.temperature:.3f}"),
            ("  error with it", f"{kept.ece:.4f}"),
        ]
    if s.top1_among is not None:
        rows.append(
            (f"top-1 among the data's {len(result.match.rows)} classes, %", f"{s.top1_among:.2f}")
        )
    if result.real is not None:
        of = f"of {result.real.num_images} images, %"
        rows += [
            (f"ReaL top-1 {of}", f"{result.real.top1:.2f}"),
            (f"ReaL top-5 {of}", f"{result.real.top5:.2f}"),
        ]
    if s.heads is not None:
        rows += [(f"top-1 by {name}, %", f"{top1:.2f}") for name, top1 in s.heads.items()]
        rows.append(("heads agree, %", f"{s.agreement:.2f}"))
    rows.append(("images/s", f"{s.images_per_second:.1f}"))
    return rows


def _print_differences(found: EvalResults) -> None:
    from deitctl.cli.console import print_table

    if found.differences:
        rows = [
            (
                d.b,
                f"{d.difference:+.2f}",
                f"{d.interval[0]:+.2f} to {d.interval[1]:+.2f}",
                str(d.only_a),
                str(d.only_b),
                f"{d.p_value:.2g}",
            )
            for d in found.differences
        ]
        first = found.differences[0]
        among = " among the data's classes" if first.among_classes else ""
        title = f"{first.a}, top-1{among} in points more than (+) or less than (-) another on the same images"
        print_table(
            title, ("than", "points", "95 % interval", "it alone", "other alone", "p"), rows
        )


def _print_classes(result: EvalResult, *, several: bool) -> None:
    from deitctl.cli.console import print_table

    worst = sorted(result.classes, key=lambda c: c.recall)[:10]
    of = f" ({result.name})" if several else ""
    print_table(
        f"the classes it knows least{of}",
        ("class", "images", "top-1, %", "precision, %"),
        [
            (
                result.class_title(c.label),
                str(c.num_images),
                f"{c.recall:.1f}",
                f"{c.precision:.1f}",
            )
            for c in worst
        ],
    )
