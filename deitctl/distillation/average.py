"""The averaged labels of several teachers, and their check: on the validation images, and on training views.

Letters: B images, N validation images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deitctl.config import DistillConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distillation.preflight import BATCH_SIZE, warn_about_echo
from deitctl.distillation.targets import teacher_targets
from deitctl.distillation.teacher_weights import hash_json
from deitctl.distillation.view_sample import ViewLogits, measure_label_agreement
from deitctl.home import can_write
from deitctl.paths import read_json, write_json
from deitctl.records import to_json


@dataclass(frozen=True)
class AverageCheck:
    """What averaged labels say."""

    predictions: Tensor | None
    """As `Preflight.list_predictions`; None without the teachers' weights."""
    label_agreement: float | None = None
    """As those of a `Preflight`, and so is the next."""
    num_views_sampled: int | None = None


def average_labels(
    labels: Sequence[Tensor], mode: str, tau: float, is_multilabel: bool = False
) -> Tensor:
    """Return the targets of averaged logits.

    Args:
        labels: the logits of each teacher, [B,K]; of one teacher alone its targets of `mode`.
        mode: see `teacher_targets`, and so are the others.
        tau: of soft labels.
        is_multilabel: whether each class is one by itself.
    """
    if len(labels) == 1:
        return labels[0]
    return teacher_targets(torch.stack(list(labels)).mean(0), mode, tau, is_multilabel)


def check_average(
    labelers: Sequence[DistillationTeacher], distill: DistillConfig, *, on_views: bool
) -> AverageCheck:
    """Check the average of prepared teachers, and report it; collective.

    The result is kept beside the first teacher's targets, so that caches are enough for the next student.

    Args:
        labelers: teachers whose labels are averaged.
        distill: of the run, for its mode.
        on_views: whether training views are labeled too.
    """
    first = labelers[0]
    world, reporter, val = first.world, first.reporter, first.val
    own = [[t.preflight.weights_fingerprint, to_json(t.preflight.preprocessing)] for t in labelers]
    name = f"average-{hash_json([own, first.preflight.val_fingerprint])}.json"
    path = first.cache.root / name if first.cache is not None else None
    recorded = _read_check(path, val)
    check = recorded if all(world.all_gather_object(recorded is not None)) else None
    if check is None:
        check = AverageCheck(_predict(labelers))
    if on_views and check.label_agreement is None:
        views = _average_views([teacher.sample_views()[0] for teacher in labelers])
        agreement = measure_label_agreement(views.decisions, first.train, views.keys)
        check = replace(check, label_agreement=agreement, num_views_sampled=len(views.keys) or None)
    is_new = check is not recorded and check.predictions is not None
    if is_new and path is not None and world.is_main and can_write(path.parent):
        _write_check(path, check)
    if line := _describe_check(check, val):
        reporter.note(f"Averaged labels of {len(labelers)} teachers: {line}.")
    warn_about_echo(distill, "the teachers' average", check.label_agreement, reporter)
    return check


def _describe_check(check: AverageCheck, val: ImageDataset) -> str:
    """Return the end of a sentence; empty where nothing was measured."""
    parts = []
    if check.predictions is not None and not val.is_multilabel:
        readable = check.predictions >= 0
        labels = torch.from_numpy(val.labels)[readable]
        top1 = 100 * float((check.predictions[readable] == labels).double().mean())
        parts.append(f"top-1 {top1:.2f} % on {int(readable.sum())} validation images")
    if check.label_agreement is not None:
        parts.append(
            f"the label on {check.label_agreement:.1f} % of {check.num_views_sampled} training views"
        )
    return ", ".join(parts)


def _average_views(views: Sequence[ViewLogits]) -> ViewLogits:
    """Return the mean logits of the views that all teachers have labeled."""
    rows = [{key: row for row, key in enumerate(v.keys)} for v in views]
    keys = [key for key in views[0].keys if all(key in own for own in rows)]
    parts = [v.logits[[own[key] for key in keys]] for v, own in zip(views, rows, strict=True)]
    logits = torch.stack(parts).mean(0)
    return ViewLogits(keys=keys, logits=logits, is_multilabel=views[0].is_multilabel)


def _predict(labelers: Sequence[DistillationTeacher]) -> Tensor | None:
    """Return the average's predictions of the validation images; None where weights are absent and not needed, as
    all targets are cached; collective."""
    first = labelers[0]
    absent = [teacher.distill.teacher for teacher in labelers if teacher.lacks_weights]
    if absent and all(teacher.is_complete for teacher in labelers):
        first.reporter.note(
            f"The teachers' average is not scored: the weights of {', '.join(absent)} are not here; all "
            "targets are cached."
        )
        return None
    networks = [teacher.get_network() for teacher in labelers]
    val, device, world = first.val, first.device, first.world
    shape = (len(val.labels), len(val.class_names))
    predictions = torch.full(shape if val.is_multilabel else shape[:1], -1, dtype=torch.int64)
    own = [network.model_config.preprocessing for network in networks]
    views = list(dict.fromkeys(pre.without_normalization for pre in own))
    batches = build_eval_loader(
        val,
        views,
        batch_size=BATCH_SIZE,
        workers=device.choose_num_workers(first.config.workers, in_memory=val.is_in_memory),
        pin_memory=device.pins_memory,
        shard=slice(world.rank, None, world.size),
        reporter=first.reporter,
    )
    predicted: list[tuple[list[int], list[Any]]] = []
    with first.reporter.task("check the teachers' average", len(val.labels)) as task:
        for batch in batches:
            if len(batch.indices):
                logits = []
                for network, pre in zip(networks, own, strict=True):
                    pixels = batch.images[views.index(pre.without_normalization)]
                    with torch.no_grad(), device.autocast():
                        output = network.forward_views(device.to_device(pixels)).logits
                    assert output is not None
                    logits.append(output.float().cpu())
                chosen = average_labels(logits, "hard", 1.0, val.is_multilabel).long()
                chosen = chosen if val.is_multilabel else chosen.argmax(1)
                predicted.append((batch.indices.tolist(), chosen.tolist()))
            task.advance(world.size * (len(batch.indices) + len(batch.errors)))
    for parts in world.all_gather_object(predicted):
        for indices, chosen_rows in parts:
            predictions[indices] = torch.tensor(chosen_rows)
    return predictions


def _write_check(path: Path, check: AverageCheck) -> None:
    assert check.predictions is not None
    write_json(
        path,
        {
            "val_predictions": check.predictions.tolist(),
            "label_agreement": check.label_agreement,
            "num_views_sampled": check.num_views_sampled,
        },
    )


def _read_check(path: Path | None, val: ImageDataset) -> AverageCheck | None:
    """Return a cached check; None where there is none of such data."""
    if path is None:
        return None
    shape = (len(val.labels), len(val.class_names)) if val.is_multilabel else (len(val.labels),)
    try:
        values = read_json(path)
        predictions = torch.tensor(values["val_predictions"])
        agreement, count = values.get("label_agreement"), values.get("num_views_sampled")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError):
        return None
    is_valid = (
        predictions.dtype is torch.int64
        and predictions.shape == shape
        and bool(((predictions >= -1) & (predictions < len(val.class_names))).all())
        and (agreement is None or (isinstance(agreement, float) and 0 <= agreement <= 100))
        and (agreement is None) == (count is None)
        and (count is None or (type(count) is int and count > 0))
    )
    return AverageCheck(predictions, agreement, count) if is_valid else None
