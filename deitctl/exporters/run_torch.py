"""Run a `.pt2` file on images in a process of its own, with NumPy and torch alone.

    python -I run_torch.py MODEL.pt2 IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def load(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers images, uint8 [B,S,S,3], as OUT has it, float32 [2,B,K]."""
    network = torch.export.load(model).module()

    @torch.no_grad()
    def answer(pixels: Any) -> Any:
        return torch.stack(network(torch.from_numpy(pixels))).numpy()

    return answer


def main(model: str, inputs: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images, network = np.load(inputs), load(model)
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
