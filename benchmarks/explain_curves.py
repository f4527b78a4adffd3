"""Do the maps of `deitctl explain` find what the model decides by? Deletion and insertion areas, against two floors.

    python benchmarks/explain_curves.py DATA --model deit_tiny [--weights FILE] [--steps 14] [--img-size N]

For each token of the model and each picture: the class that the token's head puts first, the map of each method, of
chance (`random`), and of a photographer (`centre`: the nearer the middle, the more important). Prints mean area and its
standard error, and the share of pictures on which a map does better than chance's. Last figures: docs/explain.md.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from deitctl.data.loader import eval_batches
from deitctl.data.mixing import normalise
from deitctl.data.open import open_for_evaluation
from deitctl.device import choose_device
from deitctl.evaluation.faithfulness import STEPS, area, deletion, insertion, random_maps
from deitctl.events import SilentReporter
from deitctl.inference.explain import METHODS, token_maps
from deitctl.models.build import load_model
from deitctl.models.vit import VisionTransformer

FLOORS = ("random", "centre")


def centred(like: Tensor) -> Tensor:
    """Return maps [B,G,G] that fall off from the middle."""
    away = torch.arange(like.shape[-1], device=like.device) - (like.shape[-1] - 1) / 2
    return -(away[:, None] ** 2 + away**2).expand_as(like)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--weights", default="")
    parser.add_argument("--img-size", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    loaded = load_model(
        arguments.model, weights=arguments.weights, img_size=arguments.img_size, reporter=SilentReporter()
    )
    device = choose_device(arguments.device, "fp32")
    model, pre = device.place(loaded.model).requires_grad_(False), loaded.card.preprocessing
    assert isinstance(model, VisionTransformer)
    source = open_for_evaluation(arguments.data, SilentReporter())
    stream = eval_batches(source, [pre], batch_size=arguments.batch_size, workers=0, pin_memory=device.pins_memory)
    start, tokens = time.monotonic(), ("cls", "dist")[: model.num_prefix_tokens]
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for number, batch in enumerate(stream):
        images = normalise(device.move(batch.images[0]), pre)
        for token in tokens:

            def answer(pictures: Tensor, token: str = token) -> Tensor:
                return getattr(model(pictures), token).softmax(dim=1)

            with torch.inference_mode():
                classes = answer(images).argmax(dim=1)
            maps = [getattr(token_maps(model, images, method=m), token) for m in METHODS]
            maps += [random_maps(maps[0], seed=number), centred(maps[0])]
            for kind, curves in (("deletion", deletion), ("insertion", insertion)):
                found[token, kind].append(curves(answer, images, torch.stack(maps), classes, arguments.steps).cpu())
        print(
            f"{found[tokens[0], 'deletion'][-1].shape[1]} pictures more, {time.monotonic() - start:.0f} s", flush=True
        )
        if number % 4 == 3:
            show(tokens, found)
    show(tokens, found)


def show(tokens: Sequence[str], found: dict[tuple[str, str], list[Tensor]]) -> None:
    """Print what has been measured so far."""
    for token in tokens:
        curves = {kind: torch.cat(found[token, kind], dim=1).double() for kind in ("deletion", "insertion")}
        count, whole = curves["deletion"].shape[1], curves["deletion"][0, :, 0].mean()
        ends = f"grey {curves['deletion'][0, :, -1].mean():.3f}, blurred {curves['insertion'][0, :, 0].mean():.3f}"
        print(f"\n{token} token, {count} pictures: its class has {whole:.3f}, {ends}")
        print(
            "map".ljust(12),
            "deletion (lower)".rjust(18),
            "beats".rjust(7),
            "insertion (higher)".rjust(20),
            "beats".rjust(7),
        )
        for n, name in enumerate((*METHODS, *FLOORS)):
            row = name.ljust(12)
            for kind, sign, width in (("deletion", -1, 18), ("insertion", 1, 20)):
                areas, floor = area(curves[kind][n]), area(curves[kind][len(METHODS)])
                better = 100 * (sign * (areas - floor) > 0).double().mean()
                row += f"{areas.mean():.3f} ± {areas.std() / count**0.5:.3f}".rjust(
                    width + 1
                ) + f"{better:.0f} %".rjust(8)
            print(row, flush=True)


if __name__ == "__main__":
    main()
