"""Run an ONNX file on pictures in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx.py MODEL.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities; [1,N,K] of a bare network.
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def load(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers pictures, uint8 [B,S,S,3], as OUT has it, float32 [2 or 1,B,K]."""
    session = open_session(model)
    return lambda pixels: np.stack(answer(session, pixels))


def open_session(model: str) -> Any:
    """Start onnxruntime on the CPU."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


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
    images, network = np.load(pictures), load(model)
    check_golden_sample(open_session(model), images.shape[1])
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
