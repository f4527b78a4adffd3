"""RandAugment's strings, operations and odds are timm's."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import timm.data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment

from deitctl.data.rand_augment import (
    FILL,
    INCREASING,
    LEVELS,
    PLAIN,
    WEIGHTED,
    apply,
    compute_bicubic_weights,
    parse_rand_augment,
    posterize,
    shift_lines,
)
from deitctl.errors import ConfigError

MAGNITUDES = [0, 0.4, 1, 2, 3.7, 5, 6, 8, 9, 9.61, 10, 17, 30]
HPARAMS = {"translate_const": 100, "img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
DEIT = "rand-m9-mstd0.5-inc1"


def timms(name, image, magnitude, side, monkeypatch):
    """timm's operation at a magnitude, with its coin for the side held."""
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.2 if side > 0 else 0.8)
    if name.startswith("Posterize") and LEVELS[name](magnitude / 10, side) < 1:
        # under Pillow 12; under Pillow 13 timm raises ValueError
        return Image.new("RGB", image.size)
    hparams = {**HPARAMS, "magnitude_max": 1000}
    return auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(image)


@pytest.mark.parametrize("name", LEVELS)
def test_every_operation_gives_timms_pixels(name, make_image, monkeypatch):
    """But for the few values of those that slide which are beside by a level, see below."""
    noise = np.random.default_rng(0).integers(0, 256, (33, 50, 3), dtype=np.uint8)
    dark = Image.fromarray(noise // 3 + 20)
    for image in (
        make_image(),
        Image.fromarray(noise),
        dark,
        make_image(3, 2),
        make_image(1, 1),
        make_image(2, 7),
    ):
        for magnitude in MAGNITUDES:
            for side in (1, -1):
                ours = apply(name, image, magnitude, side)
                theirs = timms(name, image, magnitude, side, monkeypatch)
                levels = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
                slides = name.startswith(("Shear", "Translate"))
                assert levels.max() <= (1 if slides else 0), (image.size, magnitude, side)


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_fewer_than_two_values_in_a_thousand_of_a_slid_image_are_off(name, monkeypatch):
    """In a smooth image, as photographs are, where more sums lie close to a whole number than in noise."""
    noise = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC)
    shares = []
    for magnitude in np.random.default_rng(1).uniform(0, 10, 12):
        ours = np.asarray(apply(name, image, magnitude, 1)).astype(int)
        shares.append((ours != np.asarray(timms(name, image, magnitude, 1, monkeypatch))).mean())
    assert 0 < np.mean(shares) < 2e-3


def test_every_operation_is_one_of_timms_and_every_set_too():
    assert list(PLAIN) == auto_augment._RAND_TRANSFORMS
    assert list(INCREASING) == auto_augment._RAND_INCREASING_TRANSFORMS
    assert WEIGHTED == auto_augment._RAND_WEIGHTED_0
    assert set(LEVELS) == {*PLAIN, *INCREASING, *WEIGHTED}


def numbers(low, high):
    return st.one_of(st.none(), st.floats(low, high).map(lambda v: round(v, 3)))


def whole(high):
    return st.one_of(st.none(), st.integers(0, high))


@given(
    m=whole(30),
    n=whole(5),
    p=numbers(0, 1),
    mstd=numbers(0, 200),
    mmax=whole(40),
    inc=st.sampled_from([None, 0, 1, 2]),
    weighted=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@example(m=9, n=None, p=None, mstd=0.5, mmax=None, inc=1, weighted=False, order=random.Random(0))
def test_strings_mean_what_they_mean_to_timm(m, n, p, mstd, mmax, inc, weighted, order):
    values = {"m": m, "n": n, "p": p, "mstd": mstd, "mmax": mmax, "inc": inc}
    parts = [f"{key}{value}" for key, value in values.items() if value is not None] + [
        "tweights"
    ] * weighted
    order.shuffle(parts)
    spec = "-".join(["rand", *parts])
    ours, theirs = (
        parse_rand_augment(spec),
        auto_augment.rand_augment_transform(spec, dict(HPARAMS)),
    )
    op = theirs.ops[0]
    assert ours.names == tuple(o.name for o in theirs.ops)
    assert (ours.layers, ours.prob, ours.magnitude) == (theirs.num_layers, op.prob, op.magnitude)
    assert (ours.noise, ours.max_magnitude) == (op.magnitude_std, op.magnitude_max or 10)
    assert (ours.weights is None) == (theirs.choice_weights is None)
    if ours.weights:
        np.testing.assert_allclose(ours.weights, theirs.choice_weights)


def test_deits_is_set_up_as_timm_sets_it_up():
    theirs = timm.data.create_transform(
        224, is_training=True, auto_augment=DEIT, interpolation="bicubic", re_prob=0.25
    )
    expected = next(t for t in theirs.transforms if type(t).__name__ == "RandAugment")
    ours = parse_rand_augment(DEIT)
    assert ours.names == tuple(op.name for op in expected.ops)
    assert (ours.layers, ours.noise, ours.magnitude, ours.prob) == (2, 0.5, 9, 0.5)
    assert expected.ops[0].kwargs == {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "augment-me",
        "rand-x3",
        "rand-foo",
        "rand-m",
        "rand-m9.5",
        "rand--m9",
        "rand-mstd",
        "rand-n16-tweights",
        "rand-n101",
        "rand-t3a",
        "rand-p0.5x",
        "rand-m９",
        "augmix-m3",
    ],
)
def test_other_strings_are_refused_with_an_example(spec):
    with pytest.raises(ConfigError, match="rand-m9"):
        parse_rand_augment(spec)


@given(st.text(alphabet="randmstpixcw-.0123456789", max_size=20))
def test_any_text_is_understood_or_refused(text):
    with suppress(ConfigError):
        assert parse_rand_augment(f"rand-{text}").layers >= 0


class Spy(dict):
    """Counts which operations are applied, at which strength and side."""

    def __init__(self):
        super().__init__(LEVELS)
        self.seen = []

    def __getitem__(self, name):
        level = super().__getitem__(name)
        return lambda strength, side: (
            self.seen.append((name, strength, side)),
            level(strength, side),
        )[1]


def applied(spec, times, monkeypatch):
    spy = Spy()
    monkeypatch.setattr("deitctl.data.rand_augment.LEVELS", spy)
    draw, image, augment = (
        np.random.default_rng(0),
        Image.new("RGB", (2, 2)),
        parse_rand_augment(spec),
    )
    for _ in range(times):
        augment(image, draw)
    return spy.seen


def test_operations_sides_and_strengths_have_timms_odds(monkeypatch):
    seen = applied(DEIT, 3000, monkeypatch)
    # two layers, each half of the time: 5 deviations are 194
    assert len(seen) == pytest.approx(3000, abs=200)
    counts = {name: sum(n == name for n, _, _ in seen) for name in INCREASING}
    assert min(counts.values()) > 130  # of 200: 5 deviations
    assert max(counts.values()) < 270
    assert np.mean([side for _, _, side in seen]) == pytest.approx(0, abs=0.1)
    strengths = np.array([strength for _, strength, _ in seen])
    assert strengths.max() == 1.0  # cut at ten: noise goes beyond in one of 44
    assert strengths.mean() == pytest.approx(0.9, abs=0.01)
    assert strengths.std() == pytest.approx(0.05, abs=0.005)


def test_weights_draw_without_replacement(monkeypatch):
    seen = applied("rand-m5-n15-p1-tweights", 20, monkeypatch)
    assert all({n for n, _, _ in seen[i : i + 15]} == set(WEIGHTED) for i in range(0, 300, 15))
    rotations = sum(n == "Rotate" for n, _, _ in applied("rand-n1-p1-tweights", 1000, monkeypatch))
    assert rotations == pytest.approx(1000 * 3 / 10.15, abs=75)  # 5 deviations


def test_an_infinite_deviation_is_uniform(monkeypatch):
    strengths = np.array(
        [strength for _, strength, _ in applied("rand-m8-p1-mstd101", 500, monkeypatch)]
    )
    assert 0 <= strengths.min() < 0.01
    assert 0.79 < strengths.max() <= 0.8
    assert strengths.mean() == pytest.approx(0.4, abs=0.04)


def test_what_is_drawn_does_not_depend_on_the_image(make_image):
    augment, after = parse_rand_augment("rand-m9-mstd0.5-inc1-n4"), []
    for image in (make_image(8, 8), make_image(40, 30)):
        draw = np.random.default_rng(5)
        augment(image, draw)
        after.append(draw.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("bits", [0, -3])
def test_posterizing_to_no_bits_gives_black_under_any_pillow(bits, make_image):
    """Pillow 12 gave black; Pillow 13 raises ValueError, and the string of DeiT asks for 0 bits at magnitude 10."""
    image = make_image()
    assert not np.asarray(posterize(image, bits)).any()
    assert LEVELS["PosterizeIncreasing"](1.0, 1) == 0
    assert np.array_equal(posterize(image, 1), np.asarray(image) & 0x80)
    assert posterize(image, 8) is image


def by_pillow(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


def column(*values):
    return Image.fromarray(np.repeat(np.array(values, np.uint8).reshape(-1, 1, 1), 3, axis=2))


def test_half_a_pixel_by_hand():
    """At d = 1/2 Keys' weights are -1/8, 5/8, 5/8, -1/8; the last center lies outside: 3 + 1/2 + 1/2 = 4."""
    assert compute_bicubic_weights(np.array([0.5])).ravel().tolist() == [
        -0.125,
        0.625,
        0.625,
        -0.125,
    ]
    shown = np.asarray(shift_lines(column(10, 20, 60, 200), np.array([0.5]), fill=(1, 2, 3)))
    first = (-10 + 5 * 10 + 5 * 20 - 60) / 8  # the border goes on: 10, 10, 20, 60
    second = (-10 + 5 * 20 + 5 * 60 - 200) / 8
    third = (-20 + 5 * 60 + 5 * 200 - 200) / 8
    assert shown[:3, 0, 0].tolist() == [int(first), int(second), int(third)] == [10, 23, 135]
    assert shown[3, 0].tolist() == [1, 2, 3]


def test_integer_offsets_move_pixels_unchanged(make_image):
    image = make_image(40, 30)
    moved = np.asarray(shift_lines(image, np.full(40, 4.0)))
    assert np.array_equal(moved[:26], np.asarray(image)[4:])
    assert (moved[26:] == FILL).all()


def test_weights_sum_to_one_and_leave_plain_areas_alone():
    d = np.linspace(0, 1, 1001)
    assert np.allclose(compute_bicubic_weights(d).sum(axis=0), 1, atol=1e-15)
    for level in range(256):
        plain = Image.new("RGB", (101, 5), (level, level, level))
        assert set(np.asarray(shift_lines(plain, d[::10] - 0.5, fill=(level,) * 3)).ravel()) == {
            level
        }


@pytest.mark.parametrize("rows", [False, True])
@settings(max_examples=60)
@example(size=(50, 33), amount=0.57, shears=False, seed=0)
@example(size=(33, 50), amount=0.57, shears=False, seed=0)
@example(size=(50, 33), amount=1.4, shears=True, seed=0)
@example(size=(64, 63), amount=1.4, shears=True, seed=0)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    amount=st.floats(-1.5, 1.5),
    shears=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_shearing_and_translating_are_pillows_but_for_a_level(rows, size, amount, shears, seed):
    assert beside_pillow(rows, size, amount, shears, seed).max() <= 1


def beside_pillow(rows, size, amount, shears, seed):
    """How many levels of noise of this size are beside Pillow's, sheared or translated by `amount` of its side."""
    width, height = size
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    factor, shift = (amount, 0.0) if shears else (0.0, amount * (width if rows else height))
    offsets = factor * np.arange(0.5, height if rows else width) + shift
    matrix = (1, factor, shift, 0, 1, 0) if rows else (1, 0, 0, factor, 1, shift)
    ours = np.asarray(shift_lines(image, offsets, rows=rows)).astype(int)
    return np.abs(ours - np.asarray(by_pillow(image, matrix)))


def test_one_value_in_ten_thousand_is_beside_pillows():
    draw = np.random.default_rng(0)
    levels = [
        beside_pillow(index % 2, (224, 224), draw.uniform(-0.5, 0.5), index % 4 < 2, index).mean()
        for index in range(40)
    ]
    assert np.mean(levels) < 2e-4
