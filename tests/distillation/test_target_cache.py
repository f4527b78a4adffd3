"""Words keep their meaning in a few bytes, and the cache that holds them survives kills, cuts and company."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl.distillation import target_cache as words
from deitctl.distillation.target_cache import (
    MOST_CLASSES,
    STAMP,
    UNREADABLE,
    TargetCache,
    TargetCodec,
    open_cache,
    read_stamp,
)
from deitctl.errors import DeitctlError, TeacherError

HARD = TargetCodec("hard", 7)
SOFT = TargetCodec("soft", 7, 3)
WHOLE = TargetCodec("soft", 7, 7)
FORMS = pytest.mark.parametrize("form", [HARD, SOFT, WHOLE], ids=["hard", "soft", "whole"])
STAMP_OF = {
    "teacher": "regnety_160 0123",
    "view seed": 0,
    "mode": "soft",
    "tau": 3.0,
    "view augmentation": {"hflip": 0.5, "crop_scale": (0.35, 1.0)},
}


def lacking(cache: TargetCache, view: int) -> list[int]:
    """The images of a view without a word, unreadable ones among them."""
    return sorted(set(range(cache.num_images)) - set(cache.known(view).tolist()))


def said(form: TargetCodec, count: int = 1, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    """What a teacher might say: distributions [B,K], decisions where the form is hard."""
    logits = sharpness * torch.randn(
        count, form.classes, generator=torch.Generator().manual_seed(seed)
    )
    if form.mode == "hard":
        return torch.nn.functional.one_hot(logits.argmax(1), form.classes).float()
    return logits.softmax(1)


def zeros(form: TargetCodec) -> np.ndarray:
    return np.zeros((1, form.width), np.uint16)


soft_words = st.builds(
    lambda classes, topk, seed, sharpness: (
        TargetCodec("soft", classes, topk),
        said(TargetCodec("soft", classes, topk), 3, seed, sharpness),
    ),
    st.integers(2, 40),
    st.integers(1, 60),
    st.integers(0, 1000),
    st.floats(0.0, 30.0),
)


def test_records_are_as_wide_as_they_say():
    assert (HARD.width, SOFT.width, WHOLE.width) == (1, 1 + 3 + 3, 1 + 7)
    assert TargetCodec("soft", 7, 100).width == WHOLE.width  # more than all is all
    for form in (HARD, SOFT, WHOLE):
        records = form.encode(said(form, 5))
        assert records.shape == (5, form.width)
        assert records.dtype == np.uint16


def test_a_hard_record_is_the_class_plus_one():
    word = torch.eye(7)[[0, 6, 3]]
    assert HARD.encode(word).tolist() == [[1], [7], [4]]
    assert torch.equal(HARD.decode(HARD.encode(word)), word)


def test_a_soft_record_by_hand():
    """1/2 and 1/4 of four classes are kept; the last quarter is spread over the other two."""
    form, word = TargetCodec("soft", 4, 2), torch.tensor([[0.05, 0.5, 0.2, 0.25]])
    record = form.encode(word)[0]
    assert record[1:].tolist() == [1, 3, 0x3800, 0x3400]  # classes, then float16
    assert record[0] == (1 * 1 + 2 * 3 + 3 * 0x3800 + 4 * 0x3400) % 65521 + 1
    torch.testing.assert_close(form.decode(record[None]), torch.tensor([[0.125, 0.5, 0.125, 0.25]]))


@given(
    classes=st.integers(1, MOST_CLASSES),
    labels=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
)
def test_decisions_come_back_as_they_were(classes, labels):
    form = TargetCodec("hard", classes)
    chosen = [int(x * classes) for x in labels]
    word = torch.nn.functional.one_hot(torch.tensor(chosen), classes).float()
    records = form.encode(word)
    assert form.valid(records).all()
    assert form.decode(records).argmax(1).tolist() == chosen


@given(soft_words)
def test_soft_words_come_back_to_three_digits(made):
    """What is kept is off by a float16's rounding and by that of their sum; what is not has the same share each."""
    form, word = made
    records = form.encode(word)
    back = form.decode(records)
    assert form.valid(records).all()
    assert back.shape == word.shape
    torch.testing.assert_close(back.sum(1), torch.ones(len(word)))
    assert float(back.min()) >= 0
    best = word.topk(form.kept, dim=1)
    error = (back.gather(1, best.indices) - best.values).abs()
    assert bool((error <= best.values * 2**-10 + form.kept * 2**-24).all())
    others = torch.ones_like(word).scatter_(1, best.indices, 0.0).bool()
    if form.kept < form.classes:
        rest = back[others].view(len(word), -1)
        assert bool((rest == rest[:, :1]).all())
        left = 1 - best.values.sum(1)
        assert bool(((rest.sum(1) - left).abs() <= 2**-10 + form.kept * 2**-24).all())


def test_words_of_a_half_precision_teacher_are_kept():
    word = said(SOFT, 3)
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(
            SOFT.decode(SOFT.encode(word.to(dtype))),
            SOFT.decode(SOFT.encode(word)),
            atol=0.01,
            rtol=0,
        )


def test_a_sure_teacher_is_kept_exactly():
    word = torch.eye(7)[[2, 5]]
    for form in (SOFT, WHOLE):
        assert torch.equal(form.decode(form.encode(word)), word)


@FORMS
def test_zeros_are_a_word_not_yet_heard(form):
    assert not form.valid(zeros(form)).any()


@FORMS
@given(body=st.binary(min_size=2 * 7, max_size=2 * 7))
def test_the_mark_of_an_unreadable_image_is_never_a_word(form, body):
    record = np.frombuffer(body, np.uint16)[None, : form.width].copy()
    record[0, 0] = UNREADABLE
    assert not form.valid(record).any()


@pytest.mark.parametrize("number", [0, 8, 1000, UNREADABLE])
def test_no_class_is_no_decision(number):
    assert not HARD.valid(np.array([[number]], np.uint16)).any()


@given(made=soft_words, data=st.data())
def test_a_record_with_one_other_number_is_not_a_word(made, data):
    form, word = made
    record = form.encode(word)[:1]
    place = data.draw(st.integers(0, form.width - 1))
    other = data.draw(st.integers(0, MOST_CLASSES).filter(lambda n: n != record[0, place]))
    record[0, place] = other
    assert not form.valid(record).any()


@given(made=soft_words, data=st.data())
def test_a_torn_record_is_not_a_word(made, data):
    """Some numbers of the new record, the others of the old one or of none."""
    form, word = made
    records = form.encode(word)
    old = data.draw(st.sampled_from([records[1], np.zeros(form.width, np.uint16)]))
    new = records[0]
    taken = np.array(data.draw(st.lists(st.booleans(), min_size=form.width, max_size=form.width)))
    torn = np.where(taken, new, old)
    whole = [r for r in (new, records[1]) if np.array_equal(torn, r)]
    assert bool(form.valid(torn[None])[0]) == bool(whole)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "words"


def opened(folder: Path, form: TargetCodec = SOFT, num_images: int = 5) -> TargetCache:
    return open_cache(folder, STAMP_OF, form, num_images)


@FORMS
def test_a_new_cache_lacks_everything(form, folder):
    cache = opened(folder, form)
    assert cache.missing(0).tolist() == lacking(cache, 0) == [0, 1, 2, 3, 4]
    assert cache.missing(1, 2, 4).tolist() == [2, 3]
    assert cache.count_missing(3) == 15
    assert not cache.holds(2, 4)


@FORMS
def test_what_is_written_is_read_again_by_whoever_opens_it(form, folder):
    records = form.encode(said(form, 2))
    cache = opened(folder, form)
    cache.write([(0, 3), (2, 1)], records)
    for reader in (cache, opened(folder, form)):
        found, known = reader.read([(2, 1), (0, 0), (0, 3)])
        assert known.tolist() == [True, False, True]
        assert np.array_equal(found[[2, 0]], records)
        assert reader.holds(0, 3)
        assert not reader.holds(0, 1)
        assert reader.missing(0).tolist() == [0, 1, 2, 4]
        assert reader.missing(0, 2, 9).tolist() == [2, 4]
        assert [reader.count_missing(n) for n in (0, 1, 3)] == [0, 4, 13]


@FORMS
def test_what_was_read_does_not_move_when_it_is_written_over(form, folder):
    first, second = form.encode(said(form, 1)), form.encode(said(form, 1, seed=2))
    assert not np.array_equal(first, second)
    cache = opened(folder, form)
    cache.write([(0, 0)], first)
    kept, _ = cache.read([(0, 0)])
    cache.write([(0, 0)], second)
    assert np.array_equal(kept, first)


@FORMS
def test_an_unreadable_image_is_not_waited_for_until_it_is_heard(form, folder):
    cache = opened(folder, form)
    cache.mark_unreadable([(0, 1), (0, 4)])
    assert cache.missing(0).tolist() == [0, 2, 3]
    assert lacking(cache, 0) == [0, 1, 2, 3, 4]
    assert not cache.holds(0, 1)
    assert cache.count_missing(2) == 8  # it was seen in one view only
    cache.write([(0, 1)], form.encode(said(form)))
    assert cache.holds(0, 1)
    assert lacking(cache, 0) == [0, 2, 3, 4]


@FORMS
def test_a_cache_travels_to_a_loader_process(form, folder):
    cache = opened(folder, form, images=5000)
    cache.write([(0, 1)], form.encode(said(form)))
    packed = pickle.dumps(cache)
    assert len(packed) < 1000  # without the words
    there = pickle.loads(packed)
    assert there.holds(0, 1)
    there.write([(1, 4)], form.encode(said(form)))
    assert cache.holds(1, 4)


def test_a_view_is_a_file_of_its_own_and_many_do_not_meet(folder):
    cache = opened(folder, HARD, images=3)
    places = [(view, index) for view in range(60) for index in range(3)]
    labels = [(2 * view + index) % 7 for view, index in places]
    cache.write(places, HARD.encode(torch.eye(7)[labels]))
    again = opened(folder, HARD, images=3)
    assert again.count_missing(60) == 0
    assert HARD.decode(again.read(places)[0]).argmax(1).tolist() == labels
    assert {f.stat().st_size for f in folder.glob("view-*.words")} == {3 * 2}
    assert len(list(folder.glob("view-*.words"))) == 60


@FORMS
@pytest.mark.parametrize("left", [0, 2, 6, 20])
def test_a_file_cut_short_keeps_what_is_left_and_is_filled_up(form, left, folder):
    records = form.encode(said(form, 5))
    opened(folder, form).write([(0, i) for i in range(5)], records)
    (file,) = folder.glob("view-*.words")
    os.truncate(file, min(left, file.stat().st_size))
    cache = opened(folder, form)
    whole = min(left, 10 * form.width) // (2 * form.width)
    assert cache.missing(0).tolist() == list(range(whole, 5))
    cache.write([(0, i) for i in range(whole, 5)], records[whole:])
    assert np.array_equal(opened(folder, form).read([(0, i) for i in range(5)])[0], records)


def test_a_missing_file_is_filled_up(folder):
    opened(folder).write([(0, 0), (1, 0)], SOFT.encode(said(SOFT, 2)))
    (folder / "view-00000.words").unlink()
    cache = opened(folder)
    assert (cache.holds(0, 0), cache.holds(1, 0)) == (False, True)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mark", "cut"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 1),
    ),
    max_size=12,
)


@FORMS
@given(ACTIONS)
def test_any_company_sees_what_any_of_it_did_last(form, actions):
    """Two who have the folder open, and now and then one who opens it after a file was cut."""
    with TemporaryDirectory() as name:
        crowd = [open_cache(Path(name), STAMP_OF, form, 4) for _ in range(2)]
        expected: dict[tuple[int, int], int | None] = {}
        for number, (action, view, index, who) in enumerate(actions):
            if action == "write":
                crowd[who].write([(view, index)], form.encode(said(form, 1, number)))
                expected[view, index] = number
            elif action == "mark":
                crowd[who].mark_unreadable([(view, index)])
                expected[view, index] = None
            else:
                file = Path(name) / f"view-{view:05d}.words"
                file.write_bytes(
                    file.read_bytes()[: index * form.width * 2] if file.exists() else b""
                )
                expected = {(v, i): n for (v, i), n in expected.items() if v != view or i < index}
                crowd = [open_cache(Path(name), STAMP_OF, form, 4) for _ in range(2)]
        for cache in (*crowd, pickle.loads(pickle.dumps(crowd[0]))):
            for view in range(3):
                assert cache.missing(view).tolist() == [
                    i for i in range(4) if (view, i) not in expected
                ]
                assert lacking(cache, view) == [
                    i for i in range(4) if expected.get((view, i)) is None
                ]
                for index in range(4):
                    number = expected.get((view, index))
                    assert cache.holds(view, index) == (number is not None)
                    if number is not None:
                        records, _ = cache.read([(view, index)])
                        assert np.array_equal(records, form.encode(said(form, 1, number)))
            assert cache.count_missing(3) == 12 - len(expected)


KILLED = """
import itertools, sys
import torch
from pathlib import Path
from deitctl.distillation.target_cache import WordCache, WordFormat
root, classes = Path(sys.argv[1]), int(sys.argv[2])
form = WordFormat("soft", classes, classes)
logits = torch.randn(2, classes, generator=torch.Generator().manual_seed(0))
records, cache = form.encode(logits.softmax(1)), WordCache(root, form, 50)
for turn in itertools.count():
    for index in range(50):
        cache.write([(0, index)], records[(turn + index) % 2, None])
    if turn == 20:
        print("going", flush=True)
"""


def test_a_kill_in_the_middle_of_writing_leaves_whole_words(folder):
    """At most the word that was being written is lost, and none is another than was said."""
    classes = 2000
    form = TargetCodec("soft", classes, classes)
    cache = open_cache(folder, STAMP_OF, form, 50)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(classes)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "going\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    whole = form.encode(
        torch.randn(2, classes, generator=torch.Generator().manual_seed(0)).softmax(1)
    )
    for reader in (cache, open_cache(folder, STAMP_OF, form, 50)):
        records, known = reader.read([(0, i) for i in range(50)])
        assert known.sum() >= 49
        assert all(any(np.array_equal(record, w) for w in whole) for record in records[known])


def test_a_cache_of_the_same_is_opened_again(folder):
    opened(folder).write([(0, 0)], SOFT.encode(said(SOFT)))
    assert opened(folder).holds(0, 0)
    assert read_stamp(folder) == json.loads(
        json.dumps(STAMP_OF)
    )  # a tuple comes back as a list and is the same


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher": "regnety_160 9999"}, 'teacher was "regnety_160 0123", is "regnety_160 9999"'),
        ({"view seed": 1}, "view seed was 0, is 1"),
        ({"mode": "hard"}, 'mode was "soft", is "hard"'),
        ({"tau": 1.5}, "tau was 3.0, is 1.5"),
        ({"tau": None}, "tau was 3.0, is not said"),
        ({"topk": 100}, "topk was not said, is 100"),
        (
            {"view augmentation": {"hflip": 0.0, "crop_scale": (0.35, 1.0)}},
            "view augmentation: hflip was 0.5, is 0.0",
        ),
        (
            {"view augmentation": {"hflip": 0.5, "crop_scale": (0.25, 1.0)}},
            "view augmentation: crop_scale was [0.35, 1.0], is [0.25, 1.0]",
        ),
        (
            {"view augmentation": {"hflip": 0.5}},
            "view augmentation: crop_scale was [0.35, 1.0], is not said",
        ),
        (
            {"view augmentation": {"hflip": 0.0, "crop_scale": (0.25, 1.0)}, "view seed": 3},
            "view seed was 0, is 3; view augmentation: hflip was 0.5, is 0.0; crop_scale was [0.35, 1.0], "
            "is [0.25, 1.0]",
        ),
    ],
    ids=lambda x: None if isinstance(x, dict) else x.partition(" was")[0],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(changes, reason, folder):
    opened(folder).write([(0, 0)], SOFT.encode(said(SOFT)))
    with pytest.raises(TeacherError) as refused:
        open_cache(
            folder, {k: v for k, v in {**STAMP_OF, **changes}.items() if v is not None}, SOFT, 5
        )
    assert refused.value.message == f"The teacher's words in {folder} are stale: {reason}."
    assert "--teacher-cache" in refused.value.hint
    assert opened(folder).holds(0, 0)  # nothing was touched


def test_a_folder_with_other_files_is_not_taken(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    with pytest.raises(TeacherError, match="holds other files and no teacher's words"):
        opened(folder)
    assert os.listdir(folder) == ["thesis.txt"]


def test_an_empty_folder_is_taken_whatever_the_system_hides_in_it(folder):
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    assert opened(folder).count_missing(1) == 5


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff"])
def test_a_stamp_that_cannot_be_read_is_said(text, folder):
    opened(folder)
    (folder / STAMP).write_bytes(text)
    with pytest.raises(TeacherError, match=r"cache\.json cannot be read.*Delete that folder"):
        opened(folder)


def test_a_file_in_the_folders_place_is_said(folder):
    folder.write_text("")
    with pytest.raises(DeitctlError, match="Cannot write"):
        opened(folder)


def test_a_full_disk_is_said_before_a_word_is_lost(folder, monkeypatch):
    cache = opened(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(words, "_reserve", full)
    with pytest.raises(DeitctlError, match=r"view-00003\.words: No space left"):
        cache.write([(3, 0)], SOFT.encode(said(SOFT)))


def test_more_classes_than_a_record_can_name_are_refused(folder):
    with pytest.raises(TeacherError, match=r"at most 65,000 classes, these are 65,001"):
        opened(folder, TargetCodec("hard", MOST_CLASSES + 1))
    assert not folder.exists()
    assert opened(folder, TargetCodec("hard", MOST_CLASSES)).count_missing(1) == 5
