"""A step that went wrong, written down so that it can be taken again: what happened, and the state from before it."""

from __future__ import annotations

import math
import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deitctl.data.samplers import SampleKey
from deitctl.errors import ConfigError
from deitctl.paths import read_json, write_json
from deitctl.training.monitor import Incident
from deitctl.training.run_dir import Run

RECORD = "record.json"
FORMAT = 1


def write_incident(
    run: Run, incident: Incident, keys: list[SampleKey], images: list[str], how: dict[str, Any]
) -> Path:
    """Write incidents/step-N of a run: the record, and the last good state, which later saves do not touch.

    Args:
        run: the run.
        incident: what happened.
        keys: of the step's images, of all processes.
        images: their names.
        how: the machine's part: precision, device, processes, micro-batch.

    Returns:
        The record's path.
    """
    folder = run.root / "incidents" / f"step-{incident.step:07d}"
    shutil.rmtree(folder, ignore_errors=True)
    record = {
        "format": FORMAT,
        "run": str(run.root.resolve()),
        **asdict(incident),
        **how,
        "keys": [list(key) for key in keys],
        "images": images,
    }
    write_json(folder / RECORD, speakable(record))
    if run.state.exists():
        shutil.copytree(run.state, folder / "state", copy_function=_link)
    return folder / RECORD


def speakable(value: Any) -> Any:
    """Return a value with numbers that JSON has no word for as text: `nan`, `inf`, `-inf`."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: speakable(v) for k, v in value.items()}
    return [speakable(v) for v in value] if isinstance(value, list | tuple) else value


def _link(source: str, target: str) -> None:
    """Give a file a second name, or where the file system has none, a copy; states are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def read_incident(path: Path) -> dict[str, Any]:
    """Return a record that `write_incident` wrote, or raise `ConfigError`; the folder of one will do."""
    if (path / "incidents").is_dir():
        known = " ".join(sorted(str(p) for p in (path / "incidents").iterdir()))
        raise ConfigError(f"{path} is a run, not one of its incidents.", f"It has: {known}.")
    path = path / RECORD if path.is_dir() else path
    try:
        record = read_json(path)
        fits = record["format"] == FORMAT and isinstance(record["step"], int)
        fits = fits and isinstance(record["run"], str) and isinstance(record["kind"], str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no record of an incident: {error}.", "It lies in RUN/incidents/step-N."
        ) from error
    if not fits:
        raise ConfigError(f"{path} is no record of an incident that this deitctl reads.")
    return dict(record)


def ways_on(incident: Incident, run: Run, precision: str, lr: float) -> str:
    """Say how to go on after a step that went wrong, likeliest first, in commands to be copied."""
    config = shlex.quote(str(run.config_file))
    again = (
        f"deitctl train --config {config} --output NEW --lr {lr / 3:.2g} --set optim.clip_grad=1"
    )
    ways = [f"Most often the learning rate is too high: `{again}`."]
    if precision != "fp32":
        ways.append(
            f"If it was the arithmetic: `deitctl train --resume {run.quoted} --precision fp32`."
        )
    if incident.kind == "jump":
        ways.append(
            f"If it is as it should be: `deitctl train --resume {run.quoted} --set loss_spike_factor=0`."
        )
    return " ".join(ways)
