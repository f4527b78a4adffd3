"""A step does what the recipe says: what learns, what the student sees, and whom it listens to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deitctl.config import DistillConfig
from deitctl.data.batch_transforms import normalize, student_affine
from deitctl.data.dataset import select
from deitctl.data.loader import Batch, ViewPlan, build_train_loader
from deitctl.data.mixup import mix_images, mix_targets, pair_indices, sample_mixup
from deitctl.data.samplers import SampleKey, TrainBatches, steps_per_epoch
from deitctl.device import choose_device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.target_cache import TargetCodec, open_cache
from deitctl.distillation.teacher import Teacher
from deitctl.errors import DataError, DeitctlError
from deitctl.events import SilentReporter
from deitctl.models.introspect import freeze_backbone
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import RECIPES
from deitctl.training import step as loop
from deitctl.training.losses import smooth_labels, teacher_targets
from deitctl.training.objective import Distillation, Supervised
from deitctl.training.optim import build_optimizer
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import (
    Plan,
    TrainingDiverged,
    gradients,
    set_train_mode,
    train_one_epoch,
    update,
)

CPU = choose_device("cpu", "fp32")
PRE = Preprocessing(img_size=32)
RECIPE = replace(
    RECIPES["digits"],
    batch_size=4,
    epochs=2,
    drop_path_rate=0.0,
    ema_decay=0.0,
    augment=replace(RECIPES["digits"].augment, mixup=0.8, cutmix=1.0, mixup_prob=1.0),
)


def distilling(sees: str, mode: str = "soft", views: int = 2) -> DistillConfig:
    return DistillConfig(
        teacher="t",
        mode=mode,
        alpha=0.3,
        tau=2.0,
        reduction="batchmean",
        dist_token=True,
        teacher_input=sees,
        views=views,
        logits_topk=10,
    )


@pytest.fixture(scope="module")
def some(digit_datasets):
    return select(digit_datasets[0], range(8))


@pytest.fixture
def teacher(deit) -> Teacher:
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=10, preprocessing=PRE
    )
    return Teacher(deit(classes=10, seed=9), model_config, tuple(range(10)), PRE)


def state_of(model: nn.Module, recipe=RECIPE) -> TrainState:
    return TrainState(
        model, build_optimizer(model, recipe.optim), CPU.grad_scaler(), None, Progress()
    )


def plan_of(recipe=RECIPE, **changes) -> Plan:
    return Plan(recipe, PRE, 10, 2, 0, CPU, **changes)


def stream(dataset, plan: ViewPlan | None = None, recipe=RECIPE):
    keys = TrainBatches(len(dataset.labels), recipe.batch_size, seed=0, epochs=recipe.epochs)
    return build_train_loader(
        dataset, recipe.augment, 32, keys, workers=0, pin_memory=False, plan=plan
    )


def take_step(plan: Plan, state: TrainState, batch) -> dict[str, torch.Tensor]:
    """Take one step and return the parts of its loss."""
    found = gradients(plan, state, batch, str, SilentReporter())
    update(plan, state, plan.rate(state.progress.step), found.norm)
    state.progress.step += 1
    return found.parts


class Watching:
    """Keeps what the objective was given and what it said."""

    def __init__(self, monkeypatch, kind: type) -> None:
        self.calls: list[tuple] = []
        own, calls = kind.__call__, self.calls

        def call(objective, student, images, targets, words, keep):
            calls.append((images, targets, words, keep))
            return own(objective, student, images, targets, words, keep)

        monkeypatch.setattr(kind, "__call__", call)


@pytest.mark.parametrize("name", ["regnety_002", "resnet18"])
def test_a_probed_body_keeps_its_statistics_and_its_head_trains(name, noise):
    model = timm.create_model(name, num_classes=4)
    before = {k: v.clone() for k, v in model.named_buffers()}
    head = model.get_classifier()
    set_train_mode(model.eval(), "head")
    assert head.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model(noise(4, 3, 64, 64) + 3)
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    set_train_mode(model, "all")
    assert all(m.training for m in model.modules())
    model(noise(4, 3, 64, 64) + 3)
    assert not any(
        torch.equal(v, before[k]) for k, v in model.named_buffers() if k.endswith("running_mean")
    )


def test_all_of_a_convnet_may_learn_under_the_statistics_that_came_with_it(noise):
    model = timm.create_model("regnety_002", num_classes=4)
    before = {k: v.clone() for k, v in model.named_buffers()}
    set_train_mode(model, "all", freeze_bn_stats=True)
    model(noise(4, 3, 64, 64) + 3).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())


def test_a_probed_body_drops_nothing(noise):
    model = timm.create_model("regnety_002", num_classes=4, drop_rate=0.5, drop_path_rate=0.5)
    images = noise(4, 3, 64, 64)
    set_train_mode(model, "head")
    assert torch.equal(model(images), model(images))
    set_train_mode(model, "all")
    assert not torch.equal(model(images), model(images))


def test_both_heads_of_a_probed_deit_train(deit):
    model = deit("deit_tiny_distilled").train()
    set_train_mode(model, "head")
    assert {n for n, m in model.named_modules() if m.training} == {"head", "head_dist"}


@pytest.mark.parametrize("kind", ["deit", "convnet"])
def test_an_epoch_of_a_probe_moves_the_head_alone(kind, deit, some, reporter):
    model = deit(classes=10) if kind == "deit" else timm.create_model("regnety_002", num_classes=10)
    freeze_backbone(model)
    recipe = replace(RECIPE, freeze="backbone")
    state = state_of(model, recipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_one_epoch(
        plan_of(recipe),
        state,
        stream(some),
        log=lambda _: None,
        name_of=some.name,
        reporter=reporter,
    )
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == (
        {"head.weight", "head.bias"} if kind == "deit" else {"head.fc.weight", "head.fc.bias"}
    )
    assert state.progress.step == 2


def test_without_a_teacher_the_labels_alone_are_learned(deit, some, monkeypatch):
    seen = Watching(monkeypatch, Supervised)
    batch, state = next(stream(some)), state_of(deit(classes=10))
    parts = take_step(plan_of(), state, batch)
    ((images, targets, words, keep),) = seen.calls
    mix = sample_mixup(RECIPE.augment, 32, 0, 0)
    assert (words, keep) == (None, None)
    other = pair_indices(batch.slots)
    assert torch.equal(images, mix_images(normalize(batch.images, PRE), mix, other))
    assert torch.equal(
        targets, mix_targets(smooth_labels(batch.labels, 10, RECIPE.smoothing), mix, other)
    )
    assert parts.keys() == {"loss", "labels"}


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_teacher_of_mixed_images_sees_what_the_student_sees(
    mode, deit, teacher, some, monkeypatch
):
    seen = Watching(monkeypatch, Distillation)
    plan = plan_of(distill=distilling("mixed", mode, views=0), teacher=teacher)
    parts = take_step(plan, state_of(deit("deit_tiny_distilled", classes=10)), next(stream(some)))
    ((images, _, words, _),) = seen.calls
    torch.testing.assert_close(words, teacher_targets(teacher(images), mode, 2.0))
    assert parts.keys() == {"loss", "labels", "teacher"}
    torch.testing.assert_close(parts["loss"], 0.7 * parts["labels"] + 0.3 * parts["teacher"])


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_words_about_views_are_mixed_as_the_images_are(
    views, cached, deit, teacher, some, monkeypatch, tmp_path
):
    """And only the student's image is moved on top, where a view comes again."""
    seen, form = Watching(monkeypatch, Distillation), TargetCodec("soft", 10, 10)
    cache = open_cache(tmp_path / "w", {"a": 1}, form, 8) if cached else None
    listener = CachedTeacher(form, 2.0, cache, lambda: teacher, CPU, views, 1)
    plan = plan_of(distill=distilling("unmixed", views=views), listener=listener)
    batch = next(stream(some, ViewPlan(5, views, 1, 32, listener.known)))
    take_step(plan, state_of(deit("deit_tiny_distilled", classes=10)), batch)
    ((images, targets, words, _),) = seen.calls
    mix = sample_mixup(RECIPE.augment, 32, 0, 0)
    assert mix is not None
    imgs = normalize(batch.images, PRE)
    assert plan.moves_on_top == (views > 0)
    shown = student_affine(imgs, batch.keys, RECIPE.augment, 0) if views else imgs
    other = pair_indices(batch.slots)
    assert torch.equal(images, mix_images(shown, mix, other))
    expected = mix_targets(
        teacher_targets(teacher.look(batch.teacher_images), "soft", 2.0), mix, other
    )
    torch.testing.assert_close(words, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(words.sum(1), torch.ones(4))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("distill", "kind", "moves"),
    [
        (None, Supervised, False),
        (distilling("mixed", views=0), Distillation, False),
        (distilling("unmixed", views=0), Distillation, False),
        (distilling("unmixed", views=8), Distillation, True),
    ],
)
def test_a_plan_knows_its_objective_and_whether_views_come_again(distill, kind, moves):
    plan = plan_of(distill=distill)
    assert isinstance(plan.objective, kind)
    assert plan.moves_on_top == moves


def test_a_cached_teacher_trains_the_same_student(deit, teacher, some, reporter, tmp_path):
    """Asked every time, asked and remembered, or only remembered: the same weights to the last bit."""
    form, trained = TargetCodec("soft", 10, 10), []
    cache = open_cache(tmp_path / "w", {"a": 1}, form, 8)

    def nobody() -> Teacher:
        raise AssertionError("the teacher was called")

    for words, ask in ((None, lambda: teacher), (cache, lambda: teacher), (cache, nobody)):
        listener = CachedTeacher(form, 2.0, words, ask, CPU, 1, 1)
        state = state_of(deit("deit_tiny_distilled", classes=10))
        batches = stream(some, ViewPlan(5, 1, 1, 32, listener.known), replace(RECIPE, epochs=1))
        train_one_epoch(
            plan_of(distill=distilling("unmixed", views=1), listener=listener),
            state,
            batches,
            log=lambda _: None,
            name_of=some.name,
            reporter=reporter,
        )
        trained.append(state.model.state_dict())
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name])
        assert torch.equal(value, trained[2][name])


def test_an_epoch_counts_and_logs_what_it_did(deit, some, reporter):
    records, state = [], state_of(deit(classes=10))
    assert steps_per_epoch(8, 4) == 2
    means = train_one_epoch(
        plan_of(), state, stream(some), log=records.append, name_of=some.name, reporter=reporter
    )
    assert (state.progress.step, state.progress.images_seen) == (2, 8)
    assert [r["step"] for r in records] == [
        0,
        1,
    ]  # the first and the last of an epoch, whatever its length
    assert means["loss"] == pytest.approx(sum(r["loss"] for r in records) / 2)


def test_a_loss_that_is_no_number_ends_the_run(deit, some, reporter):
    model = deit(classes=10)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(
        TrainingDiverged, match=r"The loss is nan and the gradient's norm nan at step 0"
    ):
        train_one_epoch(
            plan_of(),
            state_of(model),
            stream(some),
            log=lambda _: None,
            name_of=some.name,
            reporter=reporter,
        )


def test_reading_the_loss_is_rare_enough_to_keep_an_accelerator_busy():
    assert loop.LOG_EVERY >= 10


EVERYTHING = replace(
    RECIPE,
    batch_size=8,
    drop_path_rate=0.3,
    augment=replace(RECIPE.augment, random_erase_prob=0.7, rand_augment="rand-m9-mstd0.5-inc1"),
)


def gradients_of(deit, batch, micro_batch=0, *, step=0, room=None, reporter=None):
    """Return loss, norm and gradients of a batch with everything random on; `room`: images that memory holds."""
    model = deit("deit_tiny_distilled", classes=10, drop_path_rate=0.3).train()
    state = state_of(model, EVERYTHING)
    state.progress.step, state.progress.micro_batch = step, micro_batch
    sizes = []

    def look(_, arguments):
        sizes.append(len(arguments[0]))
        if room is not None and len(arguments[0]) > room:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

    model.register_forward_pre_hook(look)
    found = gradients(plan_of(EVERYTHING), state, batch, str, reporter or SilentReporter())
    return (
        found,
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        sizes,
        state,
    )


def assert_same_gradients(ours, theirs):
    (found, grads, *_), (expected, whole, *_) = ours, theirs
    assert found.parts.keys() == expected.parts.keys()
    for name, value in expected.parts.items():
        torch.testing.assert_close(found.parts[name], value, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.norm, expected.norm, rtol=1e-4, atol=0)
    assert grads.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(
            grads[name], value, rtol=1e-3, atol=1e-5 * float(expected.norm), msg=name
        )


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_gradients_of_micro_batches_are_those_of_the_whole_batch(kind, deit, some):
    cuts = {s: sample_mixup(EVERYTHING.augment, 32, 0, s).box is not None for s in range(20)}
    step = next(s for s, cut in cuts.items() if cut == (kind == "cutmix"))
    batch = next(stream(some, recipe=EVERYTHING))
    whole = gradients_of(deit, batch, step=step)
    for size, sizes in ((2, [2, 2, 2, 2]), (4, [4, 4]), (6, [6, 2]), (8, [8]), (64, [8])):
        parts = gradients_of(deit, batch, size, step=step)
        assert parts[2] == sizes
        assert_same_gradients(parts, whole)


@settings(max_examples=8)
@given(missing=st.sets(st.integers(0, 7), max_size=7), half=st.integers(1, 4))
def test_images_that_cannot_be_read_leave_micro_batches_what_the_whole_is(
    missing, half, deit, some
):
    batch = without(next(stream(some, recipe=EVERYTHING)), missing)
    whole, parts = gradients_of(deit, batch), gradients_of(deit, batch, 2 * half)
    assert whole[0].num_images == 8 - len(missing)
    assert_same_gradients(parts, whole)


def without(batch: Batch, missing: set[int]) -> Batch:
    """The batch as if the images in these slots could not be read."""
    rows = [row for row, slot in enumerate(batch.slots) if slot not in missing]
    bad = [
        (batch.keys[slot], f"{batch.keys[slot].index}.png is empty.") for slot in sorted(missing)
    ]
    keys, slots = [batch.keys[r] for r in rows], [batch.slots[r] for r in rows]
    return Batch(batch.images[rows], batch.labels[rows], keys, slots, bad, batch.teacher_images, [])


def test_where_memory_runs_out_the_batch_is_taken_in_halves_with_the_same_gradients(
    deit, some, reporter
):
    batch = next(stream(some, recipe=EVERYTHING))
    whole = gradients_of(deit, batch)
    cramped = gradients_of(deit, batch, room=3, reporter=reporter)
    assert cramped[2] == [8, 4, 2, 2, 2, 2]
    assert_same_gradients(cramped, whole)
    assert cramped[3].progress.micro_batch == 2  # from now on
    assert reporter.warnings == [
        "Out of memory with 8 images at a time: going on with 4, and a batch is still 8.",
        "Out of memory with 4 images at a time: going on with 2, and a batch is still 8.",
    ]


def test_memory_that_runs_out_within_a_batch_begins_it_again(deit, some):
    """What the first micro-batches left in the gradients does not count twice."""
    batch, calls = next(stream(some, recipe=EVERYTHING)), []
    model = deit("deit_tiny_distilled", classes=10, drop_path_rate=0.3).train()
    state = state_of(model, EVERYTHING)
    state.progress.micro_batch = 4

    def look(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(look)
    found = gradients(plan_of(EVERYTHING), state, batch, str, SilentReporter())
    assert len(calls) == 6  # 4, out of memory, then four times 2
    assert_same_gradients(
        (found, {n: p.grad for n, p in model.named_parameters()}), gradients_of(deit, batch)
    )


def test_memory_too_small_for_two_images_is_said(deit, some):
    with pytest.raises(DeitctlError, match="Memory runs out even with 2 images at a time"):
        gradients_of(deit, next(stream(some, recipe=EVERYTHING)), room=1)


def test_another_failure_is_not_taken_for_want_of_memory(deit, some):
    model = deit(classes=10)
    model.register_forward_pre_hook(lambda *_: model.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        gradients(plan_of(), state_of(model), next(stream(some)), str, SilentReporter())


def test_an_image_that_cannot_be_read_leaves_the_others_as_they_were(deit, some, monkeypatch):
    """The pairs of the others, what they see and what they drop; the one left alone is mixed with itself."""
    seen = Watching(monkeypatch, Supervised)
    batch = next(stream(some, recipe=EVERYTHING))
    for missing in (set(), {2}):
        gradients_of(deit, without(batch, missing))
    (images, targets, _, keep), (fewer, words, _, drops) = seen.calls
    others = [0, 1, 4, 5, 6, 7]
    assert len(fewer) == 7
    rows = [0, 1, 3, 4, 5, 6]
    assert torch.equal(fewer[rows], images[others])
    assert torch.equal(words[rows], targets[others])
    assert torch.equal(drops[..., rows], keep[..., others])
    assert torch.equal(drops[..., 2], keep[..., 3])
    alone = smooth_labels(batch.labels[3:4], 10, EVERYTHING.smoothing)
    torch.testing.assert_close(words[2:3], alone)


def test_unreadable_images_are_named_and_left_out_of_the_count(deit, some):
    found, _, _, state = gradients_of(deit, without(next(stream(some, recipe=EVERYTHING)), {0, 5}))
    assert found.num_images == 6
    assert len(state.progress.bad_images) == 2
    assert all(why == f"{name}.png is empty." for name, why in state.progress.bad_images.items())


def test_a_run_that_is_to_stop_at_a_bad_image_stops(deit, some):
    batch = without(next(stream(some, recipe=EVERYTHING)), {3})
    plan = plan_of(EVERYTHING, stop_on_bad_image=True)
    with pytest.raises(DataError, match=r"\d+\.png is empty\. The run stops at such"):
        gradients(plan, state_of(deit(classes=10), EVERYTHING), batch, str, SilentReporter())


def test_a_batch_of_bad_images_alone_is_said(deit):
    keys = [SampleKey(0, i, 0) for i in range(8)]
    nothing = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
    bad = [(key, f"{key.index}.png is empty.") for key in keys]
    batch = Batch(nothing, torch.empty(0, dtype=torch.int64), [], [], bad, nothing, [])
    with pytest.raises(DataError, match=r"No image of a whole batch can be read, 0\.png is empty"):
        gradients(
            plan_of(EVERYTHING),
            state_of(deit(classes=10), EVERYTHING),
            batch,
            str,
            SilentReporter(),
        )
