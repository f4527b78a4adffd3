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
        values = flatten(to_json(environment))
        for extra, missing in environment.missing_packages.items():
            del values[f"missing_packages.{extra}"]
            install = f"missing: pip install {' '.join(missing)}"
            values[f"extra.{extra}"] = install if missing else "installed"
        del values["gpus"]
        for index, gpu in enumerate(environment.gpus):
            values[f"cuda:{index}"] = f"{gpu.name}, {gpu.memory_mib:,} MiB, {gpu.capability}"
        print_values("deitctl doctor", values)
    print_next(["bench", "--model", "deit_tiny"], shape=shape, quiet=quiet)
