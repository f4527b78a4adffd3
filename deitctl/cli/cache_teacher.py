"""deitctl cache-teacher"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deitctl import api
from deitctl.cli import options as o
from deitctl.cli.console import (
    KEPT,
    choose_format,
    exit_code_for_unreadable,
    print_json,
    print_next,
    print_record,
    rerun_on_interruption,
)
from deitctl.cli.progress import make_reporter
from deitctl.config import MACHINE
from deitctl.records import to_object
from deitctl.settings import parse_overrides


@o.take_options(api.cache_teacher)
def cache_teacher(
    arguments: dict[str, Any],
    changes: o.SetOpt = None,
    batch_size: Annotated[
        int, o.option("--batch-size", help="Views at a time.", panel=MACHINE, min=1)
    ] = 64,
    verify: Annotated[
        bool, o.option("--verify", help="Compute some of the cached targets again, and compare.")
    ] = False,
    num_images: Annotated[
        int, o.option("--num-images", help="Views that --verify computes again.", min=1)
    ] = 256,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Compute and store a teacher's targets for every view, so that `distill` never loads it.

    Example: deitctl cache-teacher photos/ --teacher regnety_160 --views 8
    """
    shape, reporter = choose_format(output_format, o.FORMATS), make_reporter(quiet)
    distill = dict(arguments)
    arguments |= {**parse_overrides(changes or ()), "batch_size": batch_size, "reporter": reporter}
    if verify:
        with rerun_on_interruption():
            verification = api.verify_teacher_cache(**arguments, num_images=num_images)
        if shape == "json":
            print_json(to_object(verification))
        else:
            print_record("the teacher still gives the cached targets", verification)
        return
    with rerun_on_interruption(KEPT):
        result = api.cache_teacher(**arguments)
    from deitctl.distributed import is_main_process

    if is_main_process():
        for name in result.unreadable:
            reporter.warn(f"targets are missing: {name} cannot be read, or is damaged.")
        if shape == "json":
            print_json(to_object(result))
        else:
            print_record(f"targets of {result.teacher.name}", result)
            # Named even if they were chosen by the data: other views are not in this cache.
            distill |= {"recipe": distill.get("recipe") or result.recipe, "views": result.num_views}
            sets = [word for change in changes or () for word in ("--set", change)]
            print_next(["distill", *o.spell_options(distill), *sets], shape=shape, quiet=quiet)
    raise typer.Exit(exit_code_for_unreadable(len(result.unreadable)))
