"""Run an ONNX file on pictures in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx.py MODEL.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities; [1,N,K] of a bare network.
"""

import base64
import json
import sys
from typing import Any

import numpy as np
import onnxruntime


def answer(session: Any, pixels: Any) -> Any:
    """Return the network's outputs for pictures [B,S,S,3], normalised by its metadata where it leaves that to us."""
    (given,) = session.get_inputs()
    if given.type == "tensor(float)":
        said = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])["normalisation"]
        mean, std = (np.array(said[k], dtype=np.float32) for k in ("mean", "std"))
        pixels = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return session.run(None, {given.name: pixels})


def check_golden_sample(session: Any, size: int) -> None:
    """Exit with a line if the file does not answer its own golden sample as its metadata says."""
    sample = json.loads(session.get_modelmeta().custom_metadata_map["golden_sample"])
    tile = np.frombuffer(base64.b64decode(sample["tile"]), dtype=np.uint8).reshape(8, 8, 3)
    nearest = np.arange(size) * 8 // size
    wanted = np.array(sample["logits"])
    given = answer(session, tile[nearest][:, nearest][None])[0][0]
    spread = float(np.std(wanted)) or 1.0  # one class alone has none
    difference = float(np.sqrt(np.mean((given - wanted) ** 2))) / spread
    if not difference <= sample["tolerance"]:  # a difference that is no number fails too
        sys.exit(f"its golden sample is answered {difference:.3g} off, where {sample['tolerance']:g} is allowed.")


def main(model: str, pictures: str, answers: str) -> None:
    """Answer the golden sample, the first picture alone, the others sixteen at a time."""
    images = np.load(pictures)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    check_golden_sample(session, images.shape[1])
    starts = [0, *range(1, len(images), 16)]
    batches = [images[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    parts = [answer(session, batch) for batch in batches]
    np.save(answers, np.stack([np.concatenate(output) for output in zip(*parts, strict=True)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
