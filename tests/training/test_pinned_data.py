from __future__ import annotations

import dataclasses

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.readers import hub
from deitctl.distributed import SINGLE_PROCESS
from deitctl.recipes import SMALL
from deitctl.training.pinned_data import pin_as, pin_data

A, B, C = (f"hf://datasets/ann/{name}" for name in "abc")
COMMIT = "1" * 40
DISTILL = DistillConfig(
    teacher="t",
    mode="hard",
    alpha=0.5,
    tau=1.0,
    reduction="batchmean",
    dist_token=True,
    teacher_input="same",
    views=0,
    logits_topk=0,
    unlabelled=C,
)
CONFIG = TrainConfig(model="m", data=A, recipe=SMALL, extra_data=("photos", B), distill=DISTILL)


def test_every_source_of_the_hub_has_the_commit_that_was_opened(monkeypatch):
    monkeypatch.setattr(hub, "_opened", {ref: f"{ref}@{COMMIT}" for ref in (A, B, C)})
    pinned = pin_data(CONFIG, SINGLE_PROCESS)
    assert (pinned.data, pinned.extra_data) == (f"{A}@{COMMIT}", ("photos", f"{B}@{COMMIT}"))
    assert pinned.distill is not None
    assert pinned.distill.unlabelled == f"{C}@{COMMIT}"
    assert pin_as(CONFIG, pinned) == pinned
    other = dataclasses.replace(CONFIG, data=B, extra_data=(f"{B}@v2",))
    assert pin_as(other, pinned).extra_data == (f"{B}@v2",)
