"""Run a timm folder on images in a process of its own, with timm and without deitctl.

    python -I run_timm.py FOLDER IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [1,N,K], logits.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch


def load(folder: str) -> Callable[[Any], Any]:
    """Open a folder: what is returned answers images, uint8 [B,S,S,3], with logits, float32 [1,B,K].

    Images are normalized as config.json says.
    """
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg"))  # noqa: B009
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))

    @torch.no_grad()
    def answer(pixels: Any) -> Any:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return model((images - mean) / std)[None].numpy()

    return answer


def main(folder: str, inputs: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images, network = np.load(inputs), load(folder)
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
