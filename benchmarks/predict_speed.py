"""How long does a person wait for `deitctl predict one.jpg`, next to the shortest scripts that give the same answer?

    python benchmarks/predict_speed.py IMAGE --weights deit_tiny_patch16_224.fb_in1k.safetensors [--rounds 15]

Five programs, each a fresh process from the shell to the last line of its answer, take turns, so that whatever else the
machine does meets all of them: the shortest script with timm (import, build, load, transform, forward, print), the
shortest with torch and no other model library, `import torch` and nothing else, `deitctl predict`, and
`deitctl predict` with the same model as an ONNX file. A first round, which fills the disk's cache, is not counted.
Ratios are of the same round; medians of them are given. The first class and its score are compared, so that all do the
same work. Processor time hardly depends on what else the machine does, so it is there too.

Last figures (2 cores, OMP_NUM_THREADS=1, torch 2.14, timm 1.0.31). Twice 15 rounds beside other work: predict takes
0.41 and 0.42 of the timm script's time and 0.83 and 0.90 of the torch script's; with the ONNX file 0.12 and 0.12, 0.23
and 0.25. 7 rounds on idle cores: 0.39, 0.84, 0.11 and 0.23; 5.0, 2.1, 2.0, 1.8 and 0.5 seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

WITH_TIMM = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": sys.argv[2]}).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    scores = model(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).softmax(1)[0]
for score, index in zip(*scores.topk(5)):
    print(f"{index} {score:.4f}")
"""

WITH_TORCH_ALONE = """
import sys, torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
w = load_file(sys.argv[2])
image = Image.open(sys.argv[1]).convert("RGB")
short = min(image.size)
image = image.resize([int(248 * side / short) for side in image.size], Image.Resampling.BICUBIC)
left, top = (round((side - 224) / 2) for side in image.size)
pixels = torch.frombuffer(bytearray(image.crop((left, top, left + 224, top + 224)).tobytes()), dtype=torch.uint8)
mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
x = ((pixels.view(1, 224, 224, 3) / 255 - mean) / std).permute(0, 3, 1, 2)
def norm(x, name): return layer_norm(x, (192,), w[name + ".weight"], w[name + ".bias"], 1e-6)
def lin(x, name): return linear(x, w[name + ".weight"], w[name + ".bias"])
with torch.inference_mode():
    x = conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 16).flatten(2).mT
    x = torch.cat([w["cls_token"], x], 1) + w["pos_embed"]
    for b in (f"blocks.{i}." for i in range(12)):
        q, k, v = lin(norm(x, b + "norm1"), b + "attn.qkv").view(1, 197, 3, 3, 64).permute(2, 0, 3, 1, 4)
        x = x + lin(scaled_dot_product_attention(q, k, v).mT.transpose(1, 3).mT.reshape(1, 197, 192), b + "attn.proj")
        x = x + lin(gelu(lin(norm(x, b + "norm2"), b + "mlp.fc1")), b + "mlp.fc2")
    scores = lin(norm(x[:, 0], "norm"), "head").softmax(1)[0]
for score, index in zip(*scores.topk(5)):
    print(f"{index} {score:.4f}")
"""


class Run(NamedTuple):
    """One run of a program: seconds from the shell's view, seconds of the processors, and what it said."""

    seconds: float
    cpu: float
    said: str


def run(command: list[str]) -> Run:
    """Run a program to its end."""
    before, start = cpu_of_children(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed: {done.stderr[-600:]}")
    return Run(took, cpu_of_children() - before, done.stdout)


def cpu_of_children() -> float:
    """Return the processor time of all programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_answer(said: str) -> tuple[int, float]:
    """Return the first class and its score, from a script's line or from a record."""
    index = re.search(r'"index": (\d+).*?"score": ([\d.e-]+)', said) or re.search(
        r"(\d+) ([\d.]+)", said
    )
    assert index, said
    return int(index[1]), float(index[2])


def main() -> None:
    """Take turns, compare answers, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--weights", required=True, help="deit_tiny_patch16_224, safetensors.")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.onnx"
        predict = [
            sys.executable,
            "-m",
            "deitctl",
            "predict",
            options.image,
            "--format",
            "jsonl",
            "--model",
        ]
        run(
            [
                sys.executable,
                "-m",
                "deitctl",
                "export",
                options.weights,
                "--to",
                "onnx",
                "--output",
                str(exported),
            ]
        )
        programs = {
            "script with timm": [sys.executable, "-c", WITH_TIMM, options.image, options.weights],
            "script with torch alone": [
                sys.executable,
                "-c",
                WITH_TORCH_ALONE,
                options.image,
                options.weights,
            ],
            "import torch": [sys.executable, "-c", "import torch"],
            "deitctl predict": [*predict, options.weights],
            "deitctl predict, ONNX": [*predict, str(exported)],
        }
        answers = {
            name: first_answer(run(c).said)
            for name, c in programs.items()
            if name != "import torch"
        }
        rounds = [{name: run(c) for name, c in programs.items()} for _ in range(options.rounds)]
    (index, score), *others = answers.values()
    assert all(i == index and abs(s - score) < 1e-3 for i, s in others), answers
    threads = os.environ.get("OMP_NUM_THREADS")
    print(
        f"class {index} at {score:.4f} from all; {options.rounds} rounds, OMP_NUM_THREADS={threads}"
    )
    print(
        f"{'':26}  seconds   x timm  x torch alone  x import torch   CPU seconds   x timm  x torch alone"
    )
    for name in programs:
        wall = [
            statistics.median(r[name].seconds / r[o].seconds for r in rounds)
            for o in list(programs)[:3]
        ]
        cpu = [
            statistics.median(r[name].cpu / r[o].cpu for r in rounds) for o in list(programs)[:2]
        ]
        took, busy = (
            statistics.median(getattr(r[name], k) for r in rounds) for k in ("seconds", "cpu")
        )
        print(
            f"{name:26} {took:8.2f} {wall[0]:8.2f} {wall[1]:14.2f} {wall[2]:15.2f} "
            f"{busy:13.2f} {cpu[0]:8.2f} {cpu[1]:14.2f}"
        )


if __name__ == "__main__":
    main()
