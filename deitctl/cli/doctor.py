"""deitctl doctor"""

from __future__ import annotations

from deitctl.cli import options as o


def doctor(
    device: o.DeviceOpt = "auto",
    precision: o.PrecisionOpt = "auto",
    output_format: o.FormatOpt = None,
) -> None:
    """Say what deitctl found on this machine, what it will use, and why.

    Example: deitctl doctor
    """
    from deitctl.cli.console import choose_format, print_json, print_table
    from deitctl.cli.run_training import FORMATS
    from deitctl.profiling.environment import collect_env

    shape = choose_format(output_format, FORMATS, "json")
    findings = collect_env(device, precision)
    if shape == "json":
        print_json(findings)
    else:
        print_table(
            "deitctl doctor", ("what", "found"), [(k, str(v)) for k, v in findings.items()], 2
        )
