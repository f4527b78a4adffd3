"""What compiling costs at the start, the first time and again, and that inductor computes what is written.

python benchmarks/compile_start.py --model deit_tiny --depth 2

Trains a few steps on digits, uncompiled and compiled, in two processes one after the other that share a new folder of
stored graphs. Prints the seconds of each process's first compiled step, of a later one, of an uncompiled one, and the
largest difference of a weight after the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--embed-dim", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for start in ("first", "second"):
            command = [sys.executable, __file__, *sys.argv[1:], "--child"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(start, output.splitlines()[-1], flush=True)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return seconds and the largest difference, by name."""
    import torch

    torch.set_num_threads(1)
    eager, eager_s = train(args, "off")
    compiled, compiled_s = train(args, "on")
    return {
        "first_step_s": round(compiled_s[0], 2),
        "step_s": round(compiled_s[-1], 4),
        "eager_step_s": round(eager_s[-1], 4),
        "largest_difference": max(
            float((value - compiled[name]).abs().max()) for name, value in eager.items()
        ),
        "largest_weight": max(float(value.abs().max()) for value in eager.values()),
    }


def train(args: argparse.Namespace, compile: str) -> tuple[dict, list[float]]:
    """Return the weights after a few steps, and the seconds of each."""
    from deitctl.device import choose_device
    from deitctl.events import SilentReporter
    from deitctl.training.build import build_student, build_training
    from deitctl.training.compiled_setup import compile_setup
    from deitctl.training.configure import build_config
    from deitctl.training.feed import feed
    from deitctl.training.step import forward_backward, optimizer_step

    reporter = SilentReporter()
    settings = {
        "data": "digits",
        "model": args.model,
        "compile": compile,
        "device": args.device,
        "precision": "fp32",
        "recipe.batch_size": args.batch_size,
        "recipe.img_size": args.img_size,
        "workers": 0,
        "model_args.depth": args.depth,
        "model_args.embed_dim": args.embed_dim,
    }
    config, *datasets = build_config({}, overrides=settings, reporter=reporter)
    student = build_student(config, datasets[0], reporter)
    device = choose_device(args.device, "fp32")
    setup = build_training(config, student, *datasets, device=device, reporter=reporter)
    setup = compile_setup(setup, Path(), reporter, writes=False)
    setup.state.model.train()
    seconds, batches = [], feed(setup.context, setup.state, setup.build_loader())
    for number in range(STEPS):
        batch = next(batches)
        start = time.perf_counter()
        stats = forward_backward(setup.engine, batch, reporter)
        device.synchronize()
        seconds.append(time.perf_counter() - start)
        optimizer_step(setup.context, setup.state, setup.context.lr_at(number), stats.grad_norm)
        setup.state.progress.step += 1
    weights = {
        name: value.detach().clone() for name, value in setup.state.model.state_dict().items()
    }
    return weights, seconds


if __name__ == "__main__":
    main()
