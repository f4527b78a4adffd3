"""How many images an evaluation takes at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from deitctl.device import Device, ran_out_of_memory
from deitctl.evaluation.eval_model import EvalModel
from deitctl.free_memory import read_host_memory
from deitctl.launchers import count_local_processes
from deitctl.models.compiled import is_compiled

DEFAULT = 64
"""On CPUs, and where the memory of a device or of an image is not known."""
LARGEST = 1024
SHARE = 0.5
"""Of the free memory: the rest is for what else there is on the device, and for its fragments."""
BATCHES_PER_LOADER = 2
"""At least, so that all loaders have work; larger batches would leave some with none at the end."""


def choose_batch_size(
    eval_models: Sequence[EvalModel], device: Device, num_images: int, workers: int
) -> int:
    """Return the images of a batch: a power of two by the free memory of an accelerator, else 64.

    Args:
        eval_models: in eval mode, on the device.
        device: of the models.
        num_images: that this process evaluates.
        workers: loader processes.
    """
    is_known = all(not m.is_exported for m in eval_models)
    free = None if device.is_synchronous or not is_known else device.read_free_memory()
    image_bytes = None if free is None else measure_image_bytes(eval_models, device)
    if free is None or not image_bytes:
        return DEFAULT
    fitting = int(SHARE * free) // image_bytes
    shared = num_images // (BATCHES_PER_LOADER * max(1, workers))
    size = min(fitting, max(DEFAULT, min(shared, _count_hosted(eval_models, workers))), LARGEST)
    return 1 << max(0, size.bit_length() - 1)


def measure_image_bytes(eval_models: Sequence[EvalModel], device: Device) -> int | None:
    """Return the most device memory that a model takes for one image, on top of its weights.

    Measured with a batch of 64 black images.

    Returns:
        None where the device does not count it, or has no room for that batch.
    """
    before = device.reset_peak_memory()
    if before is None:
        return None
    # No graph is made for this batch; without one, torch's compiler is not imported, which takes seconds.
    has_graphs = any(isinstance(m.model, nn.Module) and is_compiled(m.model) for m in eval_models)
    eager = torch.compiler.set_stance("force_eager") if has_graphs else nullcontext()
    try:
        with torch.no_grad(), eager:
            for eval_model in eval_models:
                shape = (DEFAULT, eval_model.preprocessing.in_chans, *eval_model.preprocessing.hw)
                pixels = torch.zeros(shape, dtype=torch.uint8, device=device.torch_device)
                eval_model.forward_in_pieces(pixels, device)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return None
    peak = device.read_peak_memory()
    return None if peak is None else -(-(peak - before) // DEFAULT)


def _count_hosted(eval_models: Sequence[EvalModel], workers: int) -> int:
    """Return for how many images of a batch the host has room, where each loader has three batches."""
    host = read_host_memory()
    if host is None:
        return LARGEST
    sizes = {(m.preprocessing.hw, m.preprocessing.in_chans) for m in eval_models}
    image_bytes = sum(height * width * channels for (height, width), channels in sizes)
    own = int(SHARE * host / count_local_processes(os.environ))
    return own // (3 * max(1, workers) * image_bytes)
