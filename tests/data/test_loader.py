"""The same batches whatever the number of workers; unreadable pictures are named and left out."""

from __future__ import annotations

import pytest
import torch

from deitctl.card import Preprocessing
from deitctl.data.loader import EvalViews, TrainViews, collate, eval_batches, train_batches
from deitctl.data.open import scan_classes
from deitctl.data.samplers import SampleKey, TrainBatches
from deitctl.data.sources import subset
from deitctl.data.transforms import eval_view, train_view
from deitctl.recipes import RECIPES

AUGMENT = RECIPES["small"].augment


def stream(source, workers, first_step=0):
    keys = TrainBatches(len(source.labels), 8, seed=0, epochs=2, repeats=3, first_step=first_step)
    return list(train_batches(source, AUGMENT, 32, keys, workers=workers, pin_memory=False))


@pytest.fixture(scope="module")
def some(digit_sources):
    return subset(digit_sources[0], range(20))


def test_batches_do_not_depend_on_the_number_of_workers(some):
    expected = stream(some, 0)
    assert len(expected) == 4
    for workers in (1, 3):
        for ours, theirs in zip(stream(some, workers), expected, strict=True):
            assert ours.keys == theirs.keys
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)


def test_a_stream_taken_up_in_the_middle_of_an_epoch_goes_on_as_it_would_have(some):
    whole, tail = stream(some, 0), stream(some, 0, first_step=1)
    assert len(tail) == 3
    for ours, theirs in zip(tail, whole[1:], strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_images_are_the_views_of_their_keys(some):
    batch = stream(some, 0)[0]
    assert batch.images.dtype is torch.uint8
    assert batch.images.shape == (8, 3, 32, 32)
    for image, label, key in zip(batch.images, batch.labels, batch.keys, strict=True):
        assert torch.equal(image, torch.from_numpy(train_view(some.read(key.index), AUGMENT, 32, 0, *key)))
        assert label == some.labels[key.index]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_every_picture_once_and_in_order(workers, some):
    pre = Preprocessing(img_size=16)
    batches = list(eval_batches(some, pre, batch_size=6, workers=workers, pin_memory=False))
    assert [len(b.images) for b in batches] == [6, 6, 6, 2]
    assert [k.index for b in batches for k in b.keys] == list(range(20))
    assert torch.equal(batches[1].images[0], torch.from_numpy(eval_view(some.read(6), pre)))
    assert torch.cat([b.labels for b in batches]).tolist() == some.labels.tolist()


def test_unreadable_pictures_are_named_and_never_replaced(image_folder, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "1.png").write_text("not a picture")
    source = scan_classes(root, reporter)
    (batch,) = eval_batches(source, Preprocessing(img_size=16), batch_size=6, workers=0, pin_memory=False)
    assert [k.index for k in batch.keys] == [0, 2, 3, 4, 5]
    assert batch.labels.tolist() == [0, 0, 1, 1, 1]
    ((index, why),) = batch.errors
    assert index == 1
    assert "1.png is not a picture" in why


def test_unreadable_pictures_are_named_in_training_too(image_folder, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "b" / "0.png").write_bytes(b"")
    keys = TrainBatches(6, 6, seed=0, epochs=1)
    (batch,) = train_batches(scan_classes(root, reporter), AUGMENT, 16, keys, workers=0, pin_memory=False)
    assert len(batch.images) == len(batch.labels) == len(batch.keys) == 5
    assert [i for i, _ in batch.errors] == [3]


def test_a_batch_without_a_readable_picture_is_empty(image_folder, reporter):
    root = image_folder({"a": 1, "b": 1})
    for name in "ab":
        (root / name / "0.png").write_bytes(b"")
    (batch,) = eval_batches(scan_classes(root, reporter), Preprocessing(), batch_size=4, workers=0, pin_memory=False)
    assert len(batch.images) == 0
    assert [i for i, _ in batch.errors] == [0, 1]


def test_views_have_the_length_and_labels_of_their_source(some):
    assert len(EvalViews(some, Preprocessing(img_size=16))) == 20
    sample = TrainViews(some, AUGMENT, 16, 0)[SampleKey(0, 5, 0)]
    assert collate([sample]).labels.tolist() == [int(some.labels[5])]
