"""Do the maps of `deitctl explain` find what the model decides by? Deletion and insertion areas, against two floors.

    python benchmarks/explain_curves.py DATA --model deit_tiny [--weights FILE] [--steps 14] [--img-size N]

For each token of the model and each image: the class that the token's head puts first, the map of each method, of
chance (`random`), and of a photographer (`center`: the nearer the middle, the more important). Prints mean area and its
standard error, the share of images on which a map does better than chance's, and how far the maps of two tokens are
apart. Last figures: docs/results/explain.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict

import torch
from torch import Tensor

from deitctl.data.batch_transforms import normalize
from deitctl.data.loader import build_eval_loader
from deitctl.data.open import open_for_evaluation
from deitctl.device import choose_device
from deitctl.events import SilentReporter
from deitctl.explanation.attention_maps import METHODS, compute_token_maps
from deitctl.explanation.faithfulness import (
    NUM_STEPS,
    compute_area,
    compute_deletion,
    compute_insertion,
    sample_random_maps,
)
from deitctl.models.factory import load_model
from deitctl.models.vit import VisionTransformer

FLOORS = ("random", "center")


def center_maps(like: Tensor) -> Tensor:
    """Return maps [B,G,G] that fall off from the middle."""
    away = torch.arange(like.shape[-1], device=like.device) - (like.shape[-1] - 1) / 2
    return -(away[:, None] ** 2 + away**2).expand_as(like)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--weights", default="")
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    loaded = load_model(
        arguments.model,
        weights=arguments.weights,
        img_size=arguments.img_size,
        reporter=SilentReporter(),
    )
    device = choose_device(arguments.device, "fp32")
    model, pre = (
        device.to_device(loaded.model).requires_grad_(False),
        loaded.model_config.preprocessing,
    )
    assert isinstance(model, VisionTransformer)
    dataset = open_for_evaluation(arguments.data, SilentReporter())
    stream = build_eval_loader(
        dataset, [pre], batch_size=arguments.batch_size, workers=0, pin_memory=device.pins_memory
    )
    start, tokens = time.monotonic(), ("cls", "dist")[: model.num_prefix_tokens]
    curves: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    apart: list[Tensor] = []
    for number, batch in enumerate(stream):
        images = normalize(device.to_device(batch.images[0]), pre)
        with torch.inference_mode():
            first = {t: getattr(model(images), t).argmax(dim=1) for t in tokens}
        all_maps = [compute_token_maps(model, images, method=m) for m in METHODS]
        for token in tokens:

            def answer(imgs: Tensor, token: str = token) -> Tensor:
                return getattr(model(imgs), token).softmax(dim=1)

            maps = [getattr(m, token) for m in all_maps]
            maps = torch.stack(
                [*maps, sample_random_maps(maps[0], seed=number), center_maps(maps[0])]
            )
            for kind, draw in (("deletion", compute_deletion), ("insertion", compute_insertion)):
                curves[token, kind].append(
                    draw(answer, images, maps, first[token], arguments.steps).cpu()
                )
        if len(tokens) == 2:
            agree = (first["cls"] == first["dist"]).float()
            one_class = compute_token_maps(model, images, method="gradient", classes=first["cls"])
            apart.append(torch.stack([agree, *(moved(*m) for m in (*all_maps, one_class))]).cpu())
        print(f"{number + 1} batches, {time.monotonic() - start:.0f} s", file=sys.stderr)
    for token in tokens:
        show_areas(
            token,
            *(torch.cat(curves[token, kind], dim=1).double() for kind in ("deletion", "insertion")),
        )
    if apart:
        show_apart(torch.cat(apart, dim=1))


def moved(cls: Tensor, dist: Tensor) -> Tensor:
    """Return the share of one map's weight that has to move to make the other, [B]."""
    shares = [m.flatten(1) / m.flatten(1).sum(dim=1, keepdim=True) for m in (cls, dist)]
    return (shares[0] - shares[1]).abs().sum(dim=1) / 2


def show_areas(token: str, removed: Tensor, restored: Tensor) -> None:
    """Print the areas under deletion and insertion curves [M,B,T+1]."""
    count = removed.shape[1]
    print(f"\n{token} token, {count} images: its class has {removed[0, :, 0].mean():.3f},", end=" ")
    print(
        f"of a gray image {removed[0, :, -1].mean():.3f}, of a blurred one {restored[0, :, 0].mean():.3f}"
    )
    print(
        f"{'map':<12} {'deletion (lower)':>18} {'beats':>7} {'insertion (higher)':>20} {'beats':>7}"
    )
    for n, name in enumerate((*METHODS, *FLOORS)):
        row = f"{name:<12}"
        for sign, kind, width in ((-1, removed, 19), (1, restored, 21)):
            areas, floor = compute_area(kind[n]), compute_area(kind[len(METHODS)])
            mean = f"{areas.mean():.3f} ± {areas.std() / count**0.5:.3f}"
            row += f"{mean:>{width}}{100 * (sign * (areas - floor) > 0).double().mean():6.0f} %"
        print(row)


def show_apart(apart: Tensor) -> None:
    """Print how far the two tokens' maps are apart, where the heads agree and where not."""
    print("\nweight that lies elsewhere for the other token")
    for name, chosen in (("heads agree", apart[0] == 1), ("disagree", apart[0] == 0)):
        kinds = (*METHODS, "gradient of the class token's class")
        means = ", ".join(
            f"{kind} {100 * apart[n + 1, chosen].mean():.1f} %" for n, kind in enumerate(kinds)
        )
        print(f"{name:<12} {int(chosen.sum()):>5} images: {means}")


if __name__ == "__main__":
    main()
