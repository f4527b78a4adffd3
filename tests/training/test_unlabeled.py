"""Images without labels: the teacher's losses learn from all, the true labels' from those that have one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deitctl
from deitctl.config import AslConfig, AugmentConfig, BceConfig
from deitctl.data.batch_table import TableDraws, draw_table, fill_mixing, list_parts
from deitctl.data.batch_transforms import mix_targets
from deitctl.data.mixup import Mix, MixGroup
from deitctl.data.samplers import SampleKey
from deitctl.errors import Interrupted
from deitctl.models.heads import HeadLogits
from deitctl.training.class_balance import ClassCounts
from deitctl.training.losses import find_labeled, make_targets
from deitctl.training.objective import (
    BinaryLoss,
    CrossEntropy,
    Distillation,
    StudentBatch,
    Supervised,
    bound_label_weight,
    build_objective,
)
from tests.training.test_objective import config as distilling

LABELS = torch.tensor([0, -1, 2, -1, 1, -1])
SEVERAL = torch.tensor([[1, 0, 1], [-1] * 3, [0, 0, 0], [-1] * 3, [0, 1, 0], [-1] * 3]).to(
    torch.int8
)
LOSSES = {
    "ce": (CrossEntropy(0.1, torch.tensor([0.5, 1.0, 2.0])), LABELS),
    "bce": (BinaryLoss(False, BceConfig(), smoothing=0.1), LABELS),
    "bce, hard": (BinaryLoss(False, BceConfig(target_thresh=0.0, sum_classes=True)), LABELS),
    "several": (BinaryLoss(True, BceConfig(), smoothing=0.1, class_weights=torch.ones(3)), SEVERAL),
    "asl": (BinaryLoss(True, BceConfig(), AslConfig()), SEVERAL),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_true_labels_is_the_mean_over_images_that_have_one(name, noise):
    """Also where a constant of the run, not their number in the batch, divides it."""
    task_loss, labels = LOSSES[name]
    logits = noise(6, 3).requires_grad_()
    labeled = find_labeled(labels)
    scale = len(labels) / labeled.sum()
    loss = scale * task_loss(logits, make_targets(labels, 3), smooth=True, labeled=labeled)
    loss.backward()

    rows = labeled.bool()
    alone = logits.detach()[rows].requires_grad_()
    expected = task_loss(alone, make_targets(labels[rows], 3), smooth=True)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert alone.grad is not None
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[rows], alone.grad)
    assert not logits.grad[~rows].any()


@pytest.mark.parametrize("name", LOSSES)
def test_of_two_mixed_images_the_share_that_has_a_label_counts(name, noise):
    task_loss, labels = LOSSES[name]
    labels, logits = labels[:2], noise(2, 3)  # of which the second has none
    augment, groups = (
        AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0),
        [MixGroup(slice(0, 2), Mix(0.75, None))],
    )
    keys = [SampleKey(0, 0, 0), SampleKey(0, 1, 0)]
    table = draw_table(keys, augment, 8, TableDraws(0, uses_affine=False))
    table, parts = (
        fill_mixing(table, groups, [0, 1]),
        list_parts(augment, groups, uses_affine=False),
    )
    targets = mix_targets(make_targets(labels, 3), table, parts)
    labeled = mix_targets(find_labeled(labels)[:, None], table, parts)[:, 0]
    assert labeled.tolist() == [0.75, 0.25]
    loss = task_loss(logits, targets, smooth=True, labeled=labeled)
    of_first = [
        task_loss(logits[n, None], make_targets(labels[:1], 3), smooth=True) for n in (0, 1)
    ]
    torch.testing.assert_close(loss, (0.75 * of_first[0] + 0.25 * of_first[1]) / 2)


class TwoHeads(nn.Module):
    """Gives the logits that it holds."""

    def __init__(self, cls: torch.Tensor, dist: torch.Tensor) -> None:
        super().__init__()
        self.cls, self.dist = nn.Parameter(cls), nn.Parameter(dist)

    def forward(self, images: torch.Tensor, drop_path_mask: object = None) -> HeadLogits:
        return HeadLogits(self.cls, self.dist)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_the_distillation_head_learns_from_all_images_and_the_class_head_from_labels(
    mode, noise, monkeypatch
):
    monkeypatch.setattr(
        "deitctl.training.objective.forward_heads", lambda student, images, mask: student(images)
    )
    student = TwoHeads(noise(6, 3).double(), noise(6, 3, seed=1).double())
    taught = noise(6, 3, seed=2).double().softmax(1)
    taught = F.one_hot(taught.argmax(1), 3).double() if mode == "hard" else taught
    objective = Distillation(distilling(mode), CrossEntropy(), label_scale=2.0)
    batch = StudentBatch(
        torch.zeros(6, 3, 1, 1),
        make_targets(LABELS, 3).double(),
        taught,
        None,
        labeled=find_labeled(LABELS),
    )
    losses = objective(student, batch)
    losses["loss"].backward()
    assert student.cls.grad is not None
    assert student.dist.grad is not None
    alpha, rows = objective.config.alpha, LABELS >= 0
    ce = (student.cls.detach().softmax(1) - make_targets(LABELS, 3)) / 3
    ce[~rows] = 0
    torch.testing.assert_close(student.cls.grad, (1 - alpha) * ce, rtol=1e-5, atol=1e-7)
    assert student.dist.grad.abs().sum(1).min() > 0


def test_the_weight_of_the_labels_is_all_images_over_those_with_one(little_config):
    counts = ClassCounts(torch.tensor([2.0, 6.0]).double(), 8, False, ("a", "b"), num_unlabeled=24)
    run = replace(little_config("run"), distill=distilling("hard"))
    objective = build_objective(run, counts)
    assert isinstance(objective, Distillation)
    assert objective.label_scale == 4
    assert build_objective(run, replace(counts, num_unlabeled=0)).label_scale == 1  # type: ignore[attr-defined]


def test_a_batch_with_most_of_the_labels_is_no_spike():
    few = Distillation(distilling("soft"), CrossEntropy(), label_scale=100.0)
    # A pair with labels among 16 images: an eighth of the batch, weighted by 100.
    assert 100 * 2 / 16 <= bound_label_weight(few, 16) <= 100
    many = replace(few, label_scale=2.0)
    assert bound_label_weight(many, 1024) < 1.3
    assert bound_label_weight(Supervised(CrossEntropy()), 16) == 1


def count_ink(images: torch.Tensor) -> torch.Tensor:
    """Logits of 10 classes from how dark an image is."""
    ink = images.mean(dim=(1, 2, 3))[:, None]
    return -((ink - torch.linspace(-1, 1, 10, device=images.device)) ** 2) * 8


class StopAfter:
    """Interrupts a run after an epoch."""

    def on_epoch_end(self, metrics: dict[str, object]) -> None:
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on a tenth of the digits with labels and the rest without: one of cached targets, and one of a teacher that
    runs at every step, which was stopped."""
    root = tmp_path_factory.mktemp("unlabeled")
    teacher = deitctl.CallableTeacher(
        network=count_ink,
        class_names=[str(n) for n in range(10)],
        preprocessing=deitctl.Preprocessing(img_size=8, mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    shape = {"model.depth": 1, "model.embed_dim": 12, "model.num_heads": 1, "model.patch_size": 4}
    settings = {
        "student": "deit_tiny", "teacher": teacher, "mode": "soft", "views": 1, "epochs": 2,
        "batch_size": 512, "img_size": 8, "workers": 0, "device": "cpu", "precision": "fp32",
        "allow_weak_teacher": True, "fraction": 0.1, "pretrained": False, **shape,
    }  # fmt: skip
    settings["unlabelled"] = "rest"
    deitctl.distill(output=root / "whole", teacher_cache=root / "cache", **settings)
    with pytest.raises(Interrupted):
        deitctl.distill(
            output=root / "resumed", teacher_cache="off", callbacks=[StopAfter()], **settings
        )
    deitctl.distill(resume=root / "resumed", teacher=teacher)
    return root


def read_weights(run) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_a_run_that_was_stopped_ends_as_an_unbroken_one_and_live_as_cached(runs):
    assert read_weights(runs / "whole") == read_weights(runs / "resumed")


def test_the_teacher_labels_all_images_and_a_run_lists_those_with_labels(runs):
    rows = (runs / "whole" / "split.csv").read_text().splitlines()
    num_labeled = sum(",train," in row for row in rows)
    assert 135 <= num_labeled <= 150
    epochs = [
        record
        for line in (runs / "whole" / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["kind"] == "epoch"
    ]
    losses = [epoch["train"]["task_loss"] for epoch in epochs]
    assert np.allclose(losses, np.log(10), atol=0.2)  # the mean over labels, not a tenth of it
