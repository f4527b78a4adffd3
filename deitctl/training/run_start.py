"""How a run starts in its folder, which it locks; and what an interrupted one says."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from deitctl.config import TrainConfig
from deitctl.data.run_data import SPLIT_FILE, write_split
from deitctl.data.unlabeled import select_labeled
from deitctl.distributed import is_distributed, launch_id
from deitctl.errors import Interrupted, LoaderLost, Signalled
from deitctl.events import Reporter
from deitctl.lock import locked
from deitctl.paths import DiskError, write_bytes
from deitctl.training.extensions import Extensions, keep_names
from deitctl.training.opened_data import Datasets, store_settled
from deitctl.training.run_dir import NOTHING_SAVED, Run


@contextmanager
def lock_run(run: Run, reporter: Reporter) -> Iterator[None]:
    """Lock a run's folder in the process that writes into it."""
    if not run.writes:
        yield
        return
    run.require_creatable()
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run.lock_file, what=str(run.root), reporter=reporter))
        except OSError as error:
            raise DiskError.from_os_error(run.root, error) from error
        yield


def begin_run(
    run: Run,
    config: TrainConfig,
    datasets: Datasets,
    reporter: Reporter,
    extensions: Extensions,
    *,
    resume: bool,
) -> None:
    """Write what a run begins with, in the process that writes into its folder."""
    # A run without a checkpoint begins again, with the data as it is now.
    goes_on = resume and run.saved_position() is not None
    if resume:
        again = "" if goes_on else " It has no checkpoint, so that it begins again."
        reporter.note(f"Resuming {run.root}.{again}")
    if not run.writes:
        return
    if not resume:
        # Before the teacher is fine-tuned, because the folder may not be writable.
        Run.create(run.root, config)
        keep_names(run.root, extensions)
    elif not goes_on:
        store_settled(run, config)
    if not (goes_on and (run.root / SPLIT_FILE).exists()):
        write_split(run.root, select_labeled(datasets[0]), datasets[1])
    if not resume:
        run.cut_log(0)  # of a run that was killed before its first checkpoint
        write_bytes(run.launch_id_file, name_launch().encode())


@contextmanager
def explain_stop(run: Run) -> Iterator[None]:
    """Name the command that goes on with a run where it is interrupted, or its loaders are lost."""
    command = f"deitctl train --resume {run.quoted}"
    try:
        yield
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        raise Interrupted(signum, command, _describe_saved(run, stop)) from stop
    except LoaderLost as error:
        hint = error.hint.partition(" To go on:")[0]
        raise LoaderLost(error.message, f"{hint} To go on: {command} --workers 0") from error


def _describe_saved(run: Run, stop: BaseException) -> str:
    """Return what an interrupted run has saved, as a sentence; a teacher that was in training has its own run."""
    if not run.writes:
        return ""
    saved = stop.saved if isinstance(stop, Interrupted) and run.saved_position() is None else ""
    if saved not in ("", NOTHING_SAVED):
        return "Nothing of the student was saved yet; the training of its teacher goes on where it stopped."
    return run.describe_saved()


def name_launch() -> str:
    """Return the launch of several processes that this one is of, empty for a single one."""
    return launch_id() if is_distributed() else ""
