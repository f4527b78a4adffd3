"""Two hosts, simulated by network namespaces, train together; one dies in the middle and comes back.

    sudo python benchmarks/two_hosts.py        (Linux; ip netns)

Each host has an address of its own and sees the other by a virtual cable alone; they share the file system. torchrun
runs on each. After a saved step everything on the second host is killed with SIGKILL; its torchrun is then started
again by the same command. The end is compared with an unbroken run of the same two hosts. Last figures:
docs/results/reliability.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOSTS = (("deitctl-a", "cable-a", "10.77.0.1"), ("deitctl-b", "cable-b", "10.77.0.2"))
TRAIN = (
    "train",
    "digits",
    "--model",
    "deit_tiny",
    "--img-size",
    "16",
    "--epochs",
    "3",
    "--batch-size",
    "64",
    "--workers",
    "0",
    "--save-every",
    "4",
    "--precision",
    "fp32",
    "--set",
    "augment.mixup=0.8",
    "--set",
    "augment.repeated_aug=2",
    "--quiet",
)
FILES = (
    "model.safetensors",
    "checkpoint/model.safetensors",
    "checkpoint/ema.safetensors",
    "checkpoint/optimizer.safetensors",
)


def ip(*arguments: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *arguments], check=True)


def plug_in() -> None:
    """Make two hosts and a cable between them."""
    for name, _, _ in HOSTS:
        ip("netns", "add", name)
    ip(
        "link",
        "add",
        HOSTS[0][1],
        "netns",
        HOSTS[0][0],
        "type",
        "veth",
        "peer",
        "name",
        HOSTS[1][1],
        "netns",
        HOSTS[1][0],
    )
    for name, cable, address in HOSTS:
        ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
        ip("-n", name, "link", "set", cable, "up")
        ip("-n", name, "link", "set", "lo", "up")


def start(host: int, job: str, run: Path) -> subprocess.Popen[str]:
    """Start torchrun on a host; the first one keeps the rendezvous."""
    name, cable, address = HOSTS[host]
    command = [
        "ip",
        "netns",
        "exec",
        name,
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"{HOSTS[0][2]}:29400",
        "--rdzv-id",
        job,
        "--local-addr",
        address,
        "--rdzv-conf",
        f"is_host={int(host == 0)}",
        "--max-restarts",
        "3",
        "-m",
        "deitctl",
        *TRAIN,
        "--output",
        str(run),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": cable}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # torch 2.15: else a new host waits for an address in vain
    )
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def step_of(run: Path) -> int:
    """Return the step of the state that is saved."""
    try:
        return int(json.loads((run / "checkpoint" / "state.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def power_off(host: int) -> int:
    """Kill every process of a host; return how many there were."""
    pids = subprocess.run(
        ["ip", "netns", "pids", HOSTS[host][0]], capture_output=True, text=True, check=True
    )
    for pid in pids.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    return len(pids.stdout.split())


def finish(jobs: list[subprocess.Popen[str]]) -> list[int]:
    """Wait for both hosts; show what a failed one said."""
    for job in jobs:
        _, talk = job.communicate(timeout=600)
        if job.returncode:
            print(talk[-3000:])
    return [job.returncode for job in jobs]


def main() -> None:
    """Train unbroken, train with a death, compare."""
    plug_in()
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, broken = Path(folder) / "whole", Path(folder) / "broken"
            begun = time.monotonic()
            codes = finish([start(h, "one", whole) for h in (0, 1)])
            print(f"unbroken: exit codes {codes}, {time.monotonic() - begun:.0f} s", flush=True)
            jobs = [start(h, "two", broken) for h in (0, 1)]
            while step_of(broken) < 24:
                assert jobs[0].poll() is None, jobs[0].communicate()[1][-3000:]
                time.sleep(0.05)
            print(
                f"host b dies at a saved step {step_of(broken)}: {power_off(1)} processes killed",
                flush=True,
            )
            jobs[1].communicate()
            time.sleep(3)
            jobs[1] = start(1, "two", broken)
            print(f"and comes back: exit codes {finish(jobs)}")
            same = {f: (whole / f).read_bytes() == (broken / f).read_bytes() for f in FILES}
            print(f"equal to the unbroken run, to the bit: {same}")
            sys.exit(not all(same.values()))
    finally:
        for name, _, _ in HOSTS:
            ip("netns", "del", name)


if __name__ == "__main__":
    main()
