"""The application: its commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import deitctl
from deitctl.cli import (
    bench,
    check,
    compare,
    distill,
    doctor,
    evaluate,
    explain,
    export,
    models,
    pack,
    predict,
    push,
    teach,
    train,
    verify,
)
from deitctl.cli.console import error_line
from deitctl.cli.overview import Overview
from deitctl.errors import ConfigError, DeitctlError, Interrupted, Signalled

app = typer.Typer(
    name="deitctl",
    cls=Overview,
    help="Train, distill, evaluate, use and ship DeiT image classifiers.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("distill")(distill.distill)
app.command("teach")(teach.teach)
app.command("compare")(compare.compare)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("check")(check.check)
app.command("pack")(pack.pack)
app.command("predict")(predict.predict)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("push")(push.push)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"deitctl {deitctl.__version__}\n")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _stop(signum: int, _: FrameType | None) -> None:
    raise Signalled(signum)


def _let_signals_end_it() -> None:
    """Have a signal that comes while the last words are said end the process, where it would be a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _require_one_process(arguments: list[str]) -> None:
    """Refuse to do the same work several times over, where torchrun starts a command that cannot share it."""
    shared = ("train", "distill", "teach", "eval")
    command = next((a for a in arguments if not a.startswith("-")), "")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and command not in shared:
        raise ConfigError(
            f"{command or 'This'} works in one process.", f"torchrun is for {', '.join(shared)}."
        )


def main() -> None:
    """Run the command line; never show a traceback for a user's mistake, unless --debug asks for it."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be text
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(
        signal, "SIGUSR1"
    ):  # Slurm's warning of the end, which would end what has nothing to save yet
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        _require_one_process(arguments)
        app(args=arguments, prog_name="deitctl")
    except (Signalled, Interrupted) as stop:
        _let_signals_end_it()
        error_line(stop if isinstance(stop, Interrupted) else Interrupted(stop.signum))
        sys.stdout.flush()
        os._exit(128 + stop.signum)  # a normal exit would wait for threads that fetch and decode
    except (DeitctlError, OSError) as error:
        _let_signals_end_it()
        if debug:
            raise
        error_line(error)
        sys.exit(error.exit_code if isinstance(error, DeitctlError) else 1)
    except (RuntimeError, MemoryError) as error:  # RecursionError among them
        from deitctl.device import ran_out_of_memory

        if debug or not (isinstance(error, RecursionError) or ran_out_of_memory(error)):
            raise
        _let_signals_end_it()
        deep = isinstance(error, RecursionError)
        what = "an end to how deep this is nested" if deep else "enough memory for this"
        error_line(
            DeitctlError(
                f"There is not {what}.",
                "Use smaller batches, inputs or models; --debug shows where.",
            )
        )
        sys.exit(1)
