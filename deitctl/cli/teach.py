"""deitctl teach"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def teach(
    data: o.DataArg = None,
    teacher: o.TeacherOpt = None,
    teacher_weights: o.TeacherWeightsOpt = None,
    teacher_img_size: o.TeacherSizeOpt = None,
    adapt: o.AdaptOpt = None,
    mode: o.ModeOpt = None,
    tau: o.TauOpt = None,
    views: o.ViewsOpt = None,
    view_seed: o.ViewSeedOpt = None,
    words_topk: o.TopkWordsOpt = None,
    teacher_cache: o.CacheOpt = None,
    force_teacher: o.ForceTeacherOpt = False,
    student: o.StudentOpt = None,
    recipe: o.RecipeOpt = None,
    pretrained: o.PretrainedOpt = None,
    weights: o.WeightsOpt = None,
    epochs: o.EpochsOpt = None,
    seed: o.SeedOpt = None,
    changes: o.SetOpt = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Views at a time.")] = 64,
    workers: o.WorkersOpt = None,
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask again about some of the views, and compare.")
    ] = False,
    count: Annotated[
        int, typer.Option("--count", min=1, help="How many views --verify asks about.")
    ] = 256,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Ask a teacher ahead of time about every view of your images, so that `distill` never needs it.

    Example: deitctl teach photos/ --teacher regnety_160 --views 8
    """
    from deitctl.cli.console import (
        choose_format,
        left_out_code,
        print_json,
        print_line,
        print_table,
        rerun_on_interruption,
    )
    from deitctl.cli.progress import make_reporter
    from deitctl.cli.run_training import FORMATS
    from deitctl.distillation.precompute import teach as run
    from deitctl.distillation.precompute import verify as run_verify
    from deitctl.distributed import is_distributed, is_main_process
    from deitctl.errors import ConfigError
    from deitctl.training.configure import Request, Teaching, configure

    shape = choose_format(output_format, FORMATS, "json")
    if mode == "none":
        raise ConfigError("--mode none has no teacher.", "Use hard or soft.")
    reporter = make_reporter(quiet)
    teaching = Teaching(
        teacher=teacher or "",
        weights=str(teacher_weights or ""),
        mode=mode or "",
        tau=tau,
        adapt=adapt or "",
        img_size=teacher_img_size,
        sees="unmixed",
        views=views,
        view_seed=view_seed,
        topk=words_topk,
        cache=teacher_cache or "",
        force=force_teacher,
    )
    given = o.training_settings(epochs, None, None, None, seed, workers, device, precision)
    request = Request(
        data=data or "",
        model=student or "",
        recipe=recipe or "",
        pretrained=pretrained,
        teaching=teaching,
        weights=str(weights or ""),
        given=given,
        changes=changes or (),
    )
    unreadable: tuple[str, ...] = ()
    with rerun_on_interruption():
        config, *datasets = configure(request, reporter)
        pair = (datasets[0], datasets[1])
        if verify and is_distributed():
            raise ConfigError("--verify is for one process.", "Run it without torchrun.")
        if verify:
            checked = run_verify(
                config, pair, count=count, batch_size=batch_size, reporter=reporter
            )
            record, title = checked.to_dict(), "the teacher still says what its cache has"
        else:
            done = run(config, pair, batch_size=batch_size, reporter=reporter)
            record, title, unreadable = (
                done.to_dict(),
                f"the words of {done.teacher.name}",
                done.unreadable,
            )
    exit_code = left_out_code(len(unreadable))
    if not is_main_process():
        raise typer.Exit(exit_code)
    for name in unreadable:
        reporter.warn(f"no words: {name} cannot be read.")
    if shape == "json":
        print_json(record)
        raise typer.Exit(exit_code)
    rows = [(k.replace("_", " "), str(v)) for k, v in record.items() if not isinstance(v, dict)]
    print_table(title, ("what", "value"), rows, 2)
    if not verify and config.distill is not None:
        views_used = config.distill.views
        print_line(
            f"deitctl distill with the same options, --recipe {config.recipe.name} --views {views_used}, uses them."
        )
    raise typer.Exit(exit_code)
