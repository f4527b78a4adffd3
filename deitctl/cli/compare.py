"""deitctl compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deitctl.cli import options as o

if TYPE_CHECKING:
    from deitctl.distillation.compare import Comparison, Spread


def compare(
    data: o.DataArg = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help=o.MODEL_HELP + " May be repeated.",
            show_default="on digits: regnety_002, else regnety_160",
        ),
    ] = None,
    student: o.StudentOpt = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs of each kind, from different seeds.")
    ] = 1,
    variants: Annotated[
        str | None,
        typer.Option(
            "--variants", help="Some of none,soft,hard,token-soft,token-hard.", show_default="all"
        ),
    ] = None,
    teacher_weights: o.TeacherWeightsOpt = None,
    teacher_img_size: o.TeacherSizeOpt = None,
    adapt: o.AdaptOpt = None,
    teacher_input: o.TeacherSeesOpt = None,
    views: o.ViewsOpt = None,
    view_seed: o.ViewSeedOpt = None,
    words_topk: o.TopkWordsOpt = None,
    force_teacher: o.ForceTeacherOpt = False,
    recipe: o.RecipeOpt = None,
    pretrained: o.PretrainedOpt = None,
    weights: o.WeightsOpt = None,
    epochs: o.EpochsOpt = None,
    batch_size: o.BatchSizeOpt = None,
    lr: o.LrOpt = None,
    img_size: o.ImgSizeOpt = None,
    seed: o.SeedOpt = None,
    changes: o.SetOpt = None,
    workers: o.WorkersOpt = None,
    device: o.DeviceOfRunOpt = None,
    precision: o.PrecisionOfRunOpt = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the runs.", show_default="runs/compare-DATA"),
    ] = None,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a student in every way of the paper's Table 3, on equal terms, and print the table.

    Example: deitctl compare photos/ --teacher regnety_160 --student deit_small --seeds 3
    """
    from deitctl.cli.console import choose_format, print_json, rerun_on_interruption
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS
    from deitctl.distillation.compare import compare as run
    from deitctl.training.configure import Request, Teaching

    shape = choose_format(output_format, FORMATS, "json")
    folder = output or Path("runs") / f"compare-{Path(data or 'digits').name}"
    teaching = Teaching(
        teacher=(teacher or [""])[0],
        weights=str(teacher_weights or ""),
        adapt=adapt or "",
        img_size=teacher_img_size,
        sees=teacher_input or "",
        views=views,
        view_seed=view_seed,
        topk=words_topk,
        force=force_teacher,
    )
    request = Request(
        data=data or "",
        model=student or "",
        recipe=recipe or "",
        pretrained=pretrained,
        weights=str(weights or ""),
        teaching=teaching,
        output=str(folder),
        changes=changes or (),
        given=o.training_settings(
            epochs, batch_size, lr, img_size, seed, workers, device, precision
        ),
    )
    with rerun_on_interruption():
        done = run(
            request,
            teachers=teacher or (),
            variants=[v.strip() for v in variants.split(",")] if variants else (),
            seeds=seeds,
            reporter=make_reporter(quiet),
        )
    if shape == "json":
        print_json(done.to_dict())
    else:
        _print(done)


def _print(done: Comparison) -> None:
    from deitctl.cli.console import print_line, print_table
    from deitctl.distillation.compare import HEADS

    def cell(value: Spread | None) -> str:
        return "" if value is None else str(value)

    several = len({row.teacher for row in done.rows if row.teacher}) > 1
    titles = [
        f"{row.title}, {Path(row.teacher).name}" if several and row.teacher else row.title
        for row in done.rows
    ]
    runs = f"{done.seeds} seed{'s' if done.seeds > 1 else ''}, {done.epochs} epochs, {done.num_images} validation images"
    print_table(
        f"{done.student} on {done.data}: top-1, % ({runs})",
        ("distillation", "class head", "distill head", "both", "seconds"),
        [
            (title, *(cell(row.top1.get(h)) for h in HEADS), f"{row.seconds.mean:.0f}")
            for title, row in zip(titles, done.rows, strict=True)
        ],
    )
    print_table(
        "agreement with the teacher, and of the heads with each other, %",
        ("distillation", "class head", "distill head", "both", "the heads"),
        [
            (title, *(cell(row.with_teacher.get(h)) for h in HEADS), cell(row.between_heads))
            for title, row in zip(titles, done.rows, strict=True)
            if row.with_teacher
        ],
    )
    known = {row.teacher: row.teacher_top1 for row in done.rows if row.teacher}
    for name, top1 in known.items():
        print_line(f"teacher {name}: top-1 {cell(top1)} %")
    print_line(f"runs and comparison.json: {done.output}")
