"""Out-of-fold predictions: of every image, by the run that held it out, and what they score.

Letters: N images, K classes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.data.classes import match_classes
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.folds import FoldedData
from deitctl.data.labels import list_labels
from deitctl.data.loader import build_eval_loader
from deitctl.data.splits import list_relative_paths
from deitctl.device import Device
from deitctl.distributed import World
from deitctl.errors import DataError, ModelError
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.metrics import mean_percent, score_evenly, topk_correct
from deitctl.evaluation.multilabel import (
    average_precision,
    count_classes,
    fit_pooled_threshold,
    fit_thresholds,
    mean_average_precision,
    micro_average_precision,
    rank,
    sample_f1,
)
from deitctl.events import Reporter
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, fuse_heads, to_probs
from deitctl.models.tasks import choose_labels
from deitctl.paths import write_bytes
from deitctl.pieces import Pieces

BATCH_SIZE = 64
TOPK = 5


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the models of all folds say of the images that they were not trained on."""

    probs: NDArray[np.float32]
    """Probability of each class, [N,K]; NaN for an image that could not be read."""
    losses: NDArray[np.float64]
    """Cross-entropy of each image, [N], nats, binary and averaged over the classes where an image has several
    labels; NaN where it could not be read."""
    read_errors: dict[int, str]
    """Reason for each image that could not be read."""

    @classmethod
    def empty(cls, images: ImageDataset) -> Outputs:
        """Return those of no model yet."""
        size = len(images.labels), len(images.class_names)
        return cls(np.full(size, np.nan, np.float32), np.full(size[0], np.nan), {})

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """Whether each image could be read, [N]."""
        return ~np.isnan(self.losses)


@torch.no_grad()
def predict_fold(
    root: Path,
    folded: FoldedData,
    fold: int,
    outputs: Outputs,
    *,
    device: Device,
    workers: int,
    reporter: Reporter,
    world: World,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Predict the images that a fold holds out by its run's model, and put what it says into `outputs`.

    As `deitctl eval` does: in the model's own preprocessing and head rule, divided by its temperature.

    Args:
        root: the finished run of the fold.
        folded: the images.
        fold: from 1.
        outputs: of all folds.
        device: of the forward passes, in fp32.
        workers: loader processes.
        reporter: shows progress.
        world: processes that share the images; all get the outputs of all.
        pause: called before every batch; may raise to stop.

    Raises:
        ModelError: the run's model lacks a class.
        DataError: no image can be read.
    """
    _, val = folded.split(fold)
    loaded = load_model(str(root), reporter=reporter)
    model_config = loaded.model_config
    match = match_classes(model_config, val.class_names)
    if match is None:
        raise ModelError(f"{root} lacks some of the classes of {folded.name}.", "Train it again.")
    model = device.to_device(loaded.model).eval()
    head = choose_head("auto", model_config.head, model)
    eval_model = EvalModel(
        model=model, preprocessing=model_config.preprocessing, rows=match.rows, head=head
    )
    rows, probs, losses, errors = [], [], [], []
    batches = build_eval_loader(
        val,
        [model_config.preprocessing.without_normalization],
        batch_size=BATCH_SIZE,
        workers=workers,
        pin_memory=device.pins_memory,
        shard=slice(world.rank, None, world.size),
        pause=pause,
        reporter=reporter,
    )
    pieces = Pieces(device)
    with reporter.task(f"fold {fold}, predict", len(val.labels)) as task:
        for batch in batches:
            pause()
            errors += batch.errors
            if len(batch.indices):
                heads = eval_model.forward_where_it_fits(batch.images[0], pieces)
                logits = fuse_heads(heads, head, model_config.task).float().cpu()
                logits = logits / model_config.temperature(head)
                rows.append(batch.indices)
                probs.append(to_probs(logits, model_config.task)[:, list(match.rows)])
                losses.append(_compute_losses(logits, batch.labels, match.rows))
            task.advance(world.size * (len(batch.indices) + len(batch.errors)))
    for some_rows, some_probs, some_losses, some_errors in world.all_gather_object(
        (rows, probs, losses, errors)
    ):
        for indices, values, loss in zip(some_rows, some_probs, some_losses, strict=True):
            places = val.indices[indices.numpy()]
            outputs.probs[places], outputs.losses[places] = values.numpy(), loss.numpy()
        outputs.read_errors.update({int(val.indices[n]): reason for n, reason in some_errors})
    if not outputs.is_read[val.indices].any():
        raise DataError(f"None of the {len(val.labels)} images of fold {fold} can be read.")


def _compute_losses(logits: Tensor, labels: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Return the loss of each image, [B], of logits [B,K'] and labels [B] or [B,K]."""
    if labels.ndim == 2:
        class_logits = logits[:, list(rows)]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            class_logits, labels.float(), reduction="none"
        )
        return loss.double().mean(1)
    targets = torch.tensor(rows)[labels]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()


def choose_predictions(
    folded: FoldedData, outputs: Outputs
) -> tuple[Labels, NDArray[np.float64] | None]:
    """Return what is predicted of each image, and the thresholds that were fitted to all images.

    Returns:
        Of one label an image: the class, [N], and None. Of several: which classes, [N,K], by
        thresholds that were fitted to the images of the other folds, so that no image has a part in
        its own; and those fitted to all, [K]. Images that could not be read have no class: -1, or
        all False.
    """
    labels: NDArray[Any] = folded.images.labels
    read = outputs.is_read
    if labels.ndim == 1:
        preds = np.full(len(labels), -1, np.int64)
        preds[read] = outputs.probs[read].argmax(axis=1)
        return preds, None
    chosen = np.zeros_like(labels)
    truth, probs, fold_of = labels[read], outputs.probs[read], folded.fold_of[read]
    ranking = rank(truth, probs)
    rows = np.flatnonzero(read)
    for fold in range(1, folded.num_folds + 1):
        others = fold_of != fold
        pooled = fit_pooled_threshold(truth[others], probs[others])
        thresholds = fit_thresholds(ranking, pooled, others)
        chosen[rows[~others]] = choose_labels(probs[~others], thresholds)
    return chosen, fit_thresholds(ranking, fit_pooled_threshold(truth, probs))


def score(
    labels: Labels, preds: Labels, outputs: Outputs, which: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the metrics of some images, by the names that `deitctl eval` has for them.

    Args:
        labels: [N] or [N,K].
        preds: [N] or [N,K], see `choose_predictions`.
        outputs: of all images.
        which: of the images, [N]; those that could not be read are left out.
    """
    which = which & outputs.is_read
    labels, preds, probs = labels[which], preds[which], outputs.probs[which]
    compute = _score_one_label if labels.ndim == 1 else _score_several
    return compute(labels, preds, probs) | {"loss": float(outputs.losses[which].mean())}


def _score_one_label(
    labels: NDArray[Any], preds: NDArray[Any], probs: NDArray[np.float32]
) -> dict[str, float]:
    balanced, macro_f1 = score_evenly(labels, preds, probs.shape[1])
    scores = {"top1": mean_percent(torch.from_numpy(labels == preds))}
    if probs.shape[1] > TOPK:
        correct = topk_correct(torch.from_numpy(probs), torch.from_numpy(labels), TOPK)
        scores["top5"] = mean_percent(correct)
    return scores | {"balanced_accuracy": 100 * balanced, "macro_f1": 100 * macro_f1}


def _score_several(
    labels: NDArray[Any], preds: NDArray[Any], probs: NDArray[np.float32]
) -> dict[str, float]:
    counts = count_classes(labels, preds)
    # A mean over the classes that have images.
    macro_f1 = 100 * counts.macro_f1 if labels.any() else float("nan")
    return {
        "map": 100 * mean_average_precision(average_precision(rank(labels, probs))),
        "micro_ap": 100 * micro_average_precision(labels, probs),
        "macro_f1": macro_f1,
        "micro_f1": 100 * counts.micro_f1,
        "sample_f1": 100 * float(sample_f1(labels, preds).mean()),
    }


def write_predictions(
    path: Path,
    folded: FoldedData,
    preds: Labels,
    outputs: Outputs,
) -> None:
    """Write a CSV table of all images: image, fold, group, label, predicted, a probability a class."""
    images, names = folded.images, folded.images.class_names
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    groups = folded.group_names
    rows.writerow(
        ["image", "fold", *(["group"] if groups else []), "label", "predicted"]
        + [f"probability {name}" for name in names]
    )
    paths, labels, read = list_relative_paths(images), list_labels(images), outputs.is_read
    for index, path_below in enumerate(paths):
        row: list[object] = [path_below, int(folded.fold_of[index])]
        if groups:
            row.append(groups[index])
        row.append(_join_names([names[label] for label in labels[index]], images.is_multilabel))
        if not read[index]:
            rows.writerow(row + [""] * (1 + len(names)))
            continue
        chosen = np.flatnonzero(preds[index]) if images.is_multilabel else [preds[index]]
        row.append(_join_names([names[label] for label in chosen], images.is_multilabel))
        rows.writerow(row + [f"{p:.6g}" for p in outputs.probs[index].tolist()])
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _join_names(names: list[str], is_multilabel: bool) -> str:
    """Return a cell of labels, as a table of several labels an image may have them."""
    if not is_multilabel:
        return names[0]
    return "|".join(names) if not any("|" in name for name in names) else json.dumps(names)
