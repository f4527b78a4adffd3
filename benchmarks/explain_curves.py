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

import torch
from torch import Tensor

from deitctl.data.loader import eval_batches
from deitctl.data.mixing import normalise
from deitctl.data.open import open_for_evaluation
from deitctl.device import choose_device
from deitctl.evaluation.faithfulness import STEPS, area, blurred, deletion, insertion, random_maps
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
    stream = eval_batches(
        source, [pre], batch_size=arguments.batch_size, workers=0, pin_memory=device.pins_memory
    )
    start, areas = time.monotonic(), defaultdict(list)
    for number, batch in enumerate(stream):
        images = normalise(device.move(batch.images[0]), pre)
        for token in ("cls", "dist")[: model.num_prefix_tokens]:
            def answer(pictures: Tensor, token: str = token) -> Tensor:
                return getattr(model(pictures), token).softmax(dim=1)

            with torch.inference_mode():
                whole = answer(images)
                classes = whole.argmax(dim=1)
                areas[token, "whole"].append(whole.amax(dim=1))
                areas[token, "blurred"].append(answer(blurred(images)).gather(1, classes[:, None])[:, 0])
            maps = {m: getattr(token_maps(model, images, method=m), token) for m in METHODS}
            maps["random"] = random_maps(maps["rollout"], seed=number)
            maps["centre"] = centred(maps["rollout"])
            for name, importance in maps.items():
                for kind, curves in (("deletion", deletion), ("insertion", insertion)):
                    curve = curves(answer, images, importance, classes, arguments.steps)
                    areas[token, name, kind].append(area(curve))
        print(f"{(number + 1) * arguments.batch_size} pictures, {time.monotonic() - start:.0f} s", flush=True)

    joined = {key: torch.cat(values).double().cpu() for key, values in areas.items()}
    for token in ("cls", "dist")[: model.num_prefix_tokens]:
        whole, blur = joined[token, "whole"], joined[token, "blurred"]
        print(f"\n{token} token, {len(whole)} pictures: its class has {whole.mean():.3f}, blurred {blur.mean():.3f}")
        print("map".ljust(12), "deletion (lower)".rjust(18), "beats".rjust(7), "insertion (higher)".rjust(20), "beats".rjust(7))
        for name in (*METHODS, *FLOORS):
            row = name.ljust(12)
            for kind, sign, width in (("deletion", -1, 18), ("insertion", 1, 20)):
                values, floor = joined[token, name, kind], joined[token, "random", kind]
                error = values.std() / len(values) ** 0.5
                better = 100 * (sign * (values - floor) > 0).double().mean()
                row += f"{values.mean():.3f} ± {error:.3f}".rjust(width + 1) + f"{better:.0f} %".rjust(8)
            print(row)


if __name__ == "__main__":
    main()
