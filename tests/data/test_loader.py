"""Batches do not depend on the number of workers; unreadable images are reported and left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deitctl.data.dataset import FileDataset
from deitctl.data.eval_transform import eval_transform
from deitctl.data.eval_views import EvalViews
from deitctl.data.loader import (
    Batch,
    TeacherView,
    TrainViews,
    ViewPlan,
    build_eval_loader,
    build_train_loader,
    build_view_loader,
    collate,
)
from deitctl.data.readers.folder import open_folder
from deitctl.data.samplers import SampleKey, TrainBatches, view_of
from deitctl.data.subsets import select
from deitctl.data.transforms import train_transform
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import RECIPES

AUGMENT = RECIPES["small"].augment


def stream(dataset, workers, first_step=0, plan=None):
    keys = TrainBatches(len(dataset.labels), 8, seed=0, epochs=2, repeats=3, first_step=first_step)
    return list(
        build_train_loader(dataset, AUGMENT, 32, keys, workers=workers, pin_memory=False, plan=plan)
    )


def shown(dataset, view, index, size=32, seed=0):
    return torch.from_numpy(train_transform(dataset.read(index), AUGMENT, size, seed, view, index))


@pytest.fixture(scope="module")
def some(digit_datasets):
    return select(digit_datasets[0], range(20))


def test_batches_do_not_depend_on_the_number_of_workers(some):
    expected = stream(some, 0)
    assert [len(batch.keys) for batch in expected] == [6, 6, 8] * 2
    for workers in (1, 3):
        for ours, theirs in zip(stream(some, workers), expected, strict=True):
            assert ours.keys == theirs.keys
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)


def test_resuming_within_an_epoch_gives_the_same_batches(some):
    whole, tail = stream(some, 0), stream(some, 0, first_step=1)
    assert len(tail) == 5
    for ours, theirs in zip(tail, whole[1:], strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_images_are_the_views_of_their_keys(some):
    batch = stream(some, 0)[0]
    assert batch.images.dtype is torch.uint8
    assert batch.images.shape == (6, 3, 32, 32)
    for image, label, key in zip(batch.images, batch.labels, batch.keys, strict=True):
        assert torch.equal(image, shown(some, key.epoch * 3 + key.repeat, key.index))
        assert label == some.labels[key.index]


def test_without_a_teacher_nothing_is_rendered_for_one(some):
    for batch in (*stream(some, 0), *stream(some, 0, plan=ViewPlan(0, views=2, repeats=3))):
        assert (batch.teacher_images, batch.teacher_rows, batch.unreadable) == ([], [], [])


def test_views_are_cycled_and_have_the_plans_seed(some):
    batches = stream(some, 0, plan=ViewPlan(5, views=2, repeats=3))
    seen = {}
    for batch in batches:
        for image, key in zip(batch.images, batch.keys, strict=True):
            view = view_of(key, views=2, repeats=3)
            assert torch.equal(image, shown(some, view, key.index, seed=5))
            seen.setdefault(key.index, set()).add(view)
    assert {0, 1} in seen.values()
    assert all(views <= {0, 1} for views in seen.values())


def test_progressive_resizing_shrinks_the_students_views_only(some):
    plan = ViewPlan(0, repeats=3, teacher_views=(TeacherView(48),), early_epochs=1, early_size=16)
    sizes = []
    for batch in stream(some, 0, plan=plan):
        sizes.append(batch.images.shape[-1])
        assert batch.teacher_images[0].shape[-1] == 48
        for image, key in zip(batch.images, batch.keys, strict=True):
            assert torch.equal(image, shown(some, key.epoch * 3 + key.repeat, key.index, sizes[-1]))
    assert sizes == sorted(sizes)
    assert set(sizes) == {16, 32}


@pytest.mark.parametrize("size", [32, 48])
def test_a_teacher_sees_the_same_view_in_its_own_size(size, some):
    for batch in stream(
        some, 0, plan=ViewPlan(1, views=4, repeats=3, teacher_views=(TeacherView(size),))
    ):
        assert batch.teacher_rows == [list(range(len(batch.keys)))]
        assert batch.teacher_images[0].dtype is torch.uint8
        assert batch.teacher_images[0].shape == (len(batch.keys), 3, size, size)
        for image, key in zip(batch.teacher_images[0], batch.keys, strict=True):
            assert torch.equal(
                image, shown(some, view_of(key, views=4, repeats=3), key.index, size, seed=1)
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_views_are_not_rendered_for_the_teacher(workers, some):
    plan = ViewPlan(0, views=4, repeats=3, teacher_views=(TeacherView(40, is_cached=(even_sum,)),))
    plain = stream(some, 0, plan=ViewPlan(0, views=4, repeats=3))
    for batch, expected in zip(stream(some, workers, plan=plan), plain, strict=True):
        places = [(view_of(key, views=4, repeats=3), key.index) for key in batch.keys]
        assert batch.teacher_rows[0] == [
            row for row, place in enumerate(places) if not even_sum(*place)
        ]
        for image, row in zip(batch.teacher_images[0], batch.teacher_rows[0], strict=True):
            assert torch.equal(image, shown(some, *places[row], 40))
        assert torch.equal(batch.images, expected.images)  # the student sees all of them


def even_sum(view, index):
    return (view + index) % 2 == 0


def test_view_loader_yields_the_requested_views(some):
    wanted = [[SampleKey(3, 7, 0), SampleKey(0, 2, 0)], [SampleKey(1, 7, 0)]]
    batches = list(build_view_loader(some, AUGMENT, 40, 9, wanted, workers=0, pin_memory=False))
    assert [b.keys for b in batches] == wanted
    for batch in batches:
        assert (batch.teacher_images, batch.teacher_rows) == ([], [])
        for image, key in zip(batch.images, batch.keys, strict=True):
            assert torch.equal(image, shown(some, key.epoch, key.index, 40, seed=9))


def test_view_loader_without_keys_yields_nothing(some):
    assert list(build_view_loader(some, AUGMENT, 32, 0, [], workers=0, pin_memory=False)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_every_image_once_and_in_order(workers, some):
    pre = Preprocessing(img_size=16)
    batches = list(build_eval_loader(some, [pre], batch_size=6, workers=workers, pin_memory=False))
    assert [len(b.images[0]) for b in batches] == [6, 6, 6, 2]
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(20))
    assert torch.equal(batches[1].images[0][0], torch.from_numpy(eval_transform(some.read(6), pre)))
    assert torch.cat([b.labels for b in batches]).tolist() == some.labels.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_each_image_in_every_preprocessing_and_reads_it_once(
    workers, some, monkeypatch
):
    read, pres = [], [Preprocessing(img_size=16), Preprocessing(img_size=24, crop_mode="squash")]
    inner = type(some).read
    if not workers:  # what a worker counts stays with it
        monkeypatch.setattr(
            type(some), "read", lambda s, i: (read.append(i) if s is some else None, inner(s, i))[1]
        )
    batches = list(build_eval_loader(some, pres, batch_size=20, workers=workers, pin_memory=False))
    assert read in ([], list(range(20)))
    for n, pre in enumerate(pres):
        shown = torch.cat([b.images[n] for b in batches])
        assert torch.equal(shown[7], torch.from_numpy(eval_transform(inner(some, 7), pre)))


def test_unreadable_images_are_named_and_never_replaced(image_folder, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "1.png").write_text("not an image")
    dataset = open_folder(root, reporter)
    (batch,) = build_eval_loader(
        dataset, [Preprocessing(img_size=16)], batch_size=6, workers=0, pin_memory=False
    )
    assert batch.indices.tolist() == [0, 2, 3, 4, 5]
    assert batch.labels.tolist() == [0, 0, 1, 1, 1]
    ((index, why),) = batch.errors
    assert index == 1
    assert "1.png is a text file, not an image" in why


def test_unreadable_images_are_named_in_training_too(image_folder, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "b" / "0.png").write_bytes(b"")
    keys = TrainBatches(6, 6, seed=0, epochs=1)
    (batch,) = build_train_loader(
        open_folder(root, reporter), AUGMENT, 16, keys, workers=0, pin_memory=False
    )
    assert len(batch.images) == len(batch.labels) == len(batch.keys) == 5
    assert [i for i, _ in batch.errors] == [3]
    ((key, why),) = batch.unreadable
    assert key.index == 3
    assert "0.png is empty" in why


def test_rows_for_a_teacher_skip_unreadable_images(image_folder, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "1.png").write_bytes(b"")
    plan = ViewPlan(
        0, views=1, teacher_views=(TeacherView(20, is_cached=(lambda view, index: index == 4,)),)
    )
    views = TrainViews(open_folder(root, reporter), AUGMENT, 16, plan)
    batch = collate([views[SampleKey(0, i, 0)] for i in (5, 1, 4, 0)])
    assert [k.index for k in batch.keys] == [5, 4, 0]
    assert batch.teacher_rows == [[0, 2]]  # of what could be read
    assert batch.teacher_images[0].shape == (2, 3, 20, 20)
    assert [k.index for k, _ in batch.unreadable] == [1]


def test_a_batch_without_a_readable_image_is_empty(image_folder, reporter):
    root = image_folder({"a": 1, "b": 1})
    for name in "ab":
        (root / name / "0.png").write_bytes(b"")
    (batch,) = build_eval_loader(
        open_folder(root, reporter), [Preprocessing()], batch_size=4, workers=0, pin_memory=False
    )
    assert len(batch.images[0]) == len(batch.indices) == 0
    assert [i for i, _ in batch.errors] == [0, 1]


def test_views_have_the_length_and_labels_of_their_dataset(some):
    assert len(EvalViews(some, [Preprocessing(img_size=16)])) == 20
    sample = TrainViews(some, AUGMENT, 16, ViewPlan(0))[SampleKey(0, 5, 0)]
    assert collate([sample]).labels.tolist() == [int(some.labels[5])]


@st.composite
def batches_with_gaps(draw):
    """A batch of which some images could not be read and a teacher is asked about some; each image shows its slot."""
    count = draw(st.integers(0, 24))
    slots = [slot for slot in range(count) if draw(st.booleans())]
    asked = [row for row in range(len(slots)) if draw(st.booleans())]
    images = torch.tensor(slots, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    bad = [(SampleKey(0, 100 + slot, 0), "bad") for slot in range(count) if slot not in slots]
    return Batch(
        images,
        torch.tensor(slots, dtype=torch.int64),
        [SampleKey(0, 100 + slot, 0) for slot in slots],
        slots,
        bad,
        [images[asked]],
        [asked],
    )


@given(batch=batches_with_gaps(), half=st.integers(0, 13))
def test_micro_batches_keep_pairs_together_and_teacher_rows_right(batch, half):
    size = 2 * half
    parts = list(batch.split(size))
    assert [slot for part in parts for slot in part.slots] == batch.slots
    assert [key for part in parts for key in part.keys] == batch.keys
    assert torch.cat([part.images for part in parts]).equal(batch.images)
    assert torch.cat([part.labels for part in parts]).equal(batch.labels)
    assert torch.cat([part.teacher_images[0] for part in parts]).equal(batch.teacher_images[0])
    where = {slot: number for number, part in enumerate(parts) for slot in part.slots}
    assert all(where[slot] == where.get(slot ^ 1, where[slot]) for slot in batch.slots)
    for part in parts:
        assert len(part.slots) <= size or not size
        for image, row in zip(part.teacher_images[0], part.teacher_rows[0], strict=True):
            assert torch.equal(image, part.images[row])
            assert batch.slots.index(part.slots[row]) in batch.teacher_rows[0]


def test_split_counts_slots_not_readable_images():
    """With 4 slots a part, the images of slots 4 and 5 meet, however many before them are missing."""
    slots = [0, 3, 4, 5, 9]
    batch = Batch(
        torch.zeros(5, 3, 2, 2),
        torch.zeros(5),
        [SampleKey(0, s, 0) for s in slots],
        slots,
        [],
        [],
        [],
    )
    assert [part.slots for part in batch.split(4)] == [[0, 3], [4, 5], [9]]
    assert (
        [part.slots for part in batch.split(0)]
        == [part.slots for part in batch.split(10)]
        == [slots]
    )


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory, make_image):
    """Four JPEGs so large that crops are decoded reduced, one of them turned, and one that ends in the middle."""
    root, exif = tmp_path_factory.mktemp("jpegs"), Image.Exif()
    exif[0x0112] = 6
    for n in range(5):
        make_image(640, 480, seed=n).save(root / f"{n}.jpg", **({"exif": exif} if n == 1 else {}))
    whole = (root / "4.jpg").read_bytes()
    (root / "4.jpg").write_bytes(whole[: len(whole) // 2])
    return FileDataset(
        tuple(str(root / f"{n}.jpg") for n in range(5)), np.arange(5) % 2, ("a", "b")
    )


@pytest.mark.parametrize("teacher_size", [0, 32, 96])
def test_undecoded_jpegs_give_the_same_batches_on_any_number_of_workers(jpegs, teacher_size):
    seen = (TeacherView(teacher_size),) if teacher_size else ()
    plan = ViewPlan(3, views=2, teacher_views=seen)
    batches = [
        list(
            build_train_loader(
                jpegs,
                AUGMENT,
                32,
                TrainBatches(5, 4, seed=0, epochs=2),
                workers=n,
                pin_memory=False,
                plan=plan,
            )
        )
        for n in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert all(map(torch.equal, one.teacher_images, other.teacher_images))
    assert all("4.jpg cannot be decoded" in why for b in batches[0] for _, why in b.unreadable)
    assert {key.index for b in batches[0] for key, _ in b.unreadable} == {4}


def test_what_a_student_sees_does_not_depend_on_its_teacher(jpegs):
    """A reduced image is reduced for the one that sees it."""
    shown = [
        [
            b.images
            for b in build_train_loader(
                jpegs,
                AUGMENT,
                32,
                TrainBatches(5, 4, seed=0, epochs=1),
                workers=0,
                pin_memory=False,
                plan=ViewPlan(3, views=2, teacher_views=(TeacherView(size),) if size else ()),
            )
        ]
        for size in (0, 64, 224)
    ]
    for alone, small, large in zip(*shown, strict=True):
        assert torch.equal(alone, small)
        assert torch.equal(alone, large)


@pytest.mark.parametrize("img_size", [16, 32])
def test_an_evaluation_sees_images_decoded_in_full(jpegs, img_size):
    """At sizes at which training decodes every crop of them at a fraction: pixels are those of Pillow and timm."""
    pre = Preprocessing(img_size=img_size)
    views = EvalViews(jpegs, [pre])
    for index in (0, 2, 3):
        with Image.open(jpegs.paths[index]) as image:
            expected = eval_transform(image.convert("RGB"), pre)
        assert np.array_equal(views[index].views[0], expected)
        assert jpegs.open(index).choose_shrink(480, 480, img_size) > 1
