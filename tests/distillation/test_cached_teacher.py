"""A teacher is asked about what it has not said, once, and its words are the same from the network and from the cache."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.data.dataset import select
from deitctl.data.loader import Batch, ViewPlan, build_train_loader
from deitctl.data.batch_transforms import normalize
from deitctl.data.open import open_folder
from deitctl.data.samplers import SampleKey, TrainBatches, view_of
from deitctl.data.transforms import train_transform
from deitctl.device import choose_device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.target_cache import TargetCache, TargetCodec, open_cache
from deitctl.distillation.teacher import Teacher
from deitctl.errors import TeacherError
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import RECIPES
from deitctl.training.losses import teacher_targets

AUGMENT = RECIPES[
    "finetune"
].augment  # has no RandAugment, for which every process would import timm
SIZE = 32  # of the teacher's input; the student's is half of it
CPU = choose_device("cpu", "fp32")
VIEWS, REPEATS, IMAGES = 3, 2, 12
FORMS = pytest.mark.parametrize(
    "form",
    [TargetCodec("hard", 10), TargetCodec("soft", 10, 4), TargetCodec("soft", 10, 10)],
    ids=["hard", "soft", "whole"],
)
HARD = TargetCodec("hard", 10)


def lacking(cache: TargetCache, view: int) -> list[int]:
    """The images of a view without a word, unreadable ones among them."""
    return sorted(set(range(cache.num_images)) - set(cache.known(view).tolist()))


class Asked(Teacher):
    """Remembers how many images it was asked about, call by call; places of a batch that are left black are none."""

    def look(self, pixels: torch.Tensor) -> torch.Tensor:
        self.__dict__.setdefault("asked", []).append(int(pixels.flatten(1).any(1).sum()))
        return super().look(pixels)


@pytest.fixture(scope="module")
def some(digit_datasets):
    return select(digit_datasets[0], range(IMAGES))


@pytest.fixture
def teacher(deit, some) -> Asked:
    model, pre = deit(classes=10, img_size=SIZE, seed=4), Preprocessing(img_size=SIZE)
    with (
        torch.no_grad()
    ):  # noise says the same of every image until what it says of all is taken off
        model.head.weight.mul_(10)
        views = np.stack(
            [train_transform(some.read(i), AUGMENT, SIZE, 0, 0, i) for i in range(IMAGES)]
        )
        model.head.bias.sub_(model(normalize(torch.from_numpy(views), pre)).cls.mean(0))
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=10, preprocessing=pre
    )
    teacher = Asked(model, model_config, tuple(range(10)), pre)
    teacher.asked = []
    return teacher


def listening(
    teacher, form, folder: Path | None, num_images: int = IMAGES, views: int = VIEWS
) -> CachedTeacher:
    cache = open_cache(folder, {"of": form.mode}, form, num_images) if folder is not None else None
    return CachedTeacher(form, 3.0, cache, lambda: teacher, CPU, views, REPEATS)


def stream(dataset, listener: CachedTeacher, epochs: int = 4, workers: int = 0) -> Iterator[Batch]:
    """Batches of 4 as a training would see them, with what the listener wants of them."""
    keys = TrainBatches(len(dataset.labels), 4, seed=0, epochs=epochs, repeats=REPEATS)
    plan = ViewPlan(7, listener.views, REPEATS, SIZE, listener.known)
    return build_train_loader(
        dataset, AUGMENT, SIZE // 2, keys, workers=workers, pin_memory=False, plan=plan
    )


def expected(teacher, dataset, form, view: int, index: int) -> torch.Tensor:
    """The word about one view of one image, asked for on its own."""
    pixels = torch.from_numpy(train_transform(dataset.read(index), AUGMENT, SIZE, 7, view, index))[
        None
    ]
    return teacher_targets(Teacher.look(teacher, pixels), form.mode, 3.0)


def place_of(key: SampleKey) -> tuple[int, int]:
    return view_of(key, views=VIEWS, repeats=REPEATS), key.index


def nobody() -> Teacher:
    raise AssertionError("the teacher was called")


def fill(listener: CachedTeacher, dataset, reporter, **changes: int) -> int:
    options = {"views": VIEWS, "batch_size": 5, "workers": 0, **changes}
    return listener.fill(dataset, AUGMENT, 7, reporter=reporter, **options)


@FORMS
def test_words_through_a_cache_equal_words_without(form, teacher, some, tmp_path):
    kept, asked = listening(teacher, form, tmp_path / "w"), listening(teacher, form, None)
    for ours, theirs in zip(stream(some, kept), stream(some, asked), strict=True):
        assert ours.keys == theirs.keys
        torch.testing.assert_close(kept(ours), asked(theirs), atol=2e-3, rtol=0)
    first = [kept(batch) for batch in stream(some, kept)]
    silent = CachedTeacher(form, 3.0, kept.cache, nobody, CPU, VIEWS, REPEATS)
    for batch, word in zip(stream(some, silent), first, strict=True):
        assert (len(batch.teacher_images), batch.teacher_rows) == (0, [])
        assert torch.equal(silent(batch), word)


@FORMS
def test_words_are_about_the_views_of_the_batch(form, teacher, some, tmp_path):
    """Distributions, up to the cache's rounding what the network says of each view on its own."""
    for listener in (listening(teacher, form, tmp_path / "w"), listening(teacher, form, None)):
        batch = next(stream(some, listener))
        word = listener(batch)
        torch.testing.assert_close(word.sum(1), torch.ones(4))
        alone = torch.cat([expected(teacher, some, form, *place_of(key)) for key in batch.keys])
        torch.testing.assert_close(word, form.decode(form.encode(alone)), atol=2e-3, rtol=0)
    assert len({tuple(w) for w in word.tolist()}) > 1


@FORMS
def test_only_what_is_missing_is_asked(form, teacher, some, tmp_path):
    listener = listening(teacher, form, tmp_path / "w")
    plain = next(stream(some, listener))
    places = [place_of(key) for key in plain.keys]
    mark = form.encode(torch.eye(10)[[9, 8]])
    listener.cache.write([places[3], places[1]], mark)  # what no network said
    batch = next(stream(some, listener))
    assert batch.teacher_rows == [0, 2]
    word = listener(batch)
    assert teacher.asked == [2]
    assert word[[3, 1]].argmax(1).tolist() == [9, 8]
    torch.testing.assert_close(
        word[[0, 2]], form.decode(listener.ask(batch.teacher_images)), atol=2e-3, rtol=0
    )
    teacher.asked.clear()
    assert torch.equal(listener(plain), word)  # it brings views of all, which are all said by now
    assert teacher.asked == []
    records, known = listener.cache.read(places)
    assert known.all()
    assert np.array_equal(records[[3, 1]], mark)


def test_what_another_process_said_since_the_view_was_rendered_is_not_asked(
    teacher, some, tmp_path
):
    listener = listening(teacher, HARD, tmp_path / "w")
    batch = next(stream(some, listener))
    assert batch.teacher_rows == [0, 1, 2, 3]
    other = listening(teacher, HARD, tmp_path / "w")
    other.cache.write([place_of(batch.keys[2])], HARD.encode(torch.eye(10)[[9]]))
    word = listener(batch)
    assert teacher.asked == [3]
    assert word[2].argmax() == 9
    alone = [
        int(expected(teacher, some, HARD, *place_of(batch.keys[row])).argmax()) for row in (0, 1, 3)
    ]
    assert word[[0, 1, 3]].argmax(1).tolist() == alone


def test_without_a_cache_nothing_is_known_and_everything_asked(teacher, some):
    listener = listening(teacher, HARD, None)
    assert listener.known is None
    for batch in stream(some, listener, epochs=2):
        listener(batch)
    assert teacher.asked == [4] * 6
    assert fill(listener, some, None) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_asks_about_each_view_of_an_image_once(workers, teacher, some, tmp_path):
    """Loaders that run ahead render a view before its word is there; it is asked about when its turn comes, once."""
    listener = listening(teacher, HARD, tmp_path / "w")
    shown = set()
    for batch in stream(some, listener, epochs=8, workers=workers):
        listener(batch)
        shown |= {place_of(key) for key in batch.keys}
    assert sum(teacher.asked) == len(shown)
    assert VIEWS * IMAGES - listener.cache.count_missing(VIEWS) == len(shown)


def test_a_lost_word_is_said(teacher, some, tmp_path):
    listener = listening(teacher, HARD, tmp_path / "w")
    whole = next(stream(some, listener))
    listener(whole)
    batch = next(stream(some, listener))  # brings no view, for all is said
    listener.cache.write([place_of(batch.keys[1])], np.zeros((1, 1), np.uint16))
    with pytest.raises(TeacherError, match=r"lost words while they were being read.*Run it again"):
        listener(batch)


@pytest.mark.parametrize("workers", [0, 2])
@FORMS
def test_filling_completes_what_is_missing(workers, form, teacher, some, tmp_path, reporter):
    listener = listening(teacher, form, tmp_path / "w")
    listener(next(stream(some, listener)))
    before = sum(teacher.asked)
    mark = form.encode(torch.eye(10)[[9]])
    listener.cache.write([(2, 11)], mark)
    assert fill(listener, some, reporter, workers=workers) == VIEWS * IMAGES - before - 1
    assert sum(teacher.asked) == VIEWS * IMAGES - 1
    assert listener.cache.count_missing(VIEWS) == 0
    assert np.array_equal(listener.cache.read([(2, 11)])[0], mark)
    for view, index in ((0, 0), (1, 5), (2, 10)):
        word = form.decode(listener.cache.read([(view, index)])[0])
        alone = form.decode(form.encode(expected(teacher, some, form, view, index)))
        torch.testing.assert_close(word, alone, atol=2e-3, rtol=0)


def test_a_full_cache_is_filled_without_the_teacher(teacher, some, tmp_path, reporter):
    listener = listening(teacher, HARD, tmp_path / "w")
    assert fill(listener, some, reporter) == VIEWS * IMAGES
    assert (
        fill(CachedTeacher(HARD, 3.0, listener.cache, nobody, CPU, VIEWS, REPEATS), some, reporter)
        == 0
    )


def test_more_views_are_asked_for_on_top_of_those_there_are(teacher, some, tmp_path, reporter):
    listener = listening(teacher, HARD, tmp_path / "w")
    assert fill(listener, some, reporter, views=1) == IMAGES
    assert [listener.cache.count_missing(n) for n in (1, 3)] == [0, 2 * IMAGES]
    assert fill(listener, some, reporter, views=3) == 2 * IMAGES


def test_a_filling_that_was_stopped_is_taken_up_where_it_was(
    teacher, some, tmp_path, reporter, monkeypatch
):
    listener = listening(teacher, HARD, tmp_path / "w")
    look = Asked.look

    def stopped(self: Asked, pixels: torch.Tensor) -> torch.Tensor:
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        return look(self, pixels)

    monkeypatch.setattr(Asked, "look", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(listener, some, reporter)
    done = sum(teacher.asked)
    assert listener.cache.count_missing(VIEWS) == VIEWS * IMAGES - done
    monkeypatch.setattr(Asked, "look", look)
    fresh = listening(teacher, HARD, tmp_path / "w")
    assert fill(fresh, some, reporter) == VIEWS * IMAGES - done
    assert sum(teacher.asked) == VIEWS * IMAGES  # nothing twice


def test_words_do_not_depend_on_who_asked_for_them(teacher, some, tmp_path, reporter):
    """Filled beforehand in other batches, or heard in training."""
    heard, filled = (
        listening(teacher, HARD, tmp_path / "a"),
        listening(teacher, HARD, tmp_path / "b"),
    )
    fill(filled, some, reporter)
    for batch in stream(some, heard):
        word = heard(batch)
        assert torch.equal(filled(batch), word)


def test_an_unreadable_image_is_marked_and_not_waited_for(
    image_folder, teacher, tmp_path, reporter
):
    root = image_folder({"a": 3, "b": 3})
    good = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_text("no image")
    dataset = open_folder(root, reporter)
    listener = listening(teacher, HARD, tmp_path / "w", images=6)
    assert fill(listener, dataset, reporter) == VIEWS * 5
    assert listener.cache.count_missing(VIEWS) == 0
    assert [lacking(listener.cache, view) for view in range(VIEWS)] == [[1]] * VIEWS
    silent = CachedTeacher(HARD, 3.0, listener.cache, nobody, CPU, VIEWS, REPEATS)
    assert fill(silent, dataset, reporter) == 0
    for batch in stream(dataset, silent, epochs=3):
        assert len(silent(batch)) == len(batch.keys) == 4 - len(batch.errors)
    (root / "a" / "1.png").write_bytes(good)  # and once it can be read, it is heard
    teacher.asked.clear()
    for batch in stream(dataset, listener, epochs=6):
        listener(batch)
    assert sum(teacher.asked) > 0
    assert lacking(listener.cache, 0) == []


def test_a_batch_of_unreadable_images_asks_nothing(image_folder, teacher, tmp_path, reporter):
    root = image_folder({"a": 2, "b": 2})
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    listener = listening(teacher, HARD, tmp_path / "w", images=4)
    assert fill(listener, open_folder(root, reporter), reporter) == 0
    assert teacher.asked == []
    assert listener.cache.count_missing(VIEWS) == 0


def test_the_temperature_is_the_listeners(teacher, some):
    form = TargetCodec("soft", 10, 10)
    flat, sharp = (
        CachedTeacher(form, tau, None, lambda: teacher, CPU, VIEWS, REPEATS) for tau in (50.0, 0.5)
    )
    batch = next(stream(some, flat))
    assert float(flat(batch).max()) < float(sharp(batch).max())
    logits = teacher.look(batch.teacher_images)
    torch.testing.assert_close(sharp(batch), (logits / 0.5).softmax(1), atol=2e-3, rtol=0)


FILLER = """
import pickle, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from deitctl.device import choose_device
from deitctl.events import SilentReporter
from deitctl.distillation.cached_teacher import Listener
teacher, cache, source, augment = pickle.loads(Path(sys.argv[1]).read_bytes())
listener = Listener(cache.form, 3.0, cache, lambda: teacher, choose_device("cpu", "fp32"), 3, 2)
print("ready", flush=True)
sys.stdin.readline()
print(listener.fill(source, augment, 7, 3, batch_size=5, workers=0, reporter=SilentReporter()))
"""


def test_two_who_fill_a_cache_at_once_end_with_a_whole_one(
    digit_datasets, teacher, tmp_path, reporter
):
    dataset, form = select(digit_datasets[0], range(30)), TargetCodec("soft", 10, 4)
    ours = listening(teacher, form, tmp_path / "w", images=30)
    other = Teacher(teacher.model, teacher.model_config, tuple(range(10)), teacher.seen)
    (tmp_path / "other").write_bytes(pickle.dumps((other, ours.cache, dataset, AUGMENT)))
    command = [sys.executable, "-c", FILLER, str(tmp_path / "other")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        asked = fill(ours, dataset, reporter)
        asked += int(child.stdout.readline())
    assert child.returncode == 0
    assert ours.cache.count_missing(VIEWS) == 0
    assert VIEWS * 30 <= asked <= 2 * VIEWS * 30
    for view in range(VIEWS):
        word = form.decode(ours.cache.read([(view, index) for index in range(30)])[0])
        views = np.stack(
            [train_transform(dataset.read(i), AUGMENT, SIZE, 7, view, i) for i in range(30)]
        )
        asked_now = teacher_targets(teacher.look(torch.from_numpy(views)), "soft", 3.0)
        torch.testing.assert_close(word, form.decode(form.encode(asked_now)), atol=2e-3, rtol=0)
