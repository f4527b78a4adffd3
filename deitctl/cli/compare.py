"""deitctl compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deitctl import api
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import (
    choose_format,
    print_json,
    print_line,
    print_next,
    print_table,
    rerun_on_interruption,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MODEL_HELP, TEACHER_DEFAULT
from deitctl.records import to_object
from deitctl.settings import parse_overrides

if TYPE_CHECKING:
    from deitctl.distillation.compare import Comparison, Spread

HEADS = ("cls", "dist", "avg-logits")


@o.take_options(api.compare)
def compare(
    arguments: dict[str, Any],
    teacher: Annotated[
        list[str] | None,
        o.option(
            "--teacher",
            help=f"{MODEL_HELP} May be repeated.",
            default=TEACHER_DEFAULT,
            complete=completion.complete_teacher,
        ),
    ] = None,
    seeds: Annotated[
        int, o.option("--seeds", help="Runs of each variant, from different seeds.", min=1)
    ] = 1,
    variants: Annotated[
        str | None,
        o.option(
            "--variants",
            help="Some of none, soft, hard, token-soft, token-hard, as a,b.",
            default="all",
            complete=completion.complete_list(*completion.VARIANTS),
        ),
    ] = None,
    output: Annotated[
        str | None, o.option("--output", help="Folder of the runs.", default="runs/compare-DATA")
    ] = None,
    changes: o.SetOpt = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a student with every variant of the paper's Table 3 on equal terms, and print the table.

    Example: deitctl compare photos/ --teacher regnety_160 --student deit_small --seeds 3
    """
    shape = choose_format(output_format, o.FORMATS)
    with rerun_on_interruption("Finished runs are kept."):
        comparison = api.compare(
            **(arguments | parse_overrides(changes or ())),
            teacher=teacher,
            seeds=seeds,
            variants=variants,
            output=output,
            reporter=make_reporter(quiet),
        )
    print_json(to_object(comparison)) if shape == "json" else _print(comparison)
    best = max(comparison.rows, key=lambda row: max(top1.mean for top1 in row.top1.values()))
    print_next(["export", best.runs[0], "--to", "onnx"], shape=shape, quiet=quiet)


def _print(comparison: Comparison) -> None:
    def cell(value: Spread | None) -> str:
        return "" if value is None else str(value)

    rows = comparison.rows
    teachers = {row.teacher: row.teacher_top1 for row in rows if row.teacher}
    titles = [
        f"{row.title}, {Path(row.teacher).name}" if len(teachers) > 1 and row.teacher else row.title
        for row in rows
    ]
    seeds = f"{comparison.num_seeds} seed{'s' if comparison.num_seeds > 1 else ''}"
    runs = f"{seeds}, {comparison.epochs} epochs, {comparison.num_images} validation images"
    print_table(
        f"{comparison.student} on {comparison.data}: top-1, % ({runs})",
        ("distillation", "class head", "distill head", "both", "seconds"),
        [
            (title, *(cell(row.top1.get(head)) for head in HEADS), f"{row.seconds.mean:.0f}")
            for title, row in zip(titles, rows, strict=True)
        ],
    )
    print_table(
        "agreement with the teacher, and of the two heads, %",
        ("distillation", "class head", "distill head", "both", "the heads"),
        [
            (title, *(cell(row.teacher_agreement.get(h)) for h in HEADS), cell(row.head_agreement))
            for title, row in zip(titles, rows, strict=True)
            if row.teacher_agreement
        ],
    )
    for name, top1 in teachers.items():
        print_line(f"teacher {name}: top-1 {cell(top1)} %")
    print_line(f"runs and comparison.json: {comparison.output}")
