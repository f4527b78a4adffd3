"""How fast one ONNX file is next to another."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROUNDS = 15
ENOUGH = 4.0
"""Seconds after which rounds end, from the fifth on."""


def speedup(base: Path, other: Path) -> float:
    """Return how many times as fast as `base` onnxruntime answers one image with `other`, on this CPU.

    The two take turns, so that whatever else the machine does meets both; the median of the ratios of the rounds.
    """
    sessions = [_open(path) for path in (base, other)]
    for session, batch in sessions:  # the first answer allocates
        session.run(None, batch)
    ratios: list[float] = []
    start = time.perf_counter()
    while len(ratios) < ROUNDS and (len(ratios) < 5 or time.perf_counter() - start < ENOUGH):
        slow, fast = (_seconds(session, batch) for session, batch in sessions)
        ratios.append(slow / fast)
    return statistics.median(ratios)


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return a session with as many threads as torch has, and an image of noise for it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (takes,) = session.get_inputs()
    kind = np.uint8 if takes.type == "tensor(uint8)" else np.float32
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, *takes.shape[1:]))
    return session, {takes.name: noise.astype(kind)}


def _seconds(session: Any, batch: dict[str, Any]) -> float:
    start = time.perf_counter()
    session.run(None, batch)
    return time.perf_counter() - start
