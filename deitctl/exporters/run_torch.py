"""Run a `.pt2` file on pictures in a process of its own, with NumPy and torch alone.

    python -I run_torch.py MODEL.pt2 IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys

import numpy as np
import torch


@torch.no_grad()
def main(model: str, pictures: str, answers: str) -> None:
    """Answer the first picture alone, the others sixteen at a time."""
    images = torch.from_numpy(np.load(pictures))
    network = torch.export.load(model).module()
    parts = [network(batch) for batch in (images[:1], *torch.split(images[1:], 16)) if len(batch)]
    np.save(answers, torch.stack([torch.cat(output) for output in zip(*parts, strict=True)]).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
