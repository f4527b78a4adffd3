"""What the pretended accelerator records of single operations, as JSON: {case: [[kind, operation, line], ...]}."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accelerator import DEVICE, Accelerator, PretendedDevice


def list_cases(gpu: Accelerator) -> dict[str, Callable[[], object]]:
    """Return operations by name; their tensors are made before anything is recorded."""
    host = torch.arange(4.0)
    pinned = gpu.pin(host)
    there, other = host.to(DEVICE), torch.ones(4).to(DEVICE)
    mask, rows = (host > 1).to(DEVICE), torch.tensor([0, 2])
    rows_there = rows.to(DEVICE)
    return {
        "item": lambda: there[0].item(),
        "nonzero": lambda: there.nonzero(),
        "mask": lambda: there[mask],
        "host indices": lambda: there[rows],
        "download": lambda: there.cpu(),
        "upload": lambda: host.to(DEVICE),
        "copy_ up": lambda: there.copy_(host),
        "copy_ down": lambda: host.clone().copy_(there),
        "async into unpinned": lambda: host.clone().copy_(there, non_blocking=True),
        "async from unpinned": lambda: host.to(DEVICE, non_blocking=True),
        "two devices": lambda: there + host,
        "float64": lambda: there.double() * 2,
        "line of deitctl": lambda: PretendedDevice().to_device(host),
        "arithmetic": lambda: (there + other).sum(),
        "device indices": lambda: there[rows_there],
        "where": lambda: torch.where(mask, there, other),
        "number": lambda: there * torch.tensor(2.0),
        "async from pinned": lambda: pinned.to(DEVICE, non_blocking=True),
        "part of pinned": lambda: pinned[1:3].to(DEVICE, non_blocking=True),
        "async into pinned": lambda: pinned.copy_(there, non_blocking=True),
        "factory": lambda: torch.zeros(3, device=DEVICE),
    }


def record_findings() -> dict[str, list[tuple[str, str, str]]]:
    """Run every case, and return what was recorded of each."""
    found = {}
    with Accelerator() as gpu:
        for name, run in list_cases(gpu).items():
            gpu.findings.clear()
            with gpu.watch():
                run()
            found[name] = [tuple(finding) for finding in gpu.findings]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(record_findings()))
