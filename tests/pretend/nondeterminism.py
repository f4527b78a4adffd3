"""Operators that CUDA has no deterministic kernel for: `alertNotDeterministic` in torch's sources of 2.14."""

from __future__ import annotations

import re
from collections.abc import Iterable

REFUSED = re.compile(
    r"aten\.(_?upsample_(bi|tri)?(linear|cubic)\w*_backward|grid_sampler_\dd_backward|adaptive_(avg|max)_pool\dd_backward"
    r"|_adaptive_avg_pool\dd_backward|(avg|max)_pool3d\w*_backward|fractional_max_pool\dd_backward|max_unpool\dd"
    r"|reflection_pad\dd_backward|nll_loss2d\w*|_ctc_loss_backward|_embedding_bag\w*|put_?|histc|kthvalue|median\.dim"
    r"|scatter_reduce\w*)\b"
)
"""By torch's documentation of `use_deterministic_algorithms`; bincount, with weights alone, is left out."""


def find_refused(names: Iterable[str]) -> list[str]:
    """Return those of some operators, named as `aten.add.Tensor`, that `--deterministic` would refuse on CUDA."""
    return [name for name in names if REFUSED.match(name)]
