"""Compare the page of `deitctl export --to web` with PyTorch, in a real browser on real images, and time it.

    python benchmarks/web_page.py MODEL IMAGES [IMAGES...] [--weights FILE] [--num-images 50] [--quantize int8]
        [--shots FOLDER]

The page is exported, served and opened in Chromium, and `--num-images` of the files or folders, spread evenly, are
chosen in its dialog. The worker's results are compared with PyTorch: the pixels of the view, the top-1 class, all
probabilities, the attention of the last block. A quantized page is also compared with `deitctl predict --model
model.onnx`. Milliseconds are the minimum of `TURNS` runs on the first image (other load lengthens the rest), in one
thread, as the page shows them. A quantized page and one in fp32 take turns; the speed is the median of their ratios.

Last figures (2 shared and busy cores with AVX-512 VNNI, Chromium 150, onnxruntime-web 1.30.0): DeiT-tiny's published
weights on 24 photographs and 50 of Imagenette, a distilled DeiT-tiny of 32 pixels on 50 of `digits`.

                        photos fp32     int8 | imagenette fp32     int8 | digits fp32     int8
    model, MB                 23.02     6.66 |           23.02     6.66 |       22.07     6.27
    a pixel differs            0/24     0/24 |            0/50     0/50 |        0/50     0/50
    same first class          24/24    24/24 |           50/50    50/50 |       50/50    50/50
    probabilities           1.7e-06    0.044 |         1.7e-06    0.084 |     3.6e-07   0.0033
    from predict, .onnx     1.3e-06    0.039 |         1.5e-06    0.044 |     3.0e-07   0.0009
    attention               5.0e-06    0.091 |         4.2e-06    0.052 |     3.0e-07   0.0041
    ms, view + network        9+114     9+66 |                          |       1 + 5
    times as fast as fp32                1.7 |                      1.4 |                  1.2
"""

from __future__ import annotations

import argparse
import base64
import functools
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deitctl.data.batch_transforms import normalize
from deitctl.data.decode import read_image
from deitctl.data.eval_transform import eval_transform
from deitctl.events import SilentReporter
from deitctl.explanation.attention_maps import forward_with_attention
from deitctl.exporters.export import export
from deitctl.exporters.verification_images import compute_reference
from deitctl.inference.inputs import expand
from deitctl.inference.onnx_classifier import load_onnx_classifier
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head
from deitctl.models.vit import VisionTransformer

RECORD_RESULTS = """
window.results = [];
window.Worker = class extends Worker {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", ({ data }) => {
      if (data.kind === "ready") window.loaded = data.milliseconds;
      if (data.kind === "result") results.push({
        view: btoa(Array.from(data.view, (v) => String.fromCharCode(v)).join("")),
        probabilities: [...data.probabilities],
        attention: data.attention && [...data.attention.data], milliseconds: data.milliseconds,
      });
    });
  }
};
"""


@functools.cache
def chromium() -> Any:
    """The driver of the tests, which are no package."""
    place = Path(__file__).parents[1] / "tests" / "chromium.py"
    spec = importlib.util.spec_from_file_location("chromium", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TURNS = 25
TAKE_TURNS = """(async () => {
  const blob = await (await fetch("/image")).blob();
  const open = (folder) => new Promise((resolve, reject) => {
    const worker = new Worker(`/${folder}/worker.js`, { type: "module" });
    worker.onmessage = ({ data }) =>
      data.kind === "ready" ? resolve(worker) : data.kind === "broken" && reject(data.reason);
  });
  const classify = (worker) => new Promise((resolve) => {
    worker.onmessage = ({ data }) => resolve(data.milliseconds);
    worker.postMessage({ id: 0, blob });
  });
  const workers = [];
  for (const folder of %s) workers.push(await open(folder));
  const rounds = [];
  for (let turn = 0; turn < %d; turn++) {
    rounds.push([]);
    for (const worker of workers) rounds.at(-1).push(await classify(worker));
  }
  return rounds;
})()"""


def take_turns(root: Path, pages: list[str], image: Path) -> list[list[dict[str, float]]]:
    """Classify one image on pages below a folder in turns: milliseconds of view and network, [TURNS][pages]."""
    driver = chromium()
    (root / "index.html").write_text("<!doctype html><title>in turns</title>")
    (root / "image").write_bytes(image.read_bytes())
    with (
        tempfile.TemporaryDirectory() as folder,
        driver.serve(root) as (url, _),
        driver.browser(Path(folder) / "profile") as tab,
    ):
        tab.open(url)
        return tab.js(TAKE_TURNS % (json.dumps(pages), TURNS))[2:]


def classify(page: Path, images: list[Path], shots: str) -> tuple[list[dict[str, Any]], float]:
    """Choose images on the page; return its worker's results and the seconds until it was ready."""
    driver = chromium()
    with (
        tempfile.TemporaryDirectory() as folder,
        driver.serve(page) as (url, requested),
        driver.browser(Path(folder) / "profile") as tab,
    ):
        tab.send("Page.addScriptToEvaluateOnNewDocument", source=RECORD_RESULTS)
        start = time.perf_counter()
        tab.open(url)
        tab.wait("document.body.dataset.state !== 'loading'")
        ready = time.perf_counter() - start
        tab.choose("#files", images)
        while tab.js("document.querySelectorAll('#results [data-state=waiting]').length"):
            time.sleep(0.2)
        said = tab.js("results")
        if shots:
            take_shots(tab, Path(shots))
        assert tab.console_errors == [], tab.console_errors
        assert not {
            path
            for path in requested
            if path.lstrip("/") not in ("", *(p.name for p in page.iterdir()))
        }
    return said, ready


def take_shots(tab: Any, folder: Path) -> None:
    """Save the page as phones and desktops show it."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in (390, 1440):
        for scheme in ("light", "dark"):
            tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            tab.send(
                "Emulation.setEmulatedMedia",
                media="",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            tab.screenshot(folder / f"{width}-{scheme}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--weights", default="")
    parser.add_argument("--num-images", type=int, default=50)
    parser.add_argument("--quantize", default="")
    parser.add_argument("--shots", default="")
    args = parser.parse_args()

    names = list(expand(args.images, ()))
    count = min(args.num_images, len(names))
    paths = [Path(names[i * len(names) // count]) for i in range(count)]
    loaded = load_model(args.model, weights=args.weights, reporter=SilentReporter())
    head, pre = (
        choose_head("auto", loaded.model_config.head, loaded.model),
        loaded.model_config.preprocessing,
    )
    views = np.stack([eval_transform(read_image(path), pre) for path in paths])
    wanted = compute_reference(
        loaded.model, loaded.model_config, head, np.ascontiguousarray(views.transpose(0, 2, 3, 1))
    )[1]

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        pages = ["page", "fp32"] if args.quantize else ["page"]
        if args.quantize:
            export(
                args.model,
                to="web",
                weights=args.weights,
                output=str(Path(folder) / "fp32"),
                verify_data=args.images[0],
                num_images=2,
            )
        export(
            args.model,
            to="web",
            weights=args.weights,
            output=str(page),
            verify_data=args.images[0],
            num_images=8,
            quantize=args.quantize,
        )
        size = {p.name: p.stat().st_size for p in page.iterdir()}
        said, ready = classify(page, paths, args.shots)
        how = {"weights": "", "head": "auto", "img_size": 0, "device": "auto", "precision": "auto"}
        classifier = load_onnx_classifier(str(page / "model.onnx"), **how)
        alone = np.concatenate([classifier.scores(view[None]) for view in views])

        rounds = take_turns(Path(folder), pages, paths[0])

    assert len(said) == count
    given = np.array([s["probabilities"] for s in said])
    seen = np.stack([np.frombuffer(base64.b64decode(s["view"]), np.uint8) for s in said])
    pixels = seen.reshape(count, pre.img_size, pre.img_size, 3).transpose(0, 3, 1, 2)
    result = {
        "images": count,
        "model bytes": size["model.onnx"],
        "folder bytes": sum(size.values()),
        "images with a pixel that differs": int((pixels != views).any(axis=(1, 2, 3)).sum()),
        "same first class as PyTorch": int((given.argmax(1) == wanted.argmax(1)).sum()),
        "largest difference of a probability": float(np.abs(given - wanted).max()),
        "same first class as predict --model model.onnx": int(
            (given.argmax(1) == alone.argmax(1)).sum()
        ),
        "largest difference from predict --model model.onnx": float(np.abs(given - alone).max()),
        "ms for the view": min(turn[0]["view"] for turn in rounds),
        "ms for the network": min(turn[0]["network"] for turn in rounds),
        "seconds until ready": ready,
    }
    if args.quantize:
        result["times as fast as fp32"] = statistics.median(
            turn[1]["network"] / turn[0]["network"] for turn in rounds
        )
    if isinstance(loaded.model, VisionTransformer):
        tokens = loaded.model.num_prefix_tokens
        kept = [
            forward_with_attention(loaded.model, normalize(torch.from_numpy(view[None]), pre))
            .attention[-1]
            .mean(1)[0, :tokens, tokens:]
            .flatten()
            for view in views
        ]
        gaps = np.abs(np.array([s["attention"] for s in said]) - torch.stack(kept).numpy())
        result |= {
            "largest weight of attention": float(torch.stack(kept).max()),
            "largest difference of one": float(gaps.max()),
        }
    for name, value in result.items():
        print(f"{name:52} {json.dumps(value) if isinstance(value, int) else f'{value:.3g}'}")


if __name__ == "__main__":
    main()
