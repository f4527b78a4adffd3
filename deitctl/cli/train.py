"""deitctl train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deitctl.cli import options as o


def train(
    data: o.DataArg = None,
    model: o.ModelOpt = None,
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
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            help="Take the step of RUN/incidents/STEP again and say what happens in it.",
            show_default=False,
        ),
    ] = None,
    changes: o.SetOpt = None,
    dry_run: o.DryRunOpt = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a classifier on your images.

    Example: deitctl train photos/ --model deit_tiny --epochs 10
    """
    from deitctl.cli.run_training import run, run_replay

    given = o.training_settings(
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
    )
    if replay is not None:
        named = {
            "data": data,
            "model": model,
            "recipe": recipe,
            "pretrained": pretrained,
            "weights": weights,
            "output": output,
            "resume": resume,
            "config": config,
            "set": changes,
            "dry_run": dry_run or None,
        }
        run_replay(replay, {**given, **named}, output_format=output_format, quiet=quiet)
        return
    run(
        data=data,
        model=model,
        weights=weights,
        recipe=recipe,
        pretrained=pretrained,
        teaching=None,
        output=output,
        resume=resume,
        config=config,
        changes=changes or (),
        dry_run=dry_run,
        output_format=output_format,
        quiet=quiet,
        given=given,
    )
