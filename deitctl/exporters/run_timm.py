"""Run a timm folder on pictures in a process of its own, with timm and without deitctl.

    python -I run_timm.py FOLDER IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [1,N,K], logits.
"""

import sys
from typing import Any

import numpy as np
import timm
import torch


@torch.no_grad()
def main(folder: str, pictures: str, answers: str) -> None:
    """Normalise as config.json says; answer the first picture alone, the others sixteen at a time."""
    pixels = torch.from_numpy(np.load(pictures)).permute(0, 3, 1, 2)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg"))  # noqa: B009
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    images = (pixels.float() / 255 - mean) / std
    parts = [model(batch) for batch in (images[:1], *torch.split(images[1:], 16)) if len(batch)]
    np.save(answers, torch.cat(parts)[None].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
