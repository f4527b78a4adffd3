"""Run an ONNX file on pictures in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx.py MODEL.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys

import numpy as np
import onnxruntime

model, pictures, answers = sys.argv[1:]
images = np.load(pictures)
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
ends = [0, 1, *range(17, len(images), 16), len(images)]  # one picture alone, then sixteen at a time
parts = [session.run(["logits", "probabilities"], {"pixels": images[a:b]}) for a, b in zip(ends, ends[1:]) if a < b]  # noqa: B905, RUF007
np.save(answers, np.stack([np.concatenate(output) for output in zip(*parts)]))  # noqa: B905
