"""Run a `.pt2` file on pictures in a process of its own, with NumPy and torch alone.

    python -I run_torch.py MODEL.pt2 IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys

import numpy as np
import torch

model, pictures, answers = sys.argv[1:]
images = torch.from_numpy(np.load(pictures))
network = torch.export.load(model).module()
with torch.no_grad():
    sizes = [1] + [16] * ((len(images) + 14) // 16)  # one picture alone, then sixteen at a time
    parts = [network(batch) for batch in images.split([*sizes[:-1], len(images) - sum(sizes[:-1])])]
np.save(answers, torch.stack([torch.cat(output) for output in zip(*parts, strict=True)]).numpy())
