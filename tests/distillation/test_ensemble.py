"""Several teachers of one run: averaged labels, roles, sizes, caches; cached equals live."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deitctl.config import AugmentConfig, DistillConfig, TeacherConfig
from deitctl.data.loader import TeacherView, ViewPlan, build_train_loader
from deitctl.data.samplers import TrainBatches
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.distillation.average import average_labels
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.ensemble import CachedEnsemble, join_views
from deitctl.distillation.joint_targets import JointCodec
from deitctl.distillation.target_cache import open_cache
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.errors import ConfigError
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.settings import from_dict, to_dict
from deitctl.sizes import ImageSize
from deitctl.training.several_teachers import check_roles, split_settings, split_teachers

CPU = choose_device("cpu", "fp32")
AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), hflip=0.5)
K = 10


def make_teacher(size: int, seed: int) -> Teacher:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, K))
    pre = Preprocessing(img_size=size)
    config = ModelConfig(architecture="linear", num_classes=K, preprocessing=pre)
    return Teacher(model, config, tuple(range(K)), pre)


def store(logits: torch.Tensor, is_multilabel: bool = False) -> torch.Tensor:
    """What a cache gives back of a teacher's logits, whatever `--logits-topk` is."""
    codec = TargetCodec("logits", logits.shape[1], 100, is_multilabel)
    records = codec.encode(logits)
    assert codec.is_valid(records).all()
    return codec.decode(records)


def distill(**changes: object) -> DistillConfig:
    values = {"teacher": "a", "mode": "hard", "alpha": 0.5, "tau": 1.0, "reduction": "batchmean"}
    values |= {"dist_token": True, "teacher_input": "unmixed", "views": 2, "logits_topk": 5}
    return DistillConfig(**(values | changes))


@pytest.mark.parametrize("is_multilabel", [False, True])
@pytest.mark.parametrize("tau", [0.3, 1.0, 3.0])
def test_stored_logits_give_the_targets_of_averaged_logits(noise, is_multilabel, tau):
    """Of 400 classes, of which teachers are sure of different ones."""
    logits = [2 * noise(2000, 400, seed=n) for n in range(2)]
    for n, x in enumerate(logits):
        x[torch.arange(2000), (torch.arange(2000) + n * 7) % 400] += 20
    average = torch.stack(logits).mean(0)
    stored = [store(x, is_multilabel) for x in logits]
    for mode in ("hard", "soft"):
        expected = teacher_targets(average, mode, tau, is_multilabel)
        assert torch.equal(average_labels(stored, mode, tau, is_multilabel), expected)


def test_stored_logits_are_checked(noise):
    codec = TargetCodec("logits", K)
    records = codec.encode(noise(3, K))
    records[0, 5] ^= 1
    records[1] = codec.encode(torch.full((1, K), float("inf")))
    records[2] = 0
    assert not codec.is_valid(records).any()


def test_one_teachers_labels_are_not_touched(noise):
    labels = noise(4, K).softmax(1)
    assert average_labels([labels], "soft", 3.0) is labels


@pytest.mark.parametrize("sizes", [(12, 12), (12, 20)])
def test_cached_targets_of_several_teachers_are_computed_ones_to_the_bit(
    digit_datasets, tmp_path: Path, sizes: tuple[int, int]
):
    """In three ways: nothing cached, one teacher's targets cached by a run of it alone, all cached."""
    some = select(digit_datasets[0], range(8))
    teachers = [make_teacher(size, seed) for seed, size in enumerate(sizes)]
    codec = TargetCodec("logits", K)
    caches = [open_cache(tmp_path / str(n), {"of": n}, codec, 8) for n in range(2)]

    def run(cached: list[bool]) -> list[torch.Tensor]:
        parts, views = [], []
        for teacher, cache, size, uses in zip(teachers, caches, sizes, cached, strict=True):
            own = cache if uses else None
            parts.append(
                CachedTeacher(JointCodec(codec, None), 3.0, own, lambda t=teacher: t, CPU, 1, 1)
            )
            views.append(TeacherView(size, is_cached=own and (own.has_target,)))
        seen = join_views(views)
        assert len(seen) == len(set(sizes))  # each view is rendered once for each size
        places = [next(n for n, v in enumerate(seen) if v.size == size) for size in sizes]
        parts = [replace(part, place=n) for part, n in zip(parts, places, strict=True)]
        ensemble = CachedEnsemble(tuple(parts), "hard", 1.0, False)
        assert (ensemble.cache is None) == (not all(cached))
        keys = TrainBatches(8, 4, seed=0, epochs=1, repeats=1)
        plan = ViewPlan(7, 1, 1, seen)
        batches = build_train_loader(some, AUGMENT, 8, keys, workers=0, pin_memory=False, plan=plan)
        return [label for batch in batches for label in ensemble(batch).labels]

    live = run([False, False])
    run([True, False])
    assert caches[0].count_missing(1) == 0
    assert caches[1].count_missing(1) == 8
    for cached in ([True, True], [True, True]):
        assert all(map(torch.equal, run(cached), live))
    assert caches[1].count_missing(1) == 0


def test_each_teacher_is_configured_as_if_it_were_alone():
    more = (TeacherConfig(teacher="b", teacher_img_size=64),)
    alone = distill(more_teachers=more).list_teachers()
    assert [(d.teacher, d.mode, d.tau) for d in alone] == [("a", "soft", 3.0), ("b", "soft", 3.0)]
    assert [d.teacher_img_size for d in alone] == [0, 64]
    # the cache is that of a run of this teacher alone, in mode soft
    assert alone[0] == distill(mode="soft", tau=3.0)
    one = distill()
    assert one.list_teachers() == (one,)


def test_roles_decide_what_each_teacher_is_asked_for():
    more = (TeacherConfig(teacher="b", teacher_role="features"),)
    both = distill(mode="features+hard", teacher_role="labels", more_teachers=more)
    assert [d.mode for d in both.list_teachers()] == ["hard", "features"]
    check_roles(both)
    with pytest.raises(ConfigError, match="learns labels, and no teacher gives them"):
        check_roles(replace(both, teacher_role="features"))
    with pytest.raises(ConfigError, match="does not learn"):
        check_roles(distill(more_teachers=more))
    with pytest.raises(ConfigError, match="a is named twice"):
        check_roles(distill(more_teachers=(TeacherConfig(teacher="a"),)))


def test_a_run_file_holds_every_teacher():
    config = distill(more_teachers=(TeacherConfig(teacher="b", teacher_img_size=(32, 64)),))
    assert from_dict(DistillConfig, to_dict(config), "run.toml") == config


def test_settings_are_one_for_all_teachers_or_one_for_each(tmp_path: Path):
    (tmp_path / "c+d").mkdir()
    assert split_teachers("a+b") == ["a", "b"]
    assert split_teachers(str(tmp_path / "c+d")) == [str(tmp_path / "c+d")]
    settings = {"seed": 1, "distill.teacher": ["a", "b"], "distill.teacher_weights": ["", "w"]}
    settings |= {"distill.finetune_teacher": "head"}
    first, more = split_settings(settings)
    assert first == {
        "seed": 1,
        "distill.teacher": "a",
        "distill.teacher_weights": "",
        "distill.finetune_teacher": "head",
    }
    assert more == [
        {
            "distill.teacher": "b",
            "distill.teacher_weights": "w",
            "distill.finetune_teacher": "head",
        }
    ]
    with pytest.raises(ConfigError, match="is one for 2 teachers"):
        split_settings({"distill.teacher": "a+b", "distill.teacher_weights": "w"})
    sizes: list[ImageSize] = [1, 2, 3]
    with pytest.raises(ConfigError, match="is given 3 times, for 2 teachers"):
        split_settings({"distill.teacher": "a+b", "distill.teacher_img_size": sizes})
