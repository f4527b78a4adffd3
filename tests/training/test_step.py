"""A step does what the recipe says: what is trained, what the student sees, where its targets come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deitctl.config import AslConfig, BceConfig, DistillConfig
from deitctl.data.batch_table import draw_table, fill_mixing, list_parts
from deitctl.data.batch_transforms import mix_targets, transform_batch
from deitctl.data.draws import BalancedDraws
from deitctl.data.loader import Batch, TeacherView, ViewPlan, build_train_loader
from deitctl.data.mixup import sample_mixup
from deitctl.data.samplers import SampleKey, TrainBatches
from deitctl.data.subsets import Subset, select
from deitctl.device import choose_device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.joint_targets import JointCodec
from deitctl.distillation.target_cache import open_cache
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import World
from deitctl.errors import DataError, DeitctlError
from deitctl.events import SilentReporter
from deitctl.models.introspect import freeze_backbone
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import RECIPES
from deitctl.training import step
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import place_batch
from deitctl.training.engine import build_engine
from deitctl.training.freezing import set_train_mode
from deitctl.training.losses import make_targets
from deitctl.training.objective import (
    BinaryLoss,
    CrossEntropy,
    Distillation,
    StudentBatch,
    Supervised,
)
from deitctl.training.optim import build_optimizer
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import accumulate_gradients, optimizer_step
from deitctl.training.step_stats import StepStats

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


def context_of(recipe=RECIPE, **changes) -> TrainContext:
    task_loss, distill = CrossEntropy(recipe.smoothing), changes.get("distill")
    objective = Distillation(distill, task_loss) if distill else Supervised(task_loss)
    return TrainContext(recipe, PRE, 10, 2, 0, CPU, objective, **changes)


def view_plan(seed: int, views: int, cached_teacher: CachedTeacher) -> ViewPlan:
    seen = TeacherView(32, is_cached=cached_teacher.has_target and (cached_teacher.has_target,))
    return ViewPlan(seed, views, 1, (seen,))


def stream(dataset, plan: ViewPlan | None = None, recipe=RECIPE):
    keys = TrainBatches(len(dataset.labels), recipe.batch_size, seed=0, epochs=recipe.epochs)
    return build_train_loader(
        dataset, recipe.augment, 32, keys, workers=0, pin_memory=False, plan=plan
    )


def forward_backward(context: TrainContext, state: TrainState, batch, reporter) -> StepStats:
    placed = place_batch(context, state, batch, state.progress.step)
    return step.forward_backward(build_engine(context, state), placed, reporter)


def take_step(context: TrainContext, state: TrainState, batch) -> dict[str, torch.Tensor]:
    """Take one step and return its losses."""
    stats = forward_backward(context, state, batch, SilentReporter())
    optimizer_step(context, state, context.lr_at(state.progress.step), stats.grad_norm)
    state.progress.step += 1
    return stats.losses


def transform(context: TrainContext, batch, targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and targets as the first step's student gets them."""
    augment, groups = RECIPE.augment, sample_mixup(RECIPE.augment, 32, 0, 0, batch.slots)
    assert [group.mix is None for group in groups] == [False]
    table = draw_table(batch.keys, augment, 32, context.table_draws)
    table = fill_mixing(table, groups, batch.slots)
    parts = list_parts(augment, groups, uses_affine=context.uses_student_affine)
    images = transform_batch(batch.images, table, parts, PRE)
    return images, mix_targets(targets, table, parts)


class RecordedObjective:
    """Records the batches that an objective gets."""

    def __init__(self, monkeypatch, kind: type) -> None:
        self.batches: list[StudentBatch] = []
        original, batches = kind.__call__, self.batches

        def call(objective, student, batch):
            batches.append(batch)
            return original(objective, student, batch)

        monkeypatch.setattr(kind, "__call__", call)


@pytest.mark.parametrize("name", ["regnety_002", "resnet18"])
def test_a_frozen_backbone_keeps_its_statistics_and_its_head_trains(name, noise):
    model = timm.create_model(name, num_classes=4)
    before = {k: v.clone() for k, v in model.named_buffers()}
    head = model.get_classifier()
    set_train_mode(model.eval(), "backbone")
    assert head.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model(noise(4, 3, 64, 64) + 3)
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    set_train_mode(model, "none")
    assert all(m.training for m in model.modules())
    model(noise(4, 3, 64, 64) + 3)
    assert not any(
        torch.equal(v, before[k]) for k, v in model.named_buffers() if k.endswith("running_mean")
    )


def test_freeze_bn_stats_trains_everything_with_constant_statistics(noise):
    model = timm.create_model("regnety_002", num_classes=4)
    before = {k: v.clone() for k, v in model.named_buffers()}
    set_train_mode(model, "none", freeze_bn_stats=True)
    model(noise(4, 3, 64, 64) + 3).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())


def test_a_frozen_backbone_drops_nothing(noise):
    model = timm.create_model("regnety_002", num_classes=4, drop_rate=0.5, drop_path_rate=0.5)
    images = noise(4, 3, 64, 64)
    set_train_mode(model, "backbone")
    assert torch.equal(model(images), model(images))
    set_train_mode(model, "none")
    assert not torch.equal(model(images), model(images))


def test_both_heads_train_with_a_frozen_backbone(deit):
    model = deit("deit_tiny_distilled").train()
    set_train_mode(model, "backbone")
    assert {n for n, m in model.named_modules() if m.training} == {"head", "head_dist"}


@pytest.mark.parametrize("kind", ["deit", "convnet"])
def test_with_a_frozen_backbone_an_epoch_moves_the_head_alone(kind, deit, some):
    model = deit(classes=10) if kind == "deit" else timm.create_model("regnety_002", num_classes=10)
    freeze_backbone(model)
    recipe = replace(RECIPE, freeze="backbone", epochs=1)
    set_train_mode(model, recipe.freeze)
    state = state_of(model, recipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for batch in stream(some, recipe=recipe):
        take_step(context_of(recipe), state, batch)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    head = "head" if kind == "deit" else "head.fc"
    assert moved == {f"{head}.weight", f"{head}.bias"}


def test_without_a_teacher_the_student_learns_labels_alone(deit, some, monkeypatch):
    objective = RecordedObjective(monkeypatch, Supervised)
    batch, state = next(stream(some)), state_of(deit(classes=10))
    losses = take_step(context_of(), state, batch)
    (student_batch,) = objective.batches
    assert (student_batch.teacher_targets, student_batch.drop_path_mask) == (None, None)
    images, targets = transform(context_of(), batch, make_targets(batch.labels, 10))
    assert torch.equal(student_batch.images, images)
    assert torch.equal(student_batch.targets, targets)
    assert losses.keys() == {"loss", "task_loss"}


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_teacher_of_mixed_images_sees_what_the_student_sees(
    mode, deit, teacher, some, monkeypatch
):
    objective = RecordedObjective(monkeypatch, Distillation)
    context = context_of(distill=distilling("mixed", mode, views=0), teacher=teacher)
    state = state_of(deit("deit_tiny_distilled", classes=10))
    losses = take_step(context, state, next(stream(some)))
    (student_batch,) = objective.batches
    expected = teacher_targets(teacher(student_batch.images).logits, mode, 2.0)
    torch.testing.assert_close(student_batch.teacher_targets, expected)
    assert losses.keys() == {"loss", "task_loss", "kd_loss"}
    expected = 0.7 * losses["task_loss"] + 0.3 * losses["kd_loss"]
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_targets_of_views_are_mixed_as_the_images_are(
    views, cached, deit, teacher, some, monkeypatch, tmp_path
):
    """And where views come again, the student's image alone gets an affine transform of its own."""
    objective, codec = RecordedObjective(monkeypatch, Distillation), TargetCodec("soft", 10, 10)
    cache = open_cache(tmp_path / "w", {"a": 1}, codec, 8) if cached else None
    cached_teacher = CachedTeacher(
        JointCodec(codec, None), 2.0, cache, lambda: teacher, CPU, views, 1
    )
    context = context_of(distill=distilling("unmixed", views=views), cached_teacher=cached_teacher)
    batch = next(stream(some, view_plan(5, views, cached_teacher)))
    take_step(context, state_of(deit("deit_tiny_distilled", classes=10)), batch)
    (student_batch,) = objective.batches
    assert context.uses_student_affine == (views > 0)
    targets = teacher_targets(teacher.forward_views(batch.teacher_images[0]).logits, "soft", 2.0)
    images, expected = transform(context, batch, targets)
    assert torch.equal(student_batch.images, images)
    torch.testing.assert_close(student_batch.teacher_targets, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(student_batch.teacher_targets.sum(1), torch.ones(4))
    torch.testing.assert_close(student_batch.targets.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("distill", "kind", "uses_student_affine"),
    [
        (None, Supervised, False),
        (distilling("mixed", views=0), Distillation, False),
        (distilling("unmixed", views=0), Distillation, False),
        (distilling("unmixed", views=8), Distillation, True),
    ],
)
def test_the_context_chooses_the_objective_and_the_students_affine(
    distill, kind, uses_student_affine
):
    context = context_of(distill=distill)
    assert isinstance(context.objective, kind)
    assert context.uses_student_affine == uses_student_affine


def test_a_cached_teacher_trains_the_same_student(deit, teacher, some, tmp_path):
    """Computed every time, computed and cached, or read from the cache alone: the same weights to the last bit."""
    codec, trained = TargetCodec("soft", 10, 10), []
    cache = open_cache(tmp_path / "w", {"a": 1}, codec, 8)
    recipe = replace(RECIPE, epochs=1)

    def refuse() -> Teacher:
        raise AssertionError("the teacher was loaded")

    for targets, load in ((None, lambda: teacher), (cache, lambda: teacher), (cache, refuse)):
        cached_teacher = CachedTeacher(JointCodec(codec, None), 2.0, targets, load, CPU, 1, 1)
        context = context_of(distill=distilling("unmixed", views=1), cached_teacher=cached_teacher)
        state = state_of(deit("deit_tiny_distilled", classes=10).train())
        for batch in stream(some, view_plan(5, 1, cached_teacher), recipe):
            take_step(context, state, batch)
        trained.append(state.model.state_dict())
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name])
        assert torch.equal(value, trained[2][name])


EVERYTHING = replace(
    RECIPE,
    batch_size=8,
    drop_path_rate=0.3,
    augment=replace(RECIPE.augment, random_erase_prob=0.7, rand_augment="rand-m9-mstd0.5-inc1"),
)


def gradients_of(deit, batch, micro_batch=0, *, step=0, room=None, reporter=None):
    """Return stats and gradients of a batch with everything random on; `room`: images that memory holds."""
    model = deit("deit_tiny_distilled", classes=10, drop_path_rate=0.3).train()
    state = state_of(model, EVERYTHING)
    state.progress.step, state.progress.micro_batch_size = step, micro_batch
    sizes = []

    def look(_, arguments):
        sizes.append(len(arguments[0]))
        if room is not None and len(arguments[0]) > room:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

    model.register_forward_pre_hook(look)
    stats = forward_backward(context_of(EVERYTHING), state, batch, reporter or SilentReporter())
    return (
        stats,
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        sizes,
        state,
    )


def assert_same_gradients(ours, theirs):
    (stats, grads, *_), (expected, expected_grads, *_) = ours, theirs
    assert stats.losses.keys() == expected.losses.keys()
    for name, value in expected.losses.items():
        torch.testing.assert_close(stats.losses[name], value, rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.grad_norm, expected.grad_norm, rtol=1e-4, atol=0)
    assert grads.keys() == expected_grads.keys()
    for name, value in expected_grads.items():
        torch.testing.assert_close(
            grads[name], value, rtol=1e-3, atol=1e-5 * float(expected.grad_norm), msg=name
        )


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_gradients_of_micro_batches_are_those_of_the_batch(kind, deit, some):
    batch = next(stream(some, recipe=EVERYTHING))

    def is_cut(step: int) -> bool:
        (group,) = sample_mixup(EVERYTHING.augment, 32, 0, step, batch.slots)
        return group.mix.bbox is not None

    step = next(s for s in range(20) if is_cut(s) == (kind == "cutmix"))
    whole = gradients_of(deit, batch, step=step)
    for size, sizes in ((2, [2, 2, 2, 2]), (4, [4, 4]), (6, [6, 2]), (8, [8]), (64, [8])):
        parts = gradients_of(deit, batch, size, step=step)
        assert parts[2] == sizes
        assert_same_gradients(parts, whole)


@settings(max_examples=8)
@given(missing=st.sets(st.integers(0, 7), max_size=7), half=st.integers(1, 4))
def test_unreadable_images_leave_micro_batches_equal_to_the_batch(missing, half, deit, some):
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
    return Batch(
        batch.images[rows],
        batch.labels[rows],
        keys,
        slots,
        bad,
        batch.teacher_images,
        batch.teacher_rows,
    )


def test_gradients_of_two_processes_add_up_to_those_of_one(deit, some):
    """Of several labels, of images drawn by their classes and mixed, by the asymmetric loss."""
    labels = np.eye(10, dtype=bool)[some.labels] | (np.arange(10) == 3)
    several = Subset(some, np.arange(8), labels, some.class_names)
    task_loss = BinaryLoss(True, BceConfig(), AslConfig(), smoothing=0.1)
    keys = TrainBatches(8, 8, seed=0, epochs=2, draws=BalancedDraws(labels))
    state = state_of(deit(classes=10))
    gradients = []
    for world in (World(), World(0, 2), World(1, 2)):
        recipe = replace(RECIPE, batch_size=8)
        batches = build_train_loader(
            several, recipe.augment, 32, keys, workers=0, pin_memory=False, shard=world.shard(8)
        )
        context = replace(context_of(recipe), objective=Supervised(task_loss), world=world)
        batch = place_batch(context, state, next(iter(batches)), 0)
        assert accumulate_gradients(build_engine(context, state), batch, 8) is not None
        gradients.append({n: p.grad.clone() for n, p in state.model.named_parameters()})
    whole, first, second = gradients
    for name, expected in whole.items():
        added = first[name] + second[name]
        torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_out_of_memory_halves_the_micro_batch_with_the_same_gradients(deit, some, reporter):
    batch = next(stream(some, recipe=EVERYTHING))
    whole = gradients_of(deit, batch)
    cramped = gradients_of(deit, batch, room=3, reporter=reporter)
    assert cramped[2] == [8, 4, 2, 2, 2, 2]
    assert_same_gradients(cramped, whole)
    assert cramped[3].progress.micro_batch_size == 2  # from now on
    assert reporter.warnings == [
        "Out of memory with micro-batches of 8 images: continuing with 4, and the batch size is still 8.",
        "Out of memory with micro-batches of 4 images: continuing with 2, and the batch size is still 8.",
    ]


def test_out_of_memory_within_a_batch_starts_it_again(deit, some):
    """What the first micro-batches left in the gradients does not count twice."""
    batch, calls = next(stream(some, recipe=EVERYTHING)), []
    model = deit("deit_tiny_distilled", classes=10, drop_path_rate=0.3).train()
    state = state_of(model, EVERYTHING)
    state.progress.micro_batch_size = 4

    def look(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(look)
    stats = forward_backward(context_of(EVERYTHING), state, batch, SilentReporter())
    assert len(calls) == 6  # 4, out of memory, then four times 2
    assert_same_gradients(
        (stats, {n: p.grad for n, p in model.named_parameters()}), gradients_of(deit, batch)
    )


def test_memory_too_small_for_two_images_is_an_error(deit, some):
    with pytest.raises(DeitctlError, match="Memory runs out even with 2 images at a time"):
        gradients_of(deit, next(stream(some, recipe=EVERYTHING)), room=1)


def test_another_error_is_not_taken_for_out_of_memory(deit, some):
    model = deit(classes=10)
    model.register_forward_pre_hook(lambda *_: model.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        forward_backward(context_of(), state_of(model), next(stream(some)), SilentReporter())


def test_an_unreadable_image_leaves_the_others_as_they_were(deit, some, monkeypatch):
    """The pairs of the others, what they see and what they drop; the one left alone is mixed with itself."""
    objective = RecordedObjective(monkeypatch, Supervised)
    batch = next(stream(some, recipe=EVERYTHING))
    for missing in (set(), {2}):
        gradients_of(deit, without(batch, missing))
    full, partial = objective.batches
    assert len(partial.images) == 7
    rows, others = [0, 1, 3, 4, 5, 6], [0, 1, 4, 5, 6, 7]
    assert torch.equal(partial.images[rows], full.images[others])
    assert torch.equal(partial.targets[rows], full.targets[others])
    assert torch.equal(partial.drop_path_mask[..., rows], full.drop_path_mask[..., others])
    assert torch.equal(partial.drop_path_mask[..., 2], full.drop_path_mask[..., 3])
    alone = make_targets(batch.labels[3:4], 10)
    torch.testing.assert_close(partial.targets[2:3], alone)


def test_unreadable_images_are_returned_and_not_counted(deit, some):
    batch = without(next(stream(some, recipe=EVERYTHING)), {0, 5})
    stats, *_ = gradients_of(deit, batch)
    assert stats.num_images == 6
    assert len(stats.unreadable) == 2
    assert all(reason == f"{index}.png is empty." for index, reason in stats.unreadable)


def test_with_stop_on_bad_image_an_unreadable_image_is_an_error(deit, some):
    batch = without(next(stream(some, recipe=EVERYTHING)), {3})
    context = context_of(EVERYTHING, stop_on_bad_image=True)
    with pytest.raises(DataError, match=r"\d+\.png is empty\. The run stops at such"):
        forward_backward(context, state_of(deit(classes=10), EVERYTHING), batch, SilentReporter())


def test_a_batch_of_unreadable_images_alone_is_an_error(deit):
    keys = [SampleKey(0, i, 0) for i in range(8)]
    nothing = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
    bad = [(key, f"{key.index}.png is empty.") for key in keys]
    batch = Batch(nothing, torch.empty(0, dtype=torch.int64), [], [], bad, [], [])
    with pytest.raises(
        DataError, match=r"No image of the batch can be read; the first: 0\.png is empty"
    ):
        forward_backward(
            context_of(EVERYTHING),
            state_of(deit(classes=10), EVERYTHING),
            batch,
            SilentReporter(),
        )
