"""Stateless random generators: each is a function of a seed and of what is drawn.

The parts of a seed name the purpose (`derive_seed(seed, "view", epoch, index)`), so a sample gets
the same augmentation on any worker, in any order, before and after a resume. A checkpoint therefore
holds no generator state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Hash a tuple of integers and strings to 63 bits; a change of any part changes all of them."""
    # The type is part of the text, so that 1 and "1" differ; NumPy's integers count as integers.
    text = "\x1f".join(f"{'str' if isinstance(p, str) else 'int'}:{p}" for p in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator that is a function of `parts`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def torch_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU torch generator that is a function of `parts`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _find_generators() -> list[torch.Generator]:
    """Return the global generators of the accelerators in use: of the current CUDA device, and of MPS."""
    generators = []
    if _cuda_is_used():
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    if torch.backends.mps.is_available():
        generators.append(torch.mps._get_default_mps_generator())
    return generators


@contextmanager
def scope(*parts: int | str) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch for a block, then restore them.

    For third-party code that draws from them, such as timm's initialization and dropout. The
    generators of the current CUDA device, if CUDA is in use, and of MPS are seeded too.
    """
    seed = derive_seed(*parts)
    python_state, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    generators = _find_generators()
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
