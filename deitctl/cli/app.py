"""The application: its commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import deitctl
from deitctl.cli import (
    bench,
    cache_teacher,
    check,
    distill,
    doctor,
    evaluate,
    explain,
    export,
    interrupts,
    list_recipes,
    list_runs,
    models,
    pack,
    predict,
    push,
    rank_teachers,
    reproduce,
    sweep,
    train,
    verify,
)
from deitctl.cli.console import print_error
from deitctl.cli.options import describe_defaults, spell_switches
from deitctl.cli.streams import prepare_streams
from deitctl.errors import DeitctlError, Interrupted, Signalled, UsageError
from deitctl.home import provide_folders
from deitctl.launchers import read_rank, require_torchrun
from deitctl.settings import list_options, list_settings

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "distill": distill.distill,
    "cache-teacher": cache_teacher.cache_teacher,
    "rank-teachers": rank_teachers.rank_teachers,
    "sweep": sweep.sweep,
    "runs": list_runs.runs,
    "reproduce": reproduce.reproduce,
    "eval": evaluate.evaluate,
    "bench": bench.bench,
    "check": check.check,
    "pack": pack.pack,
    "predict": predict.predict,
    "explain": explain.explain,
    "export": export.export,
    "verify": verify.verify,
    "push": push.push,
    "models": models.models,
    "recipes": list_recipes.recipes,
    "doctor": doctor.doctor,
}
SETTING_COMMANDS = ("train", "distill", "cache-teacher", "rank-teachers", "sweep", "bench")
"""Those with --set."""
DISTRIBUTED_COMMANDS = ("train", "distill", "cache-teacher", "eval")
RENAMED = {"compare": ("sweep", "--preset", "deit-table3")}
"""Commands that there were, and the words that stand for them now."""


class Command(TyperCommand):
    """A command, whose options of a value may be written as the switches that they were before."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        return super().parse_args(ctx, spell_switches(args))


class LazyCommands(Mapping[str, Any]):
    """The commands by name, built when they are read: the options of all of them would take a third of `--help`."""

    def __getitem__(self, name: str) -> Any:
        single = typer.Typer(add_completion=False)
        single.command(name, cls=Command)(COMMANDS[name])
        command = typer.main.get_command(single)
        describe_defaults(command)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Overview(TyperGroup):
    """The page of `deitctl --help`, written without Rich, whose import takes longer than everything else there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = LazyCommands()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the page where no command is named; Typer leaves that to Rich."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; of one that was renamed, say what it is now."""
        if args and args[0] in RENAMED:
            now = shlex.join(["deitctl", *RENAMED[args[0]], *args[1:]])
            raise UsageError(f"`deitctl {args[0]}` is another command now.", f"Use: {now}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, options and commands as plain text."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row a command: its name, in color where a terminal shows one, and its first sentence."""
        rows = []
        for name, command in COMMANDS.items():
            sentence = (inspect.getdoc(command) or "").partition(".")[0]
            rows.append((typer.style(name, fg="cyan", bold=True), f"{' '.join(sentence.split())}."))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="deitctl",
    cls=Overview,
    help="Train, distill, evaluate, use and ship DeiT image classifiers.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(version: bool) -> None:
    if version:
        sys.stdout.write(f"deitctl {deitctl.__version__}\n")
        raise typer.Exit


@app.callback()
def _set_global_options(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; before the command.")
    ] = False,
) -> None:
    command = ctx.invoked_subcommand or ""
    _require_one_process(command)
    if command in (*DISTRIBUTED_COMMANDS, "sweep") and not {"-h", "--help"} & set(sys.argv):
        require_torchrun(sys.argv[1:], is_distributed=command in DISTRIBUTED_COMMANDS)
    global _debug
    _debug = debug


_debug = False


def _require_one_process(command: str) -> None:
    """Refuse a command that torchrun starts in several processes, each of which would do all of the work."""
    size, _, _ = map(read_rank, ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if size > 1 and command not in DISTRIBUTED_COMMANDS:
        raise UsageError(
            f"{command or 'This'} works in one process.",
            f"torchrun is for {', '.join(DISTRIBUTED_COMMANDS)}.",
        )


SHARD_ENDS = (".tar", ".parquet", ".arrow")
"""Of files that a shell makes of `x-{000..146}.tar` without quotes."""
TyperUsageError: Any = typer.BadParameter.__base__
PLAIN_WORDS = (
    (r"^Invalid value for '(--[\w-]+)'.*?: ", r"\1: "),
    (r"Input should be a valid integer.*", "not a whole number"),
    (r"Input should be a valid number.*", "not a number"),
    (r"Input should be greater than or equal to (\S+)", r"it must be at least \1"),
    (r"Input should be less than or equal to (\S+)", r"it must be at most \1"),
)
"""What Typer says, and pydantic in it, and what we say."""


def _describe_usage_error(error: Any) -> UsageError:
    """Return an error of Typer as one of ours: what is wrong, and where the options are listed."""
    message = error.format_message().strip().rstrip(".")
    for theirs, ours in PLAIN_WORDS:
        message = re.sub(theirs, ours, message, flags=re.DOTALL)
    command = next((word for word in sys.argv[1:] if word in COMMANDS), "")
    hint = f"See `{' '.join(['deitctl', *command.split(), '--help'])}`."
    flag = getattr(error, "option_name", "")
    shards = [word for word in sys.argv[1:] if word.endswith(SHARD_ENDS)]
    if len(shards) > 1 and "extra argument" in message:
        start = os.path.commonprefix(shards)  # noqa: RUF071  # of names, not of folders
        end = os.path.splitext(shards[0])[1]
        return UsageError(
            f"The shell made {len(shards):,} arguments of a pattern of shards, and DATA is one.",
            f"Put it into quotes, '{start}{{...}}{end}' or '{start}*{end}'.",
        )
    if command == "train" and flag in _list_teacher_flags():
        return UsageError(
            f"{flag} is an option of `deitctl distill`, which has a teacher.",
            f"Leave it out, or: deitctl distill DATA --teacher NAME{'' if flag == '--teacher' else f' {flag}'} ...",
        )
    name = flag.removeprefix("--").replace("-", "_")
    same = [s.name.removeprefix("recipe.") for s in list_settings() if s.name.endswith(f".{name}")]
    if name and same and command in SETTING_COMMANDS:
        hint = f"Use --set {same[0]}=VALUE."
    return UsageError(message if message.endswith("?") else f"{message}.", hint)


def _list_teacher_flags() -> set[str]:
    """Return the options of a teacher and of how a student learns from it."""
    settings = list_options().values()
    flags = {f for s in settings if s.name.startswith("distill.") for f in s.flag.split("/")}
    return {*flags, "--student"}


NO_ROOM_FOR_LIBRARY = ("failed to map segment", "annot allocate memory")
"""What the dynamic linker says."""


def _describe_limit(error: Exception) -> DeitctlError | None:
    """Return an error of Python's about a limit of the system as one of ours, None for others."""
    if isinstance(error, ImportError) and any(text in str(error) for text in NO_ROOM_FOR_LIBRARY):
        return DeitctlError(
            "There is not enough memory to load PyTorch.",
            "Raise the limit (`ulimit -v`, `docker run --memory`).",
        )
    if str(error) == "can't start new thread":
        return DeitctlError(
            "No thread can be started: the limit of processes and threads is reached.",
            "Raise it (`ulimit -u`, `docker run --pids-limit`), or use fewer: --workers 0, OMP_NUM_THREADS=1.",
        )
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return DeitctlError(
            "There is no folder for temporary files that can be written.", "Name one with $TMPDIR."
        )
    return None


def _ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, ImportError):  # perhaps of torch, which the look at others imports
        return False
    from deitctl.device import ran_out_of_memory

    return ran_out_of_memory(error)


def _require_current_folder() -> None:
    """Raise `DeitctlError` if the current folder was deleted: libraries that torch loads would abort."""
    try:
        os.getcwd()
    except OSError as error:
        raise DeitctlError(
            f"The current folder cannot be read: {error.strerror}. It may have been deleted.",
            "Change to another: cd",
        ) from error


def main() -> None:
    """Prepare the process, its streams, signals and folders, and run the command line."""
    provide_folders()
    if prepare_streams():
        sys.stderr.write("warning: standard output is closed: what this prints is lost.\n")
    interrupts.install()
    interrupts.end_with_stdin()
    run_commands()


def run_commands() -> None:
    """Run the command line; never show a traceback for a user's mistake, unless --debug asks for it."""
    try:
        _require_current_folder()
        sys.exit(app(prog_name="deitctl", standalone_mode=False))
    except TyperUsageError as error:
        interrupts.restore()
        print_error(_describe_usage_error(error))
        sys.exit(2)
    except (Signalled, Interrupted) as stop:
        interrupts.restore()
        print_error(stop if isinstance(stop, Interrupted) else Interrupted(stop.signum))
        sys.stdout.flush()
        os._exit(128 + stop.signum)  # a normal exit would wait for threads that fetch and decode
    except (DeitctlError, OSError) as error:
        interrupts.restore()
        if _debug:
            _exit_with_traceback()
        print_error(_describe_limit(error) or error)
        _exit(error.exit_code if isinstance(error, DeitctlError) else 1)
    except (RuntimeError, MemoryError, ImportError) as error:  # RecursionError among them
        limit = _describe_limit(error)
        is_ours = isinstance(error, RecursionError) or limit or _ran_out_of_memory(error)
        interrupts.restore()
        if _debug or not is_ours:
            _exit_with_traceback()
        message = "There is not enough memory for this."
        if isinstance(error, RecursionError):
            message = "This is nested too deeply."
        elif isinstance(error, MemoryError) and str(error):
            message = str(error)
        hint = "Use smaller batches, inputs or models; deitctl --debug shows where."
        print_error(limit or DeitctlError(message, hint))
        _exit(1)
    except Exception:  # a fault of ours
        interrupts.restore()
        _exit_with_traceback()


def _exit_with_traceback() -> NoReturn:
    traceback.print_exc()
    _exit(1)


def _exit(code: int) -> NoReturn:
    """End the process after an error, without waiting for what may never end.

    That is a loader process in a read of a dead mount, or a collective of processes of which one hangs.
    """
    processes = sys.modules.get("multiprocessing")
    collectives = sys.modules.get("torch.distributed")
    has_loaders = processes is not None and processes.active_children()
    if has_loaders or getattr(collectives, "is_initialized", bool)():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
