"""What a run leaves behind when something ends it: a state to go on from, and a line that says how."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deitctl.arithmetic import explain_nondeterminism
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.device import ran_out_of_memory
from deitctl.distributed import ProcessLost, announce_failure
from deitctl.errors import ConfigError, DataError, DeitctlError, Signalled
from deitctl.launchers import count_local_processes
from deitctl.paths import DiskError
from deitctl.training.extensions import FILE
from deitctl.training.incident import suggest_remedies, write_incident
from deitctl.training.monitor import Incident, TrainingDiverged

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer

WAIT_S = 10.0
"""For other processes, without which a state that is divided among them is not saved."""


@contextmanager
def leave_resumable(trainer: Trainer) -> Iterator[None]:
    """Save what is in memory whatever ends the block, and say what was saved and how to go on."""
    try:
        with _closing_loaders(trainer):
            yield
    except (Signalled, KeyboardInterrupt) as signalled:
        if not getattr(signalled, "insists", False):  # a repeated signal may come within a step
            save_if_good(trainer)
        raise
    except ProcessLost:
        # Of several processes that are stopped, one may exit before the others have seen their signal.
        # What an accelerator has not computed may wait for the process that is lost, and forever.
        trainer.monitor.read_ready(max_unread=len(trainer.monitor.unread))
        if not trainer.monitor.unread:
            save_if_good(trainer)
        trainer.signals.raise_if_set()
        raise
    except TrainingDiverged as diverged:
        raise record_incident(trainer, diverged.incident) from None
    except Exception as error:
        explained = _save_and_explain(trainer, error)
        if explained is error:
            raise
        raise explained from error
    except BaseException:  # SystemExit of a reporter, and its kind
        save_if_good(trainer)
        raise


@contextmanager
def _closing_loaders(trainer: Trainer) -> Iterator[None]:
    """End loader processes if something ends the block: their memory may be what saving needs."""
    try:
        yield
    except BaseException:
        trainer.loaders.close()
        raise


def save_if_good(trainer: Trainer) -> None:
    """Save the state if it is that after a whole step, and no step so far has diverged."""
    if trainer.is_between_steps and trainer.monitor.find_incident() is None:
        trainer.state.progress.seconds = time.monotonic() - trainer.start_time
        trainer.checkpointer.save(trainer.state, wait_s=WAIT_S)


def name_resume(trainer: Trainer) -> str:
    """Return what continues a run: a command, or a call of what has objects of a program's."""
    run = trainer.run
    if trainer.config.data.startswith(PREFIX) or (run.root / FILE).exists():
        return f"deitctl.train(..., resume={str(run.root)!r}) with the same objects"
    command = f"deitctl train --resume {run.quoted}"
    if trainer.state.sharding is None:
        return command
    # One process is refused, whose memory might not hold what several hold.
    return f"torchrun --nproc-per-node {count_local_processes()} -m {command}"


def _save_and_explain(trainer: Trainer, error: Exception) -> Exception:
    """Save the state after a failure that has not touched it; return the error with the way on."""
    run, config = trainer.run, trainer.config
    resume = name_resume(trainer)
    if isinstance(error, DeitctlError) and resume in error.hint:
        return error  # of a checkpoint that could not be written, and is not tried again
    # Where memory ran out, the gradients' is what a saving needs.
    trainer.state.optimizer.zero_grad(set_to_none=True)
    try:
        save_if_good(trainer)
    except Exception as other:  # the first failure is the one to report
        error.add_note(f"The state could not be saved either: {other}")
    # Of several processes the main one saves, perhaps at this moment.
    saved = run.describe_saved() if run.writes else ""
    if isinstance(error, DiskError):
        return run.explain_full_disk(error)
    if isinstance(error, DataError):
        stops = config.on_bad_image == "stop"
        ways = f"Repair it, then: {resume}. To leave such images out: {resume} --on-bad-image skip"
        hint = f"{error.hint} {ways}" if stops else f"{error.hint} To go on: {resume}"
        return DataError(f"{error.message} {saved}".strip(), hint)
    if isinstance(error, DeitctlError):
        return type(error)(f"{error.message} {saved}".strip(), f"{error.hint} To go on: {resume}")
    if (explained := explain_nondeterminism(error)) is not None:
        hint = f"{explained.hint} To go on: {resume} --no-deterministic"
        return ConfigError(f"{explained.message} {saved}".strip(), hint)
    if ran_out_of_memory(error):
        return _explain_memory(trainer, saved, resume)
    # Of the caller's data set or reporter, or a fault of ours: no line, but a traceback.
    error.add_note(f"{saved} To go on: {resume}")
    return error


def _explain_memory(trainer: Trainer, saved: str, resume: str) -> DeitctlError:
    """Return the error of memory that ran out outside of a batch, of which the other processes learn too."""
    world = trainer.world
    where = f" in process {world.rank}" if world.size > 1 else ""
    failure = DeitctlError(
        f"There is not enough memory{where} to go on. {saved}".strip(),
        f"With less at a time: {resume} --micro-batch-size 2 --workers 0",
    )
    announce_failure(failure)
    return failure


def record_incident(trainer: Trainer, incident: Incident) -> DeitctlError:
    """Write what a replay needs, and return the error."""
    record, outcome = trainer.run.root / "incidents", "No checkpoint was saved before it."
    keys = [key for keys in trainer.world.all_gather_object(incident.keys) for key in keys]
    if trainer.world.is_main:
        trainer.checkpointer.finish()
        checkpoint_step = max(trainer.checkpointer.saved_step, trainer.start_step)
        machine = {
            "precision": trainer.device.precision,
            "device": str(trainer.device.torch_device),
            "num_processes": trainer.world.size,
            "micro_batch_size": trainer.context.micro_batch_size(trainer.state),
            "checkpoint_step": checkpoint_step,
        }
        names = [trainer.setup.train.name(key.index) for key in keys]
        record = write_incident(trainer.run, incident, keys, names, machine)
        if checkpoint_step:
            outcome = f"The checkpoint is of step {checkpoint_step}."
    hint = suggest_remedies(incident, trainer.run, trainer.device.precision, trainer.config)
    replay = f"deitctl train --replay {shlex.quote(str(record))}"
    return DeitctlError(f"{incident.message} {outcome} To repeat the step: `{replay}`.", hint)
