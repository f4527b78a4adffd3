"""From evaluations to what a report shows: the images worth a look, their maps, the curves of the run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import __version__
from deitctl.data.eval_transform import eval_transform
from deitctl.data.batch_transforms import normalize
from deitctl.device import Device
from deitctl.evaluation.metrics import BINS, Reliability, reliability
from deitctl.evaluation.records import EvalResult, EvalResults
from deitctl.events import Reporter, track
from deitctl.explanation.attention_maps import TOKENS, token_maps
from deitctl.explanation.overlay import heat
from deitctl.models.factory import is_model_folder
from deitctl.models.heads import fuse_heads
from deitctl.models.vit import HeadLogits, VisionTransformer
from deitctl.report.contents import (
    OUTSIDE,
    Bin,
    Calibrated,
    Comparison,
    Contents,
    Curves,
    Data,
    Evaluated,
    Example,
)
from deitctl.report.examples import QUALITY, SIDE, confident_mistakes, thumbnail, unsure_hits
from deitctl.training.run_dir import Run

EXAMPLES = 24
"""Images in a gallery; of several evaluations each shows its share."""
AT_ONCE = 8
MAPS = "gradient"
"""Whose deletion and insertion curves are the best, see docs/explain.md."""


def contents_of(found: EvalResults, device: Device, command: str, reporter: Reporter) -> Contents:
    """Gather what a report shows; the images of the galleries are read and answered once more."""
    results = found.results
    first = results[0]
    data = Data(
        name=first.data,
        classes=_class_names(first),
        names=[first.dataset.name(i) for i in first.scores.indices.tolist()],
        labels=first.scores.labels.numpy(),
        unreadable=[(first.dataset.name(i), why) for i, why in first.scores.unreadable],
    )
    facts = [
        ("data", first.data),
        ("images", f"{first.scores.num_images:,}"),
        ("classes", f"{len(data.classes):,}"),
    ]
    facts += [("device", f"{device.torch_device}, {device.precision}")]
    facts += [("speed", f"{first.scores.images_per_second:.1f} images/s")]
    return Contents(
        title=f"{first.name} on {first.data}"
        if len(results) == 1
        else f"{len(results)} evaluations on {first.data}",
        created=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        version=__version__,
        command=command,
        facts=tuple(facts),
        evaluated=[
            _evaluated(r, data, device, max(6, EXAMPLES // len(results)), reporter) for r in results
        ],
        comparisons=[
            Comparison(
                a=d.a,
                b=d.b,
                difference=d.difference,
                interval=d.interval,
                only_a=d.only_a,
                only_b=d.only_b,
                p_value=d.p_value,
                among_classes=d.among_classes,
            )
            for d in found.differences
        ],
        curves=_curves({r.model for r in results}),
    )


def _class_names(result: EvalResult) -> list[str]:
    """Name the data's classes for people: what WordNet ids stand for, with the id where two stand for the same."""
    ids = result.dataset.class_names
    if result.model_config.descriptions is None:
        return list(ids)
    said = [result.model_config.label(row).split(",")[0] for row in result.match.rows]
    return [name if said.count(name) == 1 else f"{name} ({ids[c]})" for c, name in enumerate(said)]


def _evaluated(
    result: EvalResult, data: Data, device: Device, most: int, reporter: Reporter
) -> Evaluated:
    s, kept = result.scores, result.calibration
    correct, sure = s.correct.numpy(), s.confidences.numpy()
    answers, classes = s.answers.numpy(), len(data.classes)
    predicted = np.where(answers == classes, OUTSIDE, answers)
    pre = result.contender.preprocessing
    facts = [
        ("model", result.model),
        ("architecture", result.model_config.architecture),
        ("head rule", s.head),
        (
            "preprocessing",
            f"{result.protocol}: {pre.resize_to} px {pre.crop_mode}, crop {pre.img_size} px, {pre.interpolation}",
        ),
    ]
    if result.contender.temperature != 1:
        facts.append(("temperature", f"{result.contender.temperature:.3f}, the model's own"))
    if result.real is not None:
        facts.append(
            (
                "ReaL labels",
                f"top-1 {result.real.top1:.2f} %, top-5 {result.real.top5:.2f} %, of {result.real.num_images:,} images",
            )
        )
    two = [] if s.disagree is None else confident_mistakes(~s.disagree.numpy(), sure, most)
    images = {
        "mistakes": confident_mistakes(correct, sure, most),
        "unsure": unsure_hits(correct, sure, most),
        "disagreements": two,
    }
    wanted = sorted({n for places in images.values() for n in places})
    shown = dict(zip(wanted, _examples(result, wanted, data, device, reporter), strict=True))
    return Evaluated(
        name=result.name,
        data=data,
        facts=tuple(facts),
        predicted=predicted,
        outside={
            int(n): _name(result, int(s.predictions[n]), data)
            for n in np.flatnonzero(predicted == OUTSIDE)
        },
        confidences=sure,
        top1=s.top1,
        top5=s.top5,
        loss=s.loss,
        ece=s.ece,
        reliability=_bins(reliability(s.confidences, s.correct)),
        calibrated=None
        if kept is None
        else Calibrated(
            temperature=kept.temperature,
            ece=kept.ece,
            reliability=_bins(kept.reliability),
            note=f"fitted to {kept.num_images:,} images, judged on fifths that it was not fitted to",
        ),
        top1_among=s.top1_among,
        heads=s.heads,
        agreement=s.agreement,
        intervals=result.intervals,
        **{name: [shown[n] for n in places] for name, places in images.items()},
    )


def _bins(found: Reliability) -> list[Bin]:
    rows = zip(*(x.tolist() for x in found), strict=True)
    return [Bin(n / BINS, (n + 1) / BINS, *row) for n, row in enumerate(rows)]


def _examples(
    result: EvalResult, places: Sequence[int], data: Data, device: Device, reporter: Reporter
) -> list[Example]:
    """Look at images again, a few at a time: what was seen, what each head says, where it looks."""
    made: list[Example] = []
    starts = range(0, len(places), AT_ONCE)
    for start in track(
        starts, reporter, f"look again at images ({result.name})", len(starts), "batches"
    ):
        part = places[start : start + AT_ONCE]
        positions = result.scores.indices[list(part)].tolist()
        pre = result.contender.preprocessing
        pixels = np.stack([eval_transform(result.dataset.read(i), pre) for i in positions])
        shown = device.to_device(torch.from_numpy(pixels))
        with torch.no_grad(), device.autocast():
            cls, dist = result.contender.answer(shown)
        heads = HeadLogits(cls.float().cpu(), None if dist is None else dist.float().cpu())
        joined = heads.cls if heads.dist is None else fuse_heads(heads, result.scores.head)
        maps = _maps(result, pixels, shown)
        made += [
            Example(
                index=n,
                guesses=_guesses(result, joined[row], result.scores.head, data),
                thumbnail=thumbnail(pixels[row]),
                maps=maps[row] or None,
                heads=None
                if heads.dist is None
                else {
                    "class head": _guesses(result, heads.cls[row], "cls", data)[0],
                    "distillation head": _guesses(result, heads.dist[row], "dist", data)[0],
                },
            )
            for row, n in enumerate(part)
        ]
    return made


def _guesses(result: EvalResult, logits: Tensor, head: str, data: Data) -> list[tuple[str, float]]:
    best = (logits / result.model_config.temperature(head)).softmax(0).topk(min(5, len(logits)))
    return [
        (_name(result, i, data), p)
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _name(result: EvalResult, index: int, data: Data) -> str:
    """Name a class of the model, by the data's name for it where it has one."""
    if index in result.match.rows:
        return data.classes[result.match.rows.index(index)]
    label = result.model_config.label(index)
    return label if result.model_config.descriptions is None else label.split(",")[0]


def _maps(result: EvalResult, pixels: NDArray[np.uint8], shown: Tensor) -> list[dict[str, bytes]]:
    """Return each image under each token's map; none for a model that is no DeiT of ours, or an exported file."""
    if not isinstance(result.contender.model, VisionTransformer):
        return [{} for _ in pixels]
    images = normalize(shown, result.contender.preprocessing)
    found = token_maps(result.contender.model, images, method=MAPS)
    tokens = {TOKENS[name]: maps for name, maps in found._asdict().items() if maps is not None}
    return [
        {name: _jpeg(heat(image, maps[n].cpu().numpy())) for name, maps in tokens.items()}
        for n, image in enumerate(pixels)
    ]


def _jpeg(image: Any) -> bytes:
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _curves(models: set[str]) -> Curves | None:
    """Return the log of the run that the one model is."""
    if len(models) != 1 or not is_model_folder(model := next(iter(models))):
        return None
    run = Run(Path(model).expanduser(), writes=False)
    epochs = list(run.records("epoch"))
    teacher = (run.result() or {}).get("teacher")
    return (
        Curves(
            run=run.root.name,
            steps=list(run.records("step")),
            epochs=epochs,
            teacher_top1=teacher.get("top1") if isinstance(teacher, dict) else None,
        )
        if epochs
        else None
    )
