"""Evaluations on the pretended accelerator, whose values come as late as they can, and on the CPU; as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerator import UNPINNED, WAIT, Accelerator, PretendedDevice  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from deitctl.data.batch_transforms import normalize  # noqa: E402
from deitctl.data.dataset import ImageDataset  # noqa: E402
from deitctl.data.readers.digits import ArrayDataset  # noqa: E402
from deitctl.device import Device, choose_device  # noqa: E402
from deitctl.errors import ModelError  # noqa: E402
from deitctl.evaluation.eval_model import EvalModel  # noqa: E402
from deitctl.evaluation.late_reads import MAX_BATCHES_AHEAD  # noqa: E402
from deitctl.evaluation.multilabel_result import Result  # noqa: E402
from deitctl.evaluation.validate import validate  # noqa: E402
from deitctl.events import SilentReporter  # noqa: E402
from deitctl.models.model_config import Preprocessing  # noqa: E402
from deitctl.models.vit import HeadLogits  # noqa: E402

COUNT, BATCH, CLASSES = 23, 4, 6
SPOILED = (6, 13)
"""Images whose logits are not finite."""
CPU = choose_device("cpu", "fp32")
PREPROCESSING = Preprocessing(img_size=8, crop_pct=1.0)


class Late:
    """An event that comes when somebody waits for it."""

    waits = 0

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        Late.waits += 1


class LateDevice(PretendedDevice):
    """A device that is behind with everything."""

    def record_event(self) -> Late:  # type: ignore[override]
        return Late()


class TwoHeads(nn.Module):
    """Two linear heads; no room for more than so many images at a time, and infinite for white ones."""

    def __init__(self, seed: int, room: int = BATCH) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 3 * 8 * 8, CLASSES, generator=draw) / 8)
        self.room, self.sizes, self.waits = room, list[int](), list[int]()

    def forward(self, images: Tensor) -> HeadLogits:
        self.sizes.append(len(images))
        self.waits.append(Late.waits)
        if len(images) > self.room:
            raise RuntimeError("MPS backend out of memory")
        flat = images.flatten(1)
        is_white = flat.amin(1, keepdim=True) > 2
        return HeadLogits(*(torch.where(is_white, torch.inf, flat @ w) for w in self.weight))


def draw_images(spoiled: tuple[int, ...] = (), *, has_several: bool = False) -> ImageDataset:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 200, (COUNT, 8, 8), np.uint8)
    pixels[list(spoiled)] = 255
    labels = draw.integers(0, CLASSES, COUNT)
    if has_several:
        labels = draw.random((COUNT, CLASSES)) < 0.4
    return ArrayDataset(pixels, labels, tuple("abcdef"), "drawn")


def run(device: Device, models: list[TwoHeads], dataset: ImageDataset) -> list[Result]:
    shape = dataset.labels.shape
    highest = 2 if dataset.is_multilabel else CLASSES
    teacher = torch.from_numpy(np.random.default_rng(1).integers(-1, highest, shape))
    eval_models = [
        EvalModel(
            model=device.to_device(model),
            preprocessing=PREPROCESSING,
            rows=tuple(range(CLASSES)),
            head="avg-probs",
            temperature=1.3,
            teacher_preds=teacher,
        )
        for model in models
    ]
    return validate(
        eval_models,
        dataset,
        device=device,
        batch_size=BATCH,
        workers=0,
        reporter=SilentReporter(),
        store_logits=True,
        require_finite=True,
    )


def list_differences(one: Result, other: Result) -> list[str]:
    """Return the fields that differ."""
    differing = []
    for name, value in vars(one).items():
        theirs = vars(other)[name]
        if isinstance(value, HeadLogits):
            equal = all(map(torch.equal, value, theirs))
        elif isinstance(value, Tensor):
            equal = torch.equal(value, theirs)
        elif isinstance(value, np.ndarray):
            equal = np.array_equal(value, theirs, equal_nan=True)
        elif isinstance(value, dict):
            equal = str(value) == str(theirs)
        else:
            equal = value == theirs
        if not equal:
            differing.append(name)
    return differing


def catch(device: Device) -> str:
    try:
        run(device, [TwoHeads(0), TwoHeads(1)], draw_images(SPOILED))
    except ModelError as error:
        return str(error)
    return ""


def main() -> dict[str, Any]:
    expected = run(CPU, [TwoHeads(0), TwoHeads(1)], draw_images())
    several = draw_images(has_several=True)
    expected_several = run(CPU, [TwoHeads(0)], several)
    message = catch(CPU)
    with Accelerator() as gpu:
        device = LateDevice()
        models = [device.to_device(TwoHeads(seed)) for seed in (0, 1)]
        pixels = device.to_device(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        normalize(pixels, PREPROCESSING)  # whose constants are placed at the first use
        with gpu.watch():
            results = run(device, models, draw_images())
        # The second has room for half a batch: what the first scored of it does not count twice.
        cramped = [TwoHeads(0), TwoHeads(1, room=2)]
        halved = run(device, cramped, draw_images())
        late_message = catch(device)
        with gpu.watch():
            of_several = run(device, models[:1], several)
    return {
        "differences": [list_differences(*pair) for pair in zip(expected, results, strict=True)],
        "halved": [list_differences(*pair) for pair in zip(expected, halved, strict=True)],
        "several": list_differences(expected_several[0], of_several[0]),
        "sizes": cramped[1].sizes,
        "wait": gpu.count(WAIT),
        "unpinned": gpu.count(UNPINNED),
        "lines": [list(finding) for finding in gpu.findings],
        "waits before": models[0].waits[: -(-COUNT // BATCH)],
        "ahead": MAX_BATCHES_AHEAD,
        "message": message,
        "late message": late_message,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()))
