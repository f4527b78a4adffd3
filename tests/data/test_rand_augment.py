"""RandAugment's strings, operations and odds are timm's."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import timm.data
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment

from deitctl.data.rand_augment import FILL, INCREASING, LEVELS, PLAIN, WEIGHTED, apply, rand_augment
from deitctl.errors import ConfigError

MAGNITUDES = [0, 0.4, 1, 2, 3.7, 5, 6, 8, 9, 9.61, 10, 17, 30]
HPARAMS = {"translate_const": 100, "img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
DEIT = "rand-m9-mstd0.5-inc1"


def timms(name, image, magnitude, side, monkeypatch):
    """timm's operation at a magnitude, with its coin for the side held."""
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.2 if side > 0 else 0.8)
    hparams = {**HPARAMS, "magnitude_max": 1000}
    return auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(image)


@pytest.mark.parametrize("name", LEVELS)
def test_every_operation_gives_timms_pixels(name, make_image, monkeypatch):
    """But for the few values of those that slide which are beside by a level, see test_slide.py."""
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
    ours, theirs = rand_augment(spec), auto_augment.rand_augment_transform(spec, dict(HPARAMS))
    op = theirs.ops[0]
    assert ours.names == tuple(o.name for o in theirs.ops)
    assert (ours.layers, ours.prob, ours.magnitude) == (theirs.num_layers, op.prob, op.magnitude)
    assert (ours.noise, ours.highest) == (op.magnitude_std, op.magnitude_max or 10)
    assert (ours.weights is None) == (theirs.choice_weights is None)
    if ours.weights:
        np.testing.assert_allclose(ours.weights, theirs.choice_weights)


def test_deits_is_set_up_as_timm_sets_it_up():
    theirs = timm.data.create_transform(
        224, is_training=True, auto_augment=DEIT, interpolation="bicubic", re_prob=0.25
    )
    expected = next(t for t in theirs.transforms if type(t).__name__ == "RandAugment")
    ours = rand_augment(DEIT)
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
def test_what_is_no_string_of_ours_is_refused_with_an_example(spec):
    with pytest.raises(ConfigError, match="rand-m9"):
        rand_augment(spec)


@given(st.text(alphabet="randmstpixcw-.0123456789", max_size=20))
def test_any_text_is_understood_or_refused(text):
    with suppress(ConfigError):
        assert rand_augment(f"rand-{text}").layers >= 0


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
    draw, image, augment = np.random.default_rng(0), Image.new("RGB", (2, 2)), rand_augment(spec)
    for _ in range(times):
        augment(image, draw)
    return spy.seen


def test_operations_sides_and_strengths_have_timms_odds(monkeypatch):
    seen = applied(DEIT, 3000, monkeypatch)
    assert len(seen) == pytest.approx(
        3000, abs=200
    )  # two layers, each half of the time: 5 deviations are 194
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
    augment, after = rand_augment("rand-m9-mstd0.5-inc1-n4"), []
    for image in (make_image(8, 8), make_image(40, 30)):
        draw = np.random.default_rng(5)
        augment(image, draw)
        after.append(draw.random())
    assert after[0] == after[1]
