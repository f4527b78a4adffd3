"""A step of the recipe `deit3` is one of timm's LAMB and binary cross-entropy, to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import Lamb  # type: ignore[attr-defined]

from deitctl.config import TrainConfig
from deitctl.models.vit import VisionTransformer
from deitctl.recipes import RECIPES
from deitctl.training.class_balance import ClassCounts
from deitctl.training.objective import StudentBatch, build_objective
from deitctl.training.optim import build_optimizer, set_learning_rate

RECIPE = RECIPES["deit3"]


def test_a_step_equals_one_of_timms_classes(tiny_arch, randomize, noise, little):
    arch = replace(tiny_arch("deit3_small"), embed_dim=48, depth=2, num_heads=3)
    ours = randomize(VisionTransformer(arch, num_classes=10, img_size=32))
    theirs = copy.deepcopy(ours)
    images = noise(6, 3, 32, 32)
    # mixed labels, of two classes an image: `targets.gt(0.0)` in deit/engine.py makes both 1
    lam = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0, 0.7])[:, None]
    one_hot = torch.eye(10)
    targets = lam * one_hot[[0, 1, 2, 3, 4, 5]] + (1 - lam) * one_hot[[5, 4, 3, 2, 1, 0]]

    objective = build_objective(
        TrainConfig(model="deit3_small", data="digits", recipe=RECIPE), ClassCounts.of(little[0])
    )
    optimizer = build_optimizer(ours, RECIPE.optim)
    decayed = [
        p
        for n, p in theirs.named_parameters()
        if p.ndim > 1 and "token" not in n and n != "pos_embed"
    ]
    rest = [p for p in theirs.parameters() if not any(p is d for d in decayed)]
    # the norm of all gradients is summed in the order of the groups
    lamb = Lamb(
        [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}],
        lr=4e-3,
        eps=1e-8,
    )
    loss = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0)

    for _ in range(2):
        named = objective(ours, StudentBatch(images, targets, None, None))
        optimizer.zero_grad()
        named["loss"].backward()
        set_learning_rate(optimizer, RECIPE.optim.lr)
        optimizer.step()

        expected = loss(theirs(images).cls, targets)
        lamb.zero_grad()
        expected.backward()
        lamb.step()

        assert torch.equal(named["loss"], expected)
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b), name
