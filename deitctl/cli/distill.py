"""deitctl distill"""

from __future__ import annotations

from typing import Any

from deitctl import api
from deitctl.cli import options as o
from deitctl.cli.train import run_training


@o.take_options(api.distill)
def distill(
    arguments: dict[str, Any],
    changes: o.SetOpt = None,
    dry_run: o.DryRunOpt = False,
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Train a DeiT that also learns from a teacher, through its distillation token.

    Example: deitctl distill photos/ --teacher regnety_160 --student deit_small
    """
    run_training(
        api.distill, arguments, changes, dry_run=dry_run, output_format=output_format, quiet=quiet
    )
