"""How much of a soft label over a thousand classes is lost when only its top k are stored? KL(full || stored), nats.

    python benchmarks/logits_topk.py IMAGES [--model deit_tiny] [--weights FILE]

Last figures: docs/results/distillation.md.
"""

from __future__ import annotations

import argparse

import torch

from deitctl.data.batch_transforms import normalize
from deitctl.data.loader import build_eval_loader
from deitctl.data.open import open_for_evaluation
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.events import SilentReporter
from deitctl.models.factory import load_model
from deitctl.models.heads import forward_heads


@torch.inference_mode()
def main() -> None:
    """Print a line for every temperature and k."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images")
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--weights", default="")
    options = parser.parse_args()
    loaded = load_model(options.model, weights=options.weights, reporter=SilentReporter())
    dataset, pre = (
        open_for_evaluation(options.images, SilentReporter()),
        loaded.model_config.preprocessing,
    )
    batches = build_eval_loader(dataset, [pre], batch_size=50, workers=0, pin_memory=False)
    logits = torch.cat(
        [forward_heads(loaded.model, normalize(b.images[0], pre)).cls for b in batches]
    )
    print(
        f"{len(logits)} images, {logits.shape[1]} classes\n"
        "| tau | k | bytes a target | probability stored | KL, nats |\n|---|---|---|---|---|"
    )
    for tau in (1.0, 3.0):
        targets = teacher_targets(logits, "soft", tau)
        for k in (5, 20, 100, 300, 1000):
            codec = TargetCodec("soft", targets.shape[1], k)
            stored = codec.decode(codec.encode(targets))
            kl = (targets * (targets.log() - stored.clamp(min=1e-12).log())).sum(1).mean()
            mass = targets.topk(k, dim=1).values.sum(1).mean()
            print(f"| {tau:.0f} | {k} | {2 * codec.width} | {100 * mass:.1f} % | {kl:.4f} |")


if __name__ == "__main__":
    main()
