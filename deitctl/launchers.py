"""Launchers of several processes, by the environment that they set: torchrun, srun and mpirun.

Imports no torch, because every command looks at its environment before it begins.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from deitctl.errors import ConfigError, UsageError

MPI_LIBRARIES = ("OMPI_COMM_WORLD", "PMI", "MV2_COMM_WORLD")
"""Beginning of the variables of Open MPI, of MPICH and Intel MPI, and of MVAPICH: _SIZE and _RANK."""
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
"""Variables of theirs for the processes of a host."""
MAX_PROCESSES = 1_000_000
NO_STEP = 4_000_000_000
"""Slurm's step numbers from here on mean the script of a batch job, or other things but a step."""


def read_rank(name: str, environ: Mapping[str, str] = os.environ) -> int:
    """Return RANK, LOCAL_RANK (0 where they are not set) or WORLD_SIZE (1), as torchrun sets them.

    Raises:
        ConfigError: it is no number of a process, or of processes.
    """
    least = 1 if name == "WORLD_SIZE" else 0
    text = environ.get(name, str(least))
    if not text.isdecimal() or not least <= int(text[:9]) < MAX_PROCESSES:
        raise ConfigError(
            f"${name} is {text[:40]!r} in the environment, which is no number of processes.",
            f"torchrun sets it; otherwise: unset {name}",
        )
    return int(text)


def count_local_processes(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes of this run the launcher started on this host; 1 where it does not say."""
    if (num_processes := _read_int(environ, "LOCAL_WORLD_SIZE")) > 0:  # torchrun's
        return num_processes
    if _read_int(environ, "WORLD_SIZE") <= 1:  # tasks that have nothing to do with each other
        return 1
    for name in LOCAL_SIZES:
        if (num_processes := _read_int(environ, name)) > 0:
            return num_processes
    counts = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    nodes: list[int] = []
    for part in counts.split(","):  # 4(x2),3
        count, _, times = part.rstrip(")").partition("(x")
        if count.isdecimal() and (times or "1").isdecimal():
            nodes += [int(count)] * min(int(times or 1), MAX_PROCESSES)
    place = _read_int(environ, "SLURM_NODEID")
    return max(1, nodes[place]) if place < len(nodes) else 1


def require_torchrun(
    command: Sequence[str], *, is_distributed: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """Refuse to work in one of several tasks that srun or mpirun started: each would do all of it.

    Args:
        command: the command line after `deitctl`, for the hint.
        is_distributed: whether the command works in several processes, if torchrun starts them.
        environ: the environment.

    Raises:
        UsageError: there are several tasks, and torchrun is not among what started this process.
    """
    launcher, num_tasks, variables = _count_tasks(environ)
    if num_tasks == 1 or "WORLD_SIZE" in environ:
        return
    num_nodes = max(1, _read_int(environ, "SLURM_NNODES"))
    torchrun = f"torchrun --nproc-per-node {-(-num_tasks // num_nodes)}"
    if num_nodes > 1:
        rendezvous = "--rdzv-backend c10d --rdzv-endpoint HOST:29400"
        torchrun = f"srun --ntasks-per-node 1 torchrun --nnodes {num_nodes} {rendezvous} " + (
            torchrun.removeprefix("torchrun ")
        )
    together = f"{torchrun} -m deitctl" if is_distributed else "deitctl"
    unset = " ".join(f"-u {name}" for name in variables)
    rank = variables[0].replace("_SIZE", "_RANK")
    raise UsageError(
        f"{launcher} started {num_tasks} tasks, each of which would do all of the work.",
        f"For one run: {together} {shlex.join(command)}. For {num_tasks} of their own: {launcher} "
        f"bash -c 'env {unset} deitctl {shlex.join(command[:1])} ...', where ${rank} is another number "
        "in each, as for --seed.",
    )


def suggest_torchrun(command: Sequence[str], device: str, num_gpus: int) -> str:
    """Return how a run of one process uses the GPUs that it leaves idle, empty if there are none.

    Args:
        command: the command line after `deitctl`.
        device: as it was named; `cuda:N` asks for one.
        num_gpus: CUDA devices that this process sees.
    """
    if _read_int(os.environ, "WORLD_SIZE") > 1 or num_gpus < 2 or device not in ("auto", "cuda"):
        return ""
    return (
        f"{num_gpus} GPUs are here, and one of them trains. All of them: torchrun --nproc-per-node "
        f"{num_gpus} -m deitctl {shlex.join(command)}"
    )


def _count_tasks(environ: Mapping[str, str]) -> tuple[str, int, list[str]]:
    """Return the name of the launcher that started this process, the number of its tasks, and the
    variables that say so."""
    sizes = {f"{name}_SIZE": _read_int(environ, f"{name}_SIZE") for name in MPI_LIBRARIES}
    variables = [name for name, size in sizes.items() if size > 1]
    if "SLURM_PROCID" in environ:  # not in the shell of salloc, which is no task
        # The script of sbatch is task 0 of its job, alone, and has no step or an impossible one.
        step = _read_int(environ, "SLURM_STEP_ID", default=NO_STEP)
        is_script = environ.get("ENVIRONMENT") == "BATCH" and step >= NO_STEP
        num_tasks = _read_int(environ, "SLURM_STEP_NUM_TASKS") or _read_int(environ, "SLURM_NTASKS")
        if num_tasks > 1 and not is_script:
            return "srun", num_tasks, ["SLURM_PROCID", *variables]
    return "mpirun", max(1, *sizes.values()), variables


def _read_int(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default
