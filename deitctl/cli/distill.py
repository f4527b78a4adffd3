"""deitctl distill"""

from __future__ import annotations

from typing import Annotated

import typer

from deitctl.cli import options as o


def distill(
    data: o.DataArg = None,
    teacher: o.TeacherOpt = None,
    student: o.StudentOpt = None,
    teacher_weights: o.TeacherWeightsOpt = None,
    teacher_img_size: o.TeacherSizeOpt = None,
    adapt: o.AdaptOpt = None,
    mode: o.ModeOpt = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", help="Weight of the teacher's term.", show_default="hard 0.5, soft 0.1"
        ),
    ] = None,
    tau: o.TauOpt = None,
    reduction: Annotated[
        str | None,
        typer.Option(
            "--reduction",
            help="batchmean (the paper's) or mean (its code's, K times weaker).",
            show_default="batchmean",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Teach the class head itself; no distillation token.")
    ] = False,
    teacher_input: o.TeacherSeesOpt = None,
    views: o.ViewsOpt = None,
    view_seed: o.ViewSeedOpt = None,
    words_topk: o.TopkWordsOpt = None,
    teacher_cache: o.CacheOpt = None,
    force_teacher: o.ForceTeacherOpt = False,
    recipe: o.RecipeOpt = None,
    pretrained: o.PretrainedOpt = None,
    weights: o.WeightsOpt = None,
    epochs: o.EpochsOpt = None,
    batch_size: o.BatchSizeOrAutoOpt = None,
    lr: o.LrOpt = None,
    img_size: o.ImgSizeOpt = None,
    seed: o.SeedOpt = None,
    workers: o.WorkersOpt = None,
    device: o.DeviceOfRunOpt = None,
    precision: o.PrecisionOfRunOpt = None,
    compiled: o.CompileOpt = None,
    micro_batch: o.MicroBatchOpt = None,
    on_bad_image: o.OnBadImageOpt = None,
    save_every: o.SaveEveryOpt = None,
    output: o.OutputRunOpt = None,
    resume: o.ResumeOpt = None,
    config: o.ConfigOpt = None,
    changes: o.SetOpt = None,
    dry_run: o.DryRunOpt = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a DeiT that also learns from a teacher's answers, through its distillation token.

    Example: deitctl distill photos/ --teacher regnety_160 --student deit_small
    """
    from deitctl.cli.run_training import run
    from deitctl.training.configure import Teaching

    said = {
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "teacher_img_size": teacher_img_size,
        "adapt": adapt,
        "mode": mode,
        "alpha": alpha,
        "tau": tau,
        "reduction": reduction,
        "no_token": no_token or None,
        "teacher_input": teacher_input,
        "views": views,
        "view_seed": view_seed,
        "words_topk": words_topk,
        "teacher_cache": teacher_cache,
        "force_teacher": force_teacher or None,
    }
    teaching = None
    if mode != "none":
        teaching = Teaching(
            teacher=teacher or "",
            weights=str(teacher_weights) if teacher_weights else "",
            mode=mode or "",
            alpha=alpha,
            tau=tau,
            reduction=reduction or "",
            token=not no_token,
            adapt=adapt or "",
            img_size=teacher_img_size,
            sees=teacher_input or "",
            views=views,
            view_seed=view_seed,
            topk=words_topk,
            cache=teacher_cache or "",
            force=force_teacher,
        )
    run(
        data=data,
        model=student,
        weights=weights,
        recipe=recipe,
        pretrained=pretrained,
        teaching=teaching,
        output=output,
        resume=resume,
        config=config,
        changes=changes or (),
        dry_run=dry_run,
        output_format=output_format,
        quiet=quiet,
        given=o.training_settings(
            epochs,
            batch_size,
            lr,
            img_size,
            seed,
            workers,
            device,
            precision,
            save_every,
            micro_batch,
            on_bad_image,
            compiled,
        ),
        said_of_the_teacher=said,
    )
