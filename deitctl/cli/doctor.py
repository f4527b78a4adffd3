"""deitctl doctor"""

from __future__ import annotations

import deitctl
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_next, print_values
from deitctl.records import to_json, to_object
from deitctl.settings import flatten


def doctor(
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """Print what is on this machine, what deitctl uses of it, and why.

    Example: deitctl doctor
    """
    shape = choose_format(output_format, o.FORMATS)
    environment = deitctl.collect_env(device, precision)
    if shape == "json":
        print_json(to_object(environment))
    else:
        extras = {
            f"extras.{extra}": f"lacks {', '.join(missing)}" if missing else "installed"
            for extra, missing in environment.extras.items()
        }
        print_values("deitctl doctor", flatten(to_json(environment)) | extras)
    print_next(["bench", "--model", "deit_tiny"], shape=shape, quiet=quiet)
