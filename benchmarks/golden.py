"""Short seeded runs whose results must not move: sha256 of their weights, an evaluation's figures, an export's logits.

    python benchmarks/golden.py --images IMAGES --write golden.json     # before a refactoring
    python benchmarks/golden.py --images IMAGES --compare golden.json   # after it

The hashes are those of one machine: other cores, another thread count or another torch give others. So both runs are
made on the same one. An own cache folder is used, so that the teacher is trained anew as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TINY = ["--model", "deit_tiny", "--epochs", "1", "--batch-size", "128", "--seed", "7"]
STUDENT = ["--student", "deit_tiny", "--epochs", "2", "--batch-size", "128", "--seed", "7"]
FINETUNE = ["--recipe", "finetune", "--no-pretrained", "--img-size", "64", "--precision", "bf16"]
RUNS = {
    "digits": ["train", "digits", *TINY],
    "hard-cached": [
        "distill",
        "digits",
        "--teacher",
        "regnety_002",
        "--mode",
        "hard",
        "--views",
        "2",
        *STUDENT,
    ],
    "soft-cached": [
        "distill",
        "digits",
        "--teacher",
        "regnety_002",
        "--mode",
        "soft",
        "--views",
        "2",
        *STUDENT,
    ],
    "mixed": [
        "distill",
        "digits",
        "--teacher",
        "regnety_002",
        "--teacher-input",
        "mixed",
        "--views",
        "0",
        "--set",
        "recipe.augment.mixup=0.8",
        *STUDENT,
    ],
    "finetune-bf16": ["train", "IMAGES", *TINY, *FINETUNE],
    "two-processes": ["train", "digits", *TINY],
}
EVAL_KEYS = ("top1", "top5", "loss", "ece", "heads")


def run(arguments: list[str], folder: Path, processes: int = 1) -> str:
    """Run deitctl in `folder` with a cache of its own; return what it prints on stdout."""
    launcher = [sys.executable, "-m", "deitctl"]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "-m",
            "deitctl",
        ]
    tree = str(Path(__file__).parents[1])
    environment = os.environ | {
        "DEITCTL_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": tree,
    }
    done = subprocess.run(
        [*launcher, *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def hash_tensors(path: Path) -> str:
    """Return the sha256 of a file's tensors and their names; its metadata does not count."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.contiguous().flatten().view(dtype=__import__("torch").uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def hash_logits(onnx_file: Path) -> str:
    """Return the sha256 of what an exported file answers to one fixed input."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 2 for size in entry.shape]
    values = np.random.default_rng(0).integers(0, 256, shape)
    answers = session.run(
        None, {entry.name: values.astype(np.uint8 if "uint8" in entry.type else np.float32)}
    )
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in answers)).hexdigest()


def compute(images: Path) -> dict[str, object]:
    """Run everything; return the hashes and figures by name."""
    golden: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, arguments in RUNS.items():
            arguments = [str(images.resolve()) if a == "IMAGES" else a for a in arguments]
            run(
                [*arguments, "--output", f"runs/{key}", "--quiet"],
                folder,
                processes=2 if key == "two-processes" else 1,
            )
            golden[key] = hash_tensors(folder / "runs" / key / "model.safetensors")
            print(f"{key:14s} {golden[key]}", flush=True)
        scores = json.loads(
            run(
                [
                    "eval",
                    "digits",
                    "--model",
                    "runs/hard-cached",
                    "--precision",
                    "fp32",
                    "--format",
                    "json",
                    "--quiet",
                ],
                folder,
            )
        )
        scores = scores.get("results", [scores])[0]
        golden["eval"] = {k: scores[k] for k in EVAL_KEYS}
        print("eval          ", golden["eval"], flush=True)
        run(
            ["export", "runs/hard-cached", "--to", "onnx", "--output", "model.onnx", "--quiet"],
            folder,
        )
        golden["onnx logits"] = hash_logits(folder / "model.onnx")
        print("onnx logits   ", golden["onnx logits"], flush=True)
    return golden


def main() -> None:
    """Write the golden values, or compare them with written ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with train/ and val/ of class folders"
    )
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    golden = compute(options.images)
    if options.write:
        options.write.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    if options.compare:
        before = json.loads(options.compare.read_text(encoding="utf-8"))
        moved = [key for key in {**before, **golden} if before.get(key) != golden.get(key)]
        print("moved: " + ", ".join(moved) if moved else "equal: " + ", ".join(golden))
        raise SystemExit(bool(moved))


if __name__ == "__main__":
    main()
