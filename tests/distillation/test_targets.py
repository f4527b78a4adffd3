"""Targets survive their compact form, and no damaged record passes for a target."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl.distillation.target_cache import DAMAGED
from deitctl.distillation.targets import MAX_CLASSES, TargetCodec, teacher_targets

HARD = TargetCodec("hard", 7)
SOFT = TargetCodec("soft", 7, 3)
FULL = TargetCodec("soft", 7, 7)
CODECS = pytest.mark.parametrize("codec", [HARD, SOFT, FULL], ids=["hard", "soft", "full"])


def make_targets(
    codec: TargetCodec, count: int = 1, seed: int = 0, sharpness: float = 2.0
) -> torch.Tensor:
    """What a teacher might say: distributions [B,K], decisions where the codec is hard."""
    logits = sharpness * torch.randn(
        count, codec.num_classes, generator=torch.Generator().manual_seed(seed)
    )
    if codec.mode == "hard":
        return torch.nn.functional.one_hot(logits.argmax(1), codec.num_classes).float()
    return logits.softmax(1)


def zeros(codec: TargetCodec) -> np.ndarray:
    return np.zeros((1, codec.width), np.uint16)


soft_targets = st.builds(
    lambda classes, topk, seed, sharpness: (
        TargetCodec("soft", classes, topk),
        make_targets(TargetCodec("soft", classes, topk), 3, seed, sharpness),
    ),
    st.integers(2, 40),
    st.integers(1, 60),
    st.integers(0, 1000),
    st.floats(0.0, 30.0),
)


def test_record_width_by_mode():
    assert (HARD.width, SOFT.width, FULL.width) == (2, 1 + 3 + 3, 1 + 7)
    assert TargetCodec("soft", 7, 100).width == FULL.width  # more than all is all
    for codec in (HARD, SOFT, FULL):
        records = codec.encode(make_targets(codec, 5))
        assert records.shape == (5, codec.width)
        assert records.dtype == np.uint16


def test_a_hard_record_is_a_checksum_and_the_class_plus_one():
    targets = torch.eye(7)[[0, 6, 3]]
    checksums = [n * 40503 % 65521 + 1 for n in (1, 7, 4)]
    assert HARD.encode(targets).tolist() == [
        [c, n] for c, n in zip(checksums, (1, 7, 4), strict=True)
    ]
    assert torch.equal(HARD.decode(HARD.encode(targets)), targets)


def test_a_soft_record_by_hand():
    """1/2 and 1/4 of four classes are kept; the last quarter is spread over the other two."""
    codec, targets = TargetCodec("soft", 4, 2), torch.tensor([[0.05, 0.5, 0.2, 0.25]])
    record = codec.encode(targets)[0]
    assert record[1:].tolist() == [1, 3, 0x3800, 0x3400]  # classes, then float16
    assert record[0] == (1 * 1 + 2 * 3 + 3 * 0x3800 + 4 * 0x3400) % 65521 + 1
    torch.testing.assert_close(
        codec.decode(record[None]), torch.tensor([[0.125, 0.5, 0.125, 0.25]])
    )


@given(
    classes=st.integers(1, MAX_CLASSES),
    labels=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
)
def test_hard_labels_survive_a_round_trip(classes, labels):
    codec = TargetCodec("hard", classes)
    chosen = [int(x * classes) for x in labels]
    targets = torch.nn.functional.one_hot(torch.tensor(chosen), classes).float()
    records = codec.encode(targets)
    assert codec.is_valid(records).all()
    assert codec.decode(records).argmax(1).tolist() == chosen


@given(soft_targets)
def test_soft_labels_survive_a_round_trip_to_three_digits(made):
    """What is kept is off by a float16's rounding and by that of their sum; what is not has the same share each."""
    codec, targets = made
    records = codec.encode(targets)
    decoded = codec.decode(records)
    assert codec.is_valid(records).all()
    assert decoded.shape == targets.shape
    torch.testing.assert_close(decoded.sum(1), torch.ones(len(targets)))
    assert float(decoded.min()) >= 0
    best = targets.topk(codec.num_kept, dim=1)
    error = (decoded.gather(1, best.indices) - best.values).abs()
    assert bool((error <= best.values * 2**-10 + codec.num_kept * 2**-24).all())
    others = torch.ones_like(targets).scatter_(1, best.indices, 0.0).bool()
    if codec.num_kept < codec.num_classes:
        rest = decoded[others].view(len(targets), -1)
        assert bool((rest == rest[:, :1]).all())
        left = 1 - best.values.sum(1)
        assert bool(((rest.sum(1) - left).abs() <= 2**-10 + codec.num_kept * 2**-24).all())


def test_targets_of_a_half_precision_teacher_are_encoded():
    targets = make_targets(SOFT, 3)
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(
            SOFT.decode(SOFT.encode(targets.to(dtype))),
            SOFT.decode(SOFT.encode(targets)),
            atol=0.01,
            rtol=0,
        )


def test_one_hot_soft_labels_survive_exactly():
    targets = torch.eye(7)[[2, 5]]
    for codec in (SOFT, FULL):
        assert torch.equal(codec.decode(codec.encode(targets)), targets)


@CODECS
def test_a_record_of_zeros_is_missing(codec):
    assert not codec.is_valid(zeros(codec)).any()


@CODECS
@given(body=st.binary(min_size=2 * 7, max_size=2 * 7))
def test_the_mark_of_an_unreadable_image_is_never_valid(codec, body):
    record = np.frombuffer(body, np.uint16)[None, : codec.width].copy()
    record[0, 0] = DAMAGED
    assert not codec.is_valid(record).any()


@pytest.mark.parametrize("number", [0, 8, 1000, 65535])
def test_hard_records_beyond_the_classes_are_invalid(number):
    many = TargetCodec("hard", MAX_CLASSES).encode(torch.eye(8)[:1])
    assert HARD.is_valid(many).all()
    many[0, 1] = number
    many[0, 0] = number * 40503 % 65521 + 1  # as a crafted cache would have it
    assert not HARD.is_valid(many).any()


def test_no_flipped_bit_of_a_hard_record_is_another_class():
    """Any bit, and any two of which one is in the checksum, over all classes that a cache can hold."""
    codec = TargetCodec("hard", MAX_CLASSES)
    labels = np.arange(1, MAX_CLASSES + 1, dtype=np.uint16)
    records = np.stack([labels.astype(np.uint32) * 40503 % 65521 + 1, labels], 1).astype(np.uint16)
    assert codec.is_valid(records).all()
    flips = [0, *(1 << bit for bit in range(16))]
    for checksum_flip in flips:
        for label_flip in flips:
            if checksum_flip or label_flip:
                flipped = records ^ np.array([checksum_flip, label_flip], np.uint16)
                assert not codec.is_valid(flipped).any()


@given(made=soft_targets, data=st.data())
def test_a_record_with_one_number_changed_is_invalid(made, data):
    codec, targets = made
    record = codec.encode(targets)[:1]
    place = data.draw(st.integers(0, codec.width - 1))
    other = data.draw(st.integers(0, MAX_CLASSES).filter(lambda n: n != record[0, place]))
    record[0, place] = other
    assert not codec.is_valid(record).any()


@given(made=soft_targets, data=st.data())
def test_a_torn_record_is_invalid(made, data):
    """Some numbers of the new record, the others of the old one or of none."""
    codec, targets = made
    records = codec.encode(targets)
    old = data.draw(st.sampled_from([records[1], np.zeros(codec.width, np.uint16)]))
    new = records[0]
    taken = np.array(data.draw(st.lists(st.booleans(), min_size=codec.width, max_size=codec.width)))
    torn = np.where(taken, new, old)
    whole = [r for r in (new, records[1]) if np.array_equal(torn, r)]
    assert bool(codec.is_valid(torn[None])[0]) == bool(whole)


def test_hard_targets_are_one_hot_at_the_argmax():
    logits = torch.tensor([[0.1, 5.0, -2.0], [2.0, 1.9, 1.8]])
    assert torch.equal(
        teacher_targets(logits, "hard", 1.0), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    )


def test_temperature_does_not_change_hard_targets(noise):
    assert torch.equal(
        teacher_targets(noise(6, 9), "hard", 1.0), teacher_targets(noise(6, 9), "hard", 50.0)
    )


def test_soft_targets_by_hand():
    """Logits 2 ln 3 and 0 are probabilities 9/10 and 1/10 at temperature 1, 3/4 and 1/4 at temperature 2."""
    logits = torch.tensor([[2 * math.log(3.0), 0.0]])
    torch.testing.assert_close(teacher_targets(logits, "soft", 1.0), torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(teacher_targets(logits, "soft", 2.0), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_teacher_targets_are_fp32_distributions_in_every_precision(mode, dtype, noise):
    targets = teacher_targets((30 * noise(5, 7)).to(dtype), mode, 3.0)
    assert targets.dtype is torch.float32
    assert float(targets.min()) >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(5))


SEVERAL = pytest.mark.parametrize(
    "codec",
    [
        TargetCodec(mode, classes, topk, is_multilabel=True)
        for mode, classes, topk in (
            ("hard", 7, 100),
            ("hard", 16, 100),
            ("hard", 40, 100),
            ("soft", 7, 100),
            ("soft", 40, 6),
        )
    ],
    ids=["hard-7", "hard-16", "hard-40", "soft", "soft-top"],
)


def test_hard_targets_of_several_labels_are_the_classes_of_half_or_more():
    logits = torch.tensor([[0.0, -0.1, 3.0], [-1.0, -2.0, -3.0]])
    expected = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(teacher_targets(logits, "hard", 1.0, is_multilabel=True), expected)


def test_soft_targets_of_several_labels_by_hand():
    """A logit of 2 ln 3 is 9/10 at temperature 1 and 3/4 at temperature 2, whatever the other is."""
    logits = torch.tensor([[2 * math.log(3.0), 2 * math.log(3.0)]])
    for tau, expected in ((1.0, 0.9), (2.0, 0.75)):
        targets = teacher_targets(logits, "soft", tau, is_multilabel=True)
        torch.testing.assert_close(targets, torch.full((1, 2), expected))


@SEVERAL
def test_targets_of_several_labels_survive_a_round_trip(codec, noise):
    """One with none of the classes too, and the second round trip changes nothing."""
    targets = teacher_targets(4 * noise(20, codec.num_classes), codec.mode, 2.0, is_multilabel=True)
    targets[0] = 0.0
    records = codec.encode(targets)
    assert records.shape == (20, codec.width)
    assert codec.is_valid(records).all()
    decoded = codec.decode(records)
    top = targets.topk(codec.num_kept, dim=1)
    torch.testing.assert_close(decoded.gather(1, top.indices), top.values, rtol=2**-10, atol=1e-7)
    torch.testing.assert_close(decoded.sum(1), targets.sum(1), rtol=2**-9, atol=1e-6)
    assert codec.mode == "soft" or torch.equal(decoded, targets)
    assert torch.equal(codec.decode(codec.encode(decoded)), decoded) or not codec.keeps_all


def test_a_hard_record_of_several_labels_has_one_bit_a_class():
    """Beside the checksum of two bytes, rounded up to two."""
    widths = [TargetCodec("hard", k, is_multilabel=True).width for k in (1, 16, 17, 80)]
    assert widths == [2, 2, 3, 6]


@SEVERAL
def test_no_record_of_zeros_and_none_with_a_changed_number_is_one_of_several_labels(codec, noise):
    assert not codec.is_valid(zeros(codec)).any()
    records = codec.encode(teacher_targets(4 * noise(5, codec.num_classes), codec.mode, 2.0, True))
    for place in range(codec.width):
        for bit in range(16):
            changed = records.copy()
            changed[:, place] ^= np.uint16(1 << bit)
            assert not codec.is_valid(changed).any()


def test_bits_beyond_the_classes_and_probabilities_above_one_are_invalid():
    """As a crafted cache would have them: with the right checksum."""
    hard, soft = (TargetCodec(mode, 7, 100, is_multilabel=True) for mode in ("hard", "soft"))
    many = TargetCodec("hard", 16, is_multilabel=True).encode(torch.ones(1, 16))
    assert not hard.is_valid(many).any()
    assert not soft.is_valid(soft.encode(torch.full((1, 7), 1.5))).any()
