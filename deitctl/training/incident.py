"""Records of diverged steps, each with the last good checkpoint, from which `replay` starts."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.data.samplers import SampleKey
from deitctl.errors import ConfigError
from deitctl.paths import read_json, refuse_links, suggest_path, write_json
from deitctl.records import SCHEMA_VERSION, to_object
from deitctl.training.configure import name_command
from deitctl.training.monitor import LOSS_SPIKE, NON_FINITE, Incident
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import FILES, SHARDS

RECORD = "record.json"


def write_incident(
    run: Run, incident: Incident, keys: list[SampleKey], images: list[str], machine: dict[str, Any]
) -> Path:
    """Write incidents/step-N of a run.

    Args:
        run: the run.
        incident: what happened.
        keys: of the step's images, of all processes.
        images: names of the same.
        machine: precision, device, processes, micro-batch size, step of the checkpoint.

    Returns:
        The record's path.
    """
    folder = run.incidents / f"step-{incident.step:07d}"
    refuse_links(run.root, [f"{run.incidents.name}/{folder.name}"])
    shutil.rmtree(folder, ignore_errors=True)
    # NaN and infinite numbers become null; the message has them.
    record = to_object(incident) | machine | {"message": incident.message}
    record |= {"run": str(run.root.resolve()), "keys": [list(k) for k in keys], "images": images}
    write_json(folder / RECORD, record)
    _copy_checkpoint(run.checkpoint, folder / "checkpoint")
    return folder / RECORD


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint's own files: the run's next checkpoints do not replace them there."""
    files = [*(source / name for name in FILES), *source.glob(SHARDS)]
    # No links: what they name would go where the run goes.
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    if files:
        target.mkdir()
    for file in files:
        # A hard link costs no space, and is safe: a checkpoint's files are replaced, never modified.
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def read_incident(path: Path) -> dict[str, Any]:
    """Read the record at a path or in a folder; raise `ConfigError` for anything else."""
    if (incidents := Run(path).incidents).is_dir():
        existing = " ".join(sorted(str(p) for p in incidents.iterdir()))
        raise ConfigError(f"{path} is a run, not one of its incidents.", f"It has: {existing}.")
    path = path / RECORD if path.is_dir() else path
    try:
        record = read_json(path)
        valid = (
            record["schema_version"] == SCHEMA_VERSION
            and isinstance(record["step"], int)
            and isinstance(record["run"], str)
            and record["kind"] in (NON_FINITE, LOSS_SPIKE)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no record of an incident: {error}.",
            suggest_path(path) or "It lies in RUN/incidents/step-N.",
        ) from error
    if not valid:
        raise ConfigError(f"{path} is no record of an incident that this deitctl reads.")
    return dict(record)


def suggest_remedies(incident: Incident, run: Run, precision: str, config: TrainConfig) -> str:
    """Return commands that may train past a diverged step, likeliest first."""
    lower = (
        f"{name_command(config)} --config {shlex.quote(str(run.config_file))} --output NEW "
        f"--lr {config.recipe.optim.lr / 3:.2g} --set optim.clip_grad=1"
    )
    remedies = [f"Most often the learning rate is too high: `{lower}`."]
    resume = f"deitctl train --resume {run.quoted}"
    if precision != "fp32":
        remedies.append(f"If the precision is too low: `{resume} --precision fp32`.")
    if incident.kind == LOSS_SPIKE:
        remedies.append(f"If such a loss is normal here: `{resume} --set loss_spike_factor=0`.")
    return " ".join(remedies)
