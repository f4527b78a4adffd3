"""An sbatch file that trains each unfinished run of a sweep in a task of an array job."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from deitctl.errors import ConfigError
from deitctl.paths import read_text, write_bytes

WARNING_S = 120
"""Before the time limit, when a run saves and its task is queued again."""
TEMPLATE = """\
#!/bin/bash
# Trains each run of a sweep in a task of an array, which may be stopped at any moment.
# Written by: {command}
# The table, at any time: {command} --collect

#SBATCH --job-name={name}
#SBATCH --array=0-{last}{limit}
#SBATCH --output={logs}/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{warning_s}

# Edit these for your cluster:
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gres=gpu:1
##SBATCH --partition=NAME
##SBATCH --account=NAME

RUNS=(
{runs}
)
run="${{RUNS[${{SLURM_ARRAY_TASK_ID:?is set by sbatch}}]:-}}"
if [ -z "$run" ]; then
  echo "error: there is no run $SLURM_ARRAY_TASK_ID, only 0 to {last}" >&2
  exit 1
fi

# A finished run is left as it is; any other begins, or goes on from its last checkpoint.
if [ -e "$run/result.json" ]; then
  echo "$run is finished."
  exit 0
fi
# Slurm's warning before the time limit: save, stop, and queue this task again.
again=0
trap 'again=1; kill -TERM "$!"' USR1
trap 'kill -TERM "$!"' TERM
{python} -P -m deitctl train --resume "$run" --format json > /dev/null &
child=$!
wait "$child"
code=$?
# `wait` returns with the signal; the run is then still saving
while kill -0 "$child" 2> /dev/null; do
  wait "$child"
  code=$?
done
if [ "$again" = 1 ] && [ ! -e "$run/result.json" ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""

MARK = "# Until it is edited it is replaced when it is written again: "
"""Of the last line, before the digest of the lines above."""
MAX_SCRIPT = 2**24


def require_replaceable(script: Path) -> None:
    """Raise `ConfigError` if a file is there that is not ours, or has been edited."""
    try:
        text = read_text(script, MAX_SCRIPT)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        text = ""
    if _sign(text.rpartition(MARK)[0]) != text:
        raise ConfigError(
            f"{script} has been edited, or is another file, and is not overwritten.",
            "Delete it or name another; one of this sweep may also be submitted as it is: "
            "tasks of finished runs end at once.",
        )


def _sign(text: str) -> str:
    return f"{text}{MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def write_sbatch(
    script: Path, runs: Sequence[Path], *, logs: Path, command: str, num_jobs: int
) -> None:
    """Write an sbatch file.

    Args:
        script: where to.
        runs: absolute paths of the run folders, each with its `run.toml`.
        logs: absolute path of the folder for Slurm's own output, which is made here: Slurm does not.
        command: the sweep's command line, for the comments.
        num_jobs: tasks at once; 1: as many as the cluster runs.

    Raises:
        ConfigError: a path that a directive cannot hold, or an edited file that would be overwritten.
        DiskError: the file cannot be written.
    """
    if any(character in str(logs) for character in "\n\r\"'\\ %"):
        raise ConfigError(
            f"Slurm cannot write into {str(logs)!r}: its directives have no quotes.",
            "Name an --output without spaces and signs.",
        )
    require_replaceable(script)
    logs.mkdir(parents=True, exist_ok=True)
    text = TEMPLATE.format(
        command=" ".join(command.split()),
        name=f"deitctl-{logs.parent.name}",
        last=len(runs) - 1,
        limit=f"%{num_jobs}" if num_jobs > 1 else "",
        logs=logs,
        warning_s=WARNING_S,
        runs="\n".join(f"  {shlex.quote(str(run))}" for run in runs),
        python=shlex.quote(sys.executable),
    )
    write_bytes(script, _sign(text).encode())
    script.chmod(0o755)
