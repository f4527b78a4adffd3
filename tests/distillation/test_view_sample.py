"""What a teacher says about training views: measured on a sample, from the network or from a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.subsets import Subset
from deitctl.distillation.preflight import (
    RECORD,
    Preflight,
    record_views,
    summarize_preflight,
    warn_about_echo,
)
from deitctl.distillation.target_cache import TargetCache, open_cache
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.distillation.view_sample import (
    ViewLogits,
    draw_images,
    measure_label_agreement,
    read_views,
)
from deitctl.events import SilentReporter
from deitctl.models.model_config import Preprocessing
from deitctl.paths import read_json, write_json

from .test_preflight import SILENT, Make, Pair, open_teacher

KEYS = [(0, 3), (0, 1), (0, 2)]


def of_labels(little: Pair, labels: np.ndarray, names: tuple[str, ...]) -> Subset:
    return Subset(little[0], np.arange(len(labels)), labels, names)


def record(**values: object) -> Preflight:
    fixed: dict[str, object] = {
        "name": "t",
        "top1": 50.0,
        "top5": None,
        "mean_recall": 50.0,
        "num_images": 8,
        "class_match": "same",
        "class_rows": None,
        "finetuned": "no",
        "folder": "",
        "preprocessing": Preprocessing(),
        "head": "cls",
        "weights_fingerprint": "",
        "val_fingerprint": "",
        "val_predictions": (),
    }
    return Preflight(**{**fixed, **values})  # type: ignore[arg-type]


def test_images_are_drawn_by_the_view_seed_among_those_with_labels(little: Pair) -> None:
    labels = little[0].labels.copy()
    labels[40:] = -1
    part = of_labels(little, labels, little[0].class_names)
    drawn = draw_images(part, 0, 30)
    assert len(set(drawn.tolist())) == 30
    assert drawn.max() < 40
    assert draw_images(part, 0, 30).tolist() == drawn.tolist()
    assert draw_images(part, 1, 30).tolist() != drawn.tolist()
    assert len(draw_images(part, 0)) == 40


def test_agreement_and_entropy_by_hand(little: Pair) -> None:
    """Three views decided 0, 1, 1 of images labeled 0, 1, 0; probabilities 1/2, 1/4, 1/4 and two nearly certain."""
    train = of_labels(little, np.array([9, 1, 0, 0]), ("a", "b", "c"))
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [-99.0, 0.0, -99.0], [-99.0, 0.0, -99.0]])
    views = ViewLogits(keys=KEYS, logits=logits, is_multilabel=False)
    measured = record_views(record(), views, True, train)
    assert measured.label_agreement == pytest.approx(200 / 3)
    assert measured.num_views_sampled == 3
    assert measured.mean_entropy == pytest.approx(1.5 * math.log(2) / 3, abs=1e-4)
    assert "Its decision is the label on 66.7 % of 3 training views (entropy 0.35 nats)." in (
        summarize_preflight(measured, "")
    )


def test_of_several_labels_all_must_be_right(little: Pair) -> None:
    labels = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], dtype=np.bool_)
    train = of_labels(little, labels, ("a", "b"))
    logits = torch.tensor([[1.0, -1.0], [1.0, -1.0], [0.0, 2.0]])
    views = ViewLogits(keys=KEYS, logits=logits, is_multilabel=True)
    assert measure_label_agreement(views.decisions, train, views.keys) == pytest.approx(100 / 3)
    one = ViewLogits(keys=KEYS[:1], logits=torch.zeros(1, 2), is_multilabel=True)
    assert one.mean_entropy == pytest.approx(math.log(2))


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_a_cache_says_what_the_network_says(is_multilabel: bool, tmp_path: Path) -> None:
    """Soft targets of temperature 3 give the entropy at 1; hard ones the decisions; a missing one nothing."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    views = ViewLogits(keys=KEYS, logits=logits, is_multilabel=is_multilabel)
    for mode in ("hard", "soft"):
        codec = TargetCodec(mode, 5, 100, is_multilabel)
        cache: TargetCache = open_cache(tmp_path / mode, {"mode": mode}, codec, 4)
        records = codec.encode(teacher_targets(logits, mode, 3.0, is_multilabel))
        cache.write(KEYS[:2], records[:2])
        assert read_views(cache, codec, KEYS, 3.0) is None
        cache.write(KEYS[2:], records[2:])
        cached, has_probabilities = read_views(cache, codec, KEYS, 3.0) or pytest.fail("incomplete")
        assert cached.keys == KEYS
        assert torch.equal(cached.decisions, views.decisions)
        assert has_probabilities == (mode == "soft")
        if has_probabilities:
            assert cached.mean_entropy == pytest.approx(views.mean_entropy, abs=2e-3)


def test_views_of_damaged_images_are_left_out(tmp_path: Path) -> None:
    codec = TargetCodec("hard", 3)
    cache = open_cache(tmp_path / "cache", {}, codec, 4)
    cache.mark_damaged(KEYS[:1])
    cache.write(KEYS[1:], codec.encode(torch.eye(3)[:2]))
    cached = read_views(cache, codec, KEYS, 1.0)
    assert cached is not None
    assert cached[0].keys == KEYS[1:]


@pytest.mark.parametrize(
    ("mode", "agreement", "warns"),
    [("hard", 99.6, True), ("hard", 99.0, False), ("soft", 100.0, False), ("hard", None, False)],
)
def test_an_echo_is_warned_of_where_hard_labels_are_learned(
    mode: str,
    agreement: float | None,
    warns: bool,
    distilled: Callable[..., TrainConfig],
    reporter: SilentReporter,
) -> None:
    distill = distilled("run", mode=mode).distill
    assert isinstance(distill, DistillConfig)
    warn_about_echo(distill, "a teacher", agreement, reporter)
    warnings: list[str] = reporter.warnings  # type: ignore[attr-defined]
    assert [w.startswith("Its hard labels repeat the true") for w in warnings] == [True] * warns


def test_a_check_caches_the_hard_labels_of_its_views_and_records_them(
    distilled: Make, little: Pair, tmp_path: Path
) -> None:
    """A record of an earlier version is completed from the cache, without the network."""
    config = distilled("run", teacher_cache=str(tmp_path / "cache"))
    first = open_teacher(config, little)
    preflight = first.preflight
    assert preflight.num_views_sampled == len(little[0].labels) == first.num_sampled
    cache = first.label_cache
    assert cache is not None
    assert (cache.count_missing(1), cache.count_missing(2)) == (0, 60)
    decisions = cache.codec.decode(cache.read([(0, i) for i in range(60)])[0]).argmax(1)
    agreement = (decisions.numpy() == little[0].labels).mean()
    assert preflight.label_agreement == pytest.approx(100 * agreement)
    path = tmp_path / "cache" / RECORD
    old = {k: v for k, v in read_json(path).items() if k not in MEASURED}
    write_json(path, old)
    again = open_teacher(config, little)
    assert not again.is_loaded
    assert again.preflight == replace(preflight, mean_entropy=None)


MEASURED = ("label_agreement", "num_views_sampled", "mean_entropy")


@pytest.mark.parametrize(
    "changes",
    [{"mode": "soft"}, {"teacher_cache": "off"}, {"teacher_input": "mixed", "views": 0}],
    ids=str,
)
def test_soft_mixed_and_uncached_teachers_are_measured_and_cache_nothing(
    changes: dict[str, object], distilled: Make, little: Pair
) -> None:
    teacher = open_teacher(distilled("run", **changes), little)
    hard = open_teacher(distilled("run"), little)
    assert teacher.num_sampled == 0
    assert teacher.label_cache is None or teacher.label_cache.count_missing(1) == 60
    # the student's images have the teacher's size: all see the same views
    for name in MEASURED:
        assert getattr(teacher.preflight, name) == getattr(hard.preflight, name)


def test_without_a_check_on_views_nothing_is_cached(distilled: Make, little: Pair) -> None:
    teacher = open_teacher(distilled("run"), little, SILENT, on_views=False)
    assert teacher.preflight.label_agreement is None
    assert teacher.num_sampled == 0
