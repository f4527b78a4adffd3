"""Targets are computed once, and are the same from the network and from the cache."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.data import reading
from deitctl.data.batch_transforms import normalize
from deitctl.data.loader import Batch, TeacherView, ViewPlan, build_train_loader
from deitctl.data.readers.folder import open_folder
from deitctl.data.samplers import SampleKey, TrainBatches, view_of
from deitctl.data.subsets import select
from deitctl.data.transforms import train_transform
from deitctl.device import Device, choose_device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.joint_targets import JointCodec
from deitctl.distillation.target_cache import TargetCache, open_cache
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.errors import DataChanged, TeacherError
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import RECIPES
from deitctl.transfers import PendingRead

AUGMENT = RECIPES[
    "finetune"
].augment  # has no RandAugment, for which every process would import timm
SIZE = 32  # of the teacher's input; the student's is half of it
CPU = choose_device("cpu", "fp32")
VIEWS, REPEATS, IMAGES = 3, 2, 12
CODECS = pytest.mark.parametrize(
    "codec",
    [
        TargetCodec("hard", 10),
        TargetCodec("soft", 10, 4),
        TargetCodec("soft", 10, 10),
        TargetCodec("hard", 10, is_multilabel=True),
        TargetCodec("soft", 10, 4, is_multilabel=True),
    ],
    ids=["hard", "soft", "full", "hard-several", "soft-several"],
)
HARD = TargetCodec("hard", 10)


def without_target(cache: TargetCache, view: int) -> list[int]:
    """The images of a view without a target, unreadable ones among them."""
    return sorted(set(range(cache.num_images)) - set(cache.cached_indices(view).tolist()))


class CountingTeacher(Teacher):
    """Records how many images each forward pass has; padding, which is black, does not count."""

    def forward_views(self, pixels: torch.Tensor) -> torch.Tensor:
        self.__dict__.setdefault("batch_sizes", []).append(int(pixels.flatten(1).any(1).sum()))
        return super().forward_views(pixels)


@pytest.fixture(scope="module")
def some(digit_datasets):
    return select(digit_datasets[0], range(IMAGES))


@pytest.fixture
def teacher(deit, some) -> CountingTeacher:
    model, pre = deit(classes=10, img_size=SIZE, seed=4), Preprocessing(img_size=SIZE)
    # noise says the same of every image until what it says of all is taken off
    with torch.no_grad():
        model.head.weight.mul_(10)
        views = np.stack(
            [train_transform(some.read(i), AUGMENT, SIZE, 0, 0, i) for i in range(IMAGES)]
        )
        model.head.bias.sub_(model(normalize(torch.from_numpy(views), pre)).cls.mean(0))
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=10, preprocessing=pre
    )
    teacher = CountingTeacher(model, model_config, tuple(range(10)), pre)
    teacher.batch_sizes = []
    return teacher


def open_cached(
    teacher, codec, folder: Path | None, num_images: int = IMAGES, views: int = VIEWS
) -> CachedTeacher:
    cache = (
        open_cache(folder, {"of": codec.mode}, codec, num_images) if folder is not None else None
    )
    return CachedTeacher(JointCodec(codec, None), 3.0, cache, lambda: teacher, CPU, views, REPEATS)


def load_batches(
    dataset, cached_teacher: CachedTeacher, epochs: int = 4, workers: int = 0
) -> Iterator[Batch]:
    """Batches of 4 as of a training, with the views whose targets are missing."""
    keys = TrainBatches(len(dataset.labels), 4, seed=0, epochs=epochs, repeats=REPEATS)
    has_target = cached_teacher.has_target
    seen = TeacherView(SIZE, is_cached=None if has_target is None else (has_target,))
    plan = ViewPlan(7, cached_teacher.views, REPEATS, (seen,))
    return build_train_loader(
        dataset, AUGMENT, SIZE // 2, keys, workers=workers, pin_memory=False, plan=plan
    )


def expected(teacher, dataset, codec, view: int, index: int) -> torch.Tensor:
    """The target of one view of one image, computed on its own."""
    pixels = torch.from_numpy(train_transform(dataset.read(index), AUGMENT, SIZE, 7, view, index))[
        None
    ]
    logits = Teacher.forward_views(teacher, pixels).logits
    return teacher_targets(logits, codec.mode, 3.0, codec.is_multilabel)


def view_key(key: SampleKey) -> tuple[int, int]:
    return view_of(key, views=VIEWS, repeats=REPEATS), key.index


def refuse_to_load() -> Teacher:
    raise AssertionError("the teacher was called")


def fill(cached_teacher: CachedTeacher, dataset, reporter, **changes: int) -> int:
    options = {"num_views": VIEWS, "batch_size": 5, "workers": 0, **changes}
    return cached_teacher.fill(dataset, AUGMENT, 7, reporter=reporter, **options).num_computed


@CODECS
def test_cached_targets_equal_computed_ones(codec, teacher, some, tmp_path):
    caching, computing = (
        open_cached(teacher, codec, tmp_path / "w"),
        open_cached(teacher, codec, None),
    )
    for ours, theirs in zip(
        load_batches(some, caching), load_batches(some, computing), strict=True
    ):
        assert ours.keys == theirs.keys
        torch.testing.assert_close(
            caching(ours).labels, computing(theirs).labels, atol=2e-3, rtol=0
        )
    first = [caching(batch).labels for batch in load_batches(some, caching)]
    cached_only = CachedTeacher(
        JointCodec(codec, None), 3.0, caching.cache, refuse_to_load, CPU, VIEWS, REPEATS
    )
    for batch, targets in zip(load_batches(some, cached_only), first, strict=True):
        assert (len(batch.teacher_images[0]), batch.teacher_rows) == (0, [[]])
        assert torch.equal(cached_only(batch).labels, targets)


@CODECS
def test_targets_are_those_of_the_batchs_views(codec, teacher, some, tmp_path):
    """Up to the rounding of the codec, those of each view on its own."""
    for cached_teacher in (
        open_cached(teacher, codec, tmp_path / "w"),
        open_cached(teacher, codec, None),
    ):
        batch = next(load_batches(some, cached_teacher))
        targets = cached_teacher(batch).labels
        if not codec.is_multilabel:
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
        alone = torch.cat([expected(teacher, some, codec, *view_key(key)) for key in batch.keys])
        torch.testing.assert_close(targets, codec.decode(codec.encode(alone)), atol=2e-3, rtol=0)
    assert len({tuple(w) for w in targets.tolist()}) > 1


@CODECS
def test_only_missing_targets_are_computed(codec, teacher, some, tmp_path):
    cached_teacher = open_cached(teacher, codec, tmp_path / "w")
    plain = next(load_batches(some, cached_teacher))
    places = [view_key(key) for key in plain.keys]
    mark = codec.encode(torch.eye(10)[[9, 8]])
    cached_teacher.cache.write([places[3], places[1]], mark)  # not those of the network
    batch = next(load_batches(some, cached_teacher))
    assert batch.teacher_rows == [[0, 2]]
    targets = cached_teacher(batch).labels
    assert teacher.batch_sizes == [2]
    assert targets[[3, 1]].argmax(1).tolist() == [9, 8]
    torch.testing.assert_close(
        targets[[0, 2]],
        codec.decode(cached_teacher.compute(batch.teacher_images[0])),
        atol=2e-3,
        rtol=0,
    )
    teacher.batch_sizes.clear()
    assert torch.equal(cached_teacher(plain).labels, targets)  # its views are all cached by now
    assert teacher.batch_sizes == []
    records, known = cached_teacher.cache.read(places)
    assert known.all()
    assert np.array_equal(records[[3, 1]], mark)


def test_targets_cached_by_another_process_meanwhile_are_used(teacher, some, tmp_path):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    batch = next(load_batches(some, cached_teacher))
    assert batch.teacher_rows == [[0, 1, 2, 3]]
    other = open_cached(teacher, HARD, tmp_path / "w")
    other.cache.write([view_key(batch.keys[2])], HARD.encode(torch.eye(10)[[9]]))
    targets = cached_teacher(batch).labels
    assert teacher.batch_sizes == [3]
    assert targets[2].argmax() == 9
    alone = [
        int(expected(teacher, some, HARD, *view_key(batch.keys[row])).argmax()) for row in (0, 1, 3)
    ]
    assert targets[[0, 1, 3]].argmax(1).tolist() == alone


def test_without_a_cache_every_target_is_computed(teacher, some):
    cached_teacher = open_cached(teacher, HARD, None)
    assert cached_teacher.has_target is None
    for batch in load_batches(some, cached_teacher, epochs=2):
        cached_teacher(batch)
    assert teacher.batch_sizes == [4] * 6
    assert fill(cached_teacher, some, None) == 0


class LateDevice(Device):
    """A CPU from which values come when somebody waits for them."""

    def read_later(self, values: torch.Tensor) -> PendingRead:
        return PendingRead(values, NotYet())


class NotYet:
    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


def make_late(cached_teacher: CachedTeacher) -> CachedTeacher:
    return replace(cached_teacher, device=LateDevice(CPU.torch_device, torch.float32, "late"))


@CODECS
def test_targets_on_their_way_are_neither_computed_nor_stored_again(
    codec, teacher, some, tmp_path, monkeypatch
):
    expected = open_cached(teacher, codec, tmp_path / "now")(
        next(load_batches(some, open_cached(teacher, codec, None)))
    ).labels
    late = make_late(open_cached(teacher, codec, tmp_path / "w"))
    batch = next(load_batches(some, late))
    teacher.batch_sizes.clear()
    assert torch.equal(late(batch).labels, expected)
    store = late.mark()
    assert late.cache.count_missing(VIEWS) == VIEWS * IMAGES
    targets, written = late.read(batch), []
    write = late.cache.write
    monkeypatch.setattr(late.cache, "write", lambda keys, r: (written.extend(keys), write(keys, r)))
    # As parts of it are taken again, after memory ran out.
    for rows in (slice(0, 2), slice(2, 4)):
        part = tuple(compact.take(rows) for compact in targets)
        images = [batch.teacher_images[0][rows]]
        labels = late.complete(part, images, [[0, 1]], 4).labels
        assert torch.equal(labels, expected[rows])
    store()
    assert teacher.batch_sizes == [4]
    assert sorted(written) == sorted(view_key(key) for key in batch.keys)
    assert late.cache.count_missing(VIEWS) == VIEWS * IMAGES - 4


def test_a_target_that_was_stored_while_it_was_on_its_way_stays(teacher, some, tmp_path):
    late = make_late(open_cached(teacher, HARD, tmp_path / "w"))
    batch = next(load_batches(some, late))
    late(batch)
    key = view_key(batch.keys[2])
    mark = HARD.encode(torch.eye(10)[[9]])
    open_cached(teacher, HARD, tmp_path / "w").cache.write([key], mark)
    late.mark()()
    assert np.array_equal(late.cache.read([key])[0], mark)


@pytest.mark.parametrize("is_late", [False, True])
def test_an_output_that_is_not_finite_ends_the_run_before_anything_is_stored(
    is_late, teacher, some, tmp_path
):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    if is_late:
        cached_teacher = make_late(cached_teacher)
    batch = next(load_batches(some, cached_teacher))
    forward = teacher.model.forward

    def fail_for_one(images, mask=None):
        heads = forward(images, mask)
        heads.cls[2, 3] = torch.nan
        return heads

    teacher.model.forward = fail_for_one
    message = f"logits of image {batch.keys[2].index} are not finite"
    if is_late:
        cached_teacher(batch)
        for _ in range(2):  # and whoever looks again
            with pytest.raises(TeacherError, match=message):
                cached_teacher.mark()()
    else:
        with pytest.raises(TeacherError, match=message):
            cached_teacher(batch)
    assert cached_teacher.cache.count_missing(VIEWS) == VIEWS * IMAGES


@pytest.mark.parametrize("workers", [0, 2])
def test_training_computes_each_target_once(workers, teacher, some, tmp_path):
    """Loaders that run ahead render a view before its target is cached; it is computed once all the same."""
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    shown = set()
    for batch in load_batches(some, cached_teacher, epochs=8, workers=workers):
        cached_teacher(batch)
        shown |= {view_key(key) for key in batch.keys}
    assert sum(teacher.batch_sizes) == len(shown)
    assert VIEWS * IMAGES - cached_teacher.cache.count_missing(VIEWS) == len(shown)


def test_a_target_that_is_just_being_written_is_read_once_more(
    teacher, some, tmp_path, monkeypatch
):
    """By another program that fills the same cache: half of a record has no fitting checksum."""
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    targets = cached_teacher(next(load_batches(some, cached_teacher))).labels
    batch = next(load_batches(some, cached_teacher))
    keys = [view_key(key) for key in batch.keys]
    cache = cached_teacher.cache
    records, _ = cache.read(keys)
    torn = records[1:2] * np.array([[1, 0]], np.uint16)
    cache.write(keys[1:2], torn)
    assert not cache.has_target(*keys[1])
    monkeypatch.setattr(time, "sleep", lambda _: cache.write(keys[1:2], records[1:2]))
    teacher.batch_sizes.clear()
    assert torch.equal(cached_teacher(batch).labels, targets)
    assert teacher.batch_sizes == []


def test_a_lost_target_is_reported(teacher, some, tmp_path):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    whole = next(load_batches(some, cached_teacher))
    cached_teacher(whole)
    batch = next(load_batches(some, cached_teacher))  # without views, because all are cached
    cached_teacher.cache.write([view_key(batch.keys[1])], np.zeros((1, 2), np.uint16))
    with pytest.raises(DataChanged, match="were changed while in use"):
        cached_teacher(batch)


@pytest.mark.parametrize("workers", [0, 2])
@CODECS
def test_filling_completes_what_is_missing(workers, codec, teacher, some, tmp_path, reporter):
    cached_teacher = open_cached(teacher, codec, tmp_path / "w")
    cached_teacher(next(load_batches(some, cached_teacher)))
    before = sum(teacher.batch_sizes)
    mark = codec.encode(torch.eye(10)[[9]])
    cached_teacher.cache.write([(2, 11)], mark)
    assert fill(cached_teacher, some, reporter, workers=workers) == VIEWS * IMAGES - before - 1
    assert sum(teacher.batch_sizes) == VIEWS * IMAGES - 1
    assert cached_teacher.cache.count_missing(VIEWS) == 0
    assert np.array_equal(cached_teacher.cache.read([(2, 11)])[0], mark)
    for view, index in ((0, 0), (1, 5), (2, 10)):
        targets = codec.decode(cached_teacher.cache.read([(view, index)])[0])
        alone = codec.decode(codec.encode(expected(teacher, some, codec, view, index)))
        torch.testing.assert_close(targets, alone, atol=2e-3, rtol=0)


def test_a_full_cache_is_filled_without_the_teacher(teacher, some, tmp_path, reporter):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    assert fill(cached_teacher, some, reporter) == VIEWS * IMAGES
    assert (
        fill(
            CachedTeacher(
                JointCodec(HARD, None),
                3.0,
                cached_teacher.cache,
                refuse_to_load,
                CPU,
                VIEWS,
                REPEATS,
            ),
            some,
            reporter,
        )
        == 0
    )


def test_fill_adds_views(teacher, some, tmp_path, reporter):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    assert fill(cached_teacher, some, reporter, num_views=1) == IMAGES
    assert [cached_teacher.cache.count_missing(n) for n in (1, 3)] == [0, 2 * IMAGES]
    assert fill(cached_teacher, some, reporter, num_views=3) == 2 * IMAGES


def test_an_interrupted_fill_is_resumed(teacher, some, tmp_path, reporter, monkeypatch):
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    forward_views = CountingTeacher.forward_views

    def stopped(self: CountingTeacher, pixels: torch.Tensor) -> torch.Tensor:
        if len(self.batch_sizes) == 3:
            raise KeyboardInterrupt
        return forward_views(self, pixels)

    monkeypatch.setattr(CountingTeacher, "forward_views", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(cached_teacher, some, reporter)
    done = sum(teacher.batch_sizes)
    assert cached_teacher.cache.count_missing(VIEWS) == VIEWS * IMAGES - done
    monkeypatch.setattr(CountingTeacher, "forward_views", forward_views)
    fresh = open_cached(teacher, HARD, tmp_path / "w")
    assert fill(fresh, some, reporter) == VIEWS * IMAGES - done
    assert sum(teacher.batch_sizes) == VIEWS * IMAGES  # nothing twice


def test_filled_targets_equal_those_of_training(teacher, some, tmp_path, reporter):
    """Filled beforehand in other batches, or computed in training."""
    computed, filled = (
        open_cached(teacher, HARD, tmp_path / "a"),
        open_cached(teacher, HARD, tmp_path / "b"),
    )
    fill(filled, some, reporter)
    for batch in load_batches(some, computed):
        targets = computed(batch).labels
        assert torch.equal(filled(batch).labels, targets)


def test_a_damaged_image_is_marked_and_not_missing(image_folder, teacher, tmp_path, reporter):
    root = image_folder({"a": 3, "b": 3})
    good = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_text("no image")
    dataset = open_folder(root, reporter)
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w", num_images=6)
    assert fill(cached_teacher, dataset, reporter) == VIEWS * 5
    assert cached_teacher.cache.count_missing(VIEWS) == 0
    assert [without_target(cached_teacher.cache, view) for view in range(VIEWS)] == [[1]] * VIEWS
    cached_only = CachedTeacher(
        JointCodec(HARD, None), 3.0, cached_teacher.cache, refuse_to_load, CPU, VIEWS, REPEATS
    )
    assert fill(cached_only, dataset, reporter) == 0
    for batch in load_batches(dataset, cached_only, epochs=3):
        assert len(cached_only(batch).labels) == len(batch.keys)
        assert len(batch.keys) + len(batch.errors) in (2, 4)  # of 6
    (root / "a" / "1.png").write_bytes(good)  # once it can be read, its target is computed
    teacher.batch_sizes.clear()
    for batch in load_batches(dataset, cached_teacher, epochs=6):
        cached_teacher(batch)
    assert sum(teacher.batch_sizes) > 0
    assert without_target(cached_teacher.cache, 0) == []


def test_an_image_that_cannot_be_read_for_a_moment_is_not_marked(
    image_folder, teacher, tmp_path, reporter, monkeypatch
):
    """Its folder is away while the cache is filled, as when a mount is: the next filling computes its targets."""
    monkeypatch.setattr(reading, "PAUSES_S", ())
    root = image_folder({"a": 3, "b": 3})
    dataset = open_folder(root, reporter)
    (root / "b").rename(tmp_path / "away")
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w", num_images=6)
    options = {"num_views": VIEWS, "batch_size": 4, "workers": 0, "reporter": reporter}
    filling = cached_teacher.fill(dataset, AUGMENT, 7, **options)
    assert filling == (VIEWS * 3, frozenset({3, 4, 5}))
    assert cached_teacher.cache.count_missing(VIEWS) == VIEWS * 3
    assert cached_teacher.cache.damaged_indices(VIEWS) == set()
    (tmp_path / "away").rename(root / "b")
    assert cached_teacher.fill(dataset, AUGMENT, 7, **options) == (VIEWS * 3, frozenset())
    assert cached_teacher.cache.count_missing(VIEWS) == 0


def test_a_batch_of_unreadable_images_computes_nothing(image_folder, teacher, tmp_path, reporter):
    root = image_folder({"a": 2, "b": 2})
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w", num_images=4)
    assert fill(cached_teacher, open_folder(root, reporter), reporter) == 0
    assert teacher.batch_sizes == []
    assert cached_teacher.cache.count_missing(VIEWS) == 0


def test_targets_that_are_cut_off_while_in_use_are_computed_again(teacher, some, tmp_path):
    """As by `truncate -s 0` or `cp` over a view's file; without loaders no batch is under way."""
    cached_teacher = open_cached(teacher, HARD, tmp_path / "w")
    before = [cached_teacher(batch).labels for batch in load_batches(some, cached_teacher)]
    num_missing = cached_teacher.cache.count_missing(VIEWS)
    for file in (tmp_path / "w").glob("view-*.bin"):
        os.truncate(file, 6)  # one record and a half
    assert cached_teacher.cache.count_missing(VIEWS) > num_missing
    again = [cached_teacher(batch).labels for batch in load_batches(some, cached_teacher)]
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    assert cached_teacher.cache.count_missing(VIEWS) == num_missing


def test_soft_targets_have_the_configured_temperature(teacher, some):
    codec = TargetCodec("soft", 10, 10)
    flat, sharp = (
        CachedTeacher(JointCodec(codec, None), tau, None, lambda: teacher, CPU, VIEWS, REPEATS)
        for tau in (50.0, 0.5)
    )
    batch = next(load_batches(some, flat))
    assert float(flat(batch).labels.max()) < float(sharp(batch).labels.max())
    logits = teacher.forward_views(batch.teacher_images[0]).logits
    torch.testing.assert_close(sharp(batch).labels, (logits / 0.5).softmax(1), atol=2e-3, rtol=0)


FILLER = """
import pickle, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from deitctl.device import Device, choose_device
from deitctl.events import SilentReporter
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.joint_targets import JointCodec
teacher, cache, source, augment = pickle.loads(Path(sys.argv[1]).read_bytes())
codec = JointCodec(cache.codec, None)
cached_teacher = CachedTeacher(codec, 3.0, cache, lambda: teacher, choose_device("cpu", "fp32"), 3, 2)
print("ready", flush=True)
sys.stdin.readline()
print(cached_teacher.fill(source, augment, 7, 3, batch_size=5, workers=0, reporter=SilentReporter()).num_computed)
"""


def test_two_processes_fill_one_cache(digit_datasets, teacher, tmp_path, reporter):
    dataset, codec = select(digit_datasets[0], range(30)), TargetCodec("soft", 10, 4)
    ours = open_cached(teacher, codec, tmp_path / "w", num_images=30)
    other = Teacher(
        teacher.model, teacher.model_config, tuple(range(10)), teacher.student_preprocessing
    )
    (tmp_path / "other").write_bytes(pickle.dumps((other, ours.cache, dataset, AUGMENT)))
    command = [sys.executable, "-c", FILLER, str(tmp_path / "other")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        num_computed = fill(ours, dataset, reporter)
        num_computed += int(child.stdout.readline())
    assert child.returncode == 0
    assert ours.cache.count_missing(VIEWS) == 0
    assert VIEWS * 30 <= num_computed <= 2 * VIEWS * 30
    for view in range(VIEWS):
        targets = codec.decode(ours.cache.read([(view, index) for index in range(30)])[0])
        views = np.stack(
            [train_transform(dataset.read(i), AUGMENT, SIZE, 7, view, i) for i in range(30)]
        )
        computed = teacher_targets(
            teacher.forward_views(torch.from_numpy(views)).logits, "soft", 3.0
        )
        torch.testing.assert_close(targets, codec.decode(codec.encode(computed)), atol=2e-3, rtol=0)
