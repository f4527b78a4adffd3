"""Evaluation is timm's to the pixel; a training view is a function of its key."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.batch_transforms import normalize
from deitctl.data.eval_transform import eval_transform
from deitctl.data.rand_augment import parse_rand_augment
from deitctl.data.transforms import (
    NARROW,
    VIEWS_VERSION,
    color_jitter,
    random_affine,
    resized_crop,
    sample_crop_box,
    train_transform,
)
from deitctl.errors import ConfigError
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import RECIPES

PLAIN = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0)
BICUBIC = Image.Resampling.BICUBIC
SHAPES = [
    (96, 72),
    (72, 96),
    (64, 64),
    (200, 31),
    (31, 200),
    (5, 7),
    (1, 1),
    (300, 299),
    (6, 700),
    (400, 3),
]


def timm_eval(pre: Preprocessing, **changes):
    values = {
        "input_size": (3, pre.img_size, pre.img_size),
        "crop_pct": pre.crop_pct,
        "interpolation": pre.interpolation,
        "crop_mode": pre.crop_mode,
        "mean": pre.mean,
        "std": pre.std,
        "is_training": False,
    }
    return timm.data.create_transform(**{**values, **changes})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize(
    ("img_size", "crop_pct"),
    [(64, 0.9), (64, 1.0), (96, 0.875), (224, 0.9), (65, 0.95), (64, 1.15)],
)
def test_eval_view_equals_timms_to_the_pixel(shape, interpolation, img_size, crop_pct, make_image):
    pre, image = (
        Preprocessing(img_size=img_size, crop_pct=crop_pct, interpolation=interpolation),
        make_image(*shape),
    )
    expected = timm_eval(pre, normalize=False)(image)
    assert np.array_equal(eval_transform(image, pre), expected.numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_squashing_equals_timms_to_the_pixel(shape, crop_pct, make_image):
    pre, image = (
        Preprocessing(img_size=64, crop_pct=crop_pct, crop_mode="squash"),
        make_image(*shape),
    )
    assert np.array_equal(
        eval_transform(image, pre), timm_eval(pre, normalize=False)(image).numpy()
    )


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
)
def test_normalized_view_equals_timms(mean, std, make_image):
    pre, image = Preprocessing(img_size=64, mean=mean, std=std), make_image()
    ours = normalize(torch.from_numpy(eval_transform(image, pre))[None], pre)[0]
    torch.testing.assert_close(ours, timm_eval(pre)(image), rtol=1e-6, atol=1e-6)


def beside(view, image):
    """The largest difference between a view and an image, in levels."""
    return np.abs(view.astype(int) - np.asarray(image).transpose(2, 0, 1)).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [32, 65, 224])
def test_a_crop_is_resized_as_by_pillow_to_two_levels(shape, size, make_image):
    """As timm does: the crop is cut out first, so that nothing outside it shows at its edges."""
    noise = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    width, height = shape
    for image in (make_image(*shape), Image.fromarray(noise)):
        for box in (
            (0, 0, width, height),
            (width // 3, height // 4, width // 3 + width // 2 + 1, height),
        ):
            cut = image.crop(box)
            if min(cut.size) >= NARROW:
                # Rows first, as Pillow 12 and torch do; Pillow 13 chooses the cheaper order.
                cut = cut.resize((size, cut.height), BICUBIC)
            theirs = cut.resize((size, size), BICUBIC)
            ours = np.asarray(resized_crop(image, box, size)).transpose(2, 0, 1)
            differences = np.abs(ours.astype(int) - np.asarray(theirs).transpose(2, 0, 1))
            assert differences.max() <= 2
            assert differences.mean() < 0.05


def test_a_very_large_crop_is_left_to_pillow(make_image, monkeypatch):
    monkeypatch.setattr("deitctl.data.transforms.LARGE", 1000)
    expected = np.asarray(make_image().resize((32, 32), BICUBIC, box=(3, 4, 80, 60)))
    assert np.array_equal(np.asarray(resized_crop(make_image(), (3, 4, 80, 60), 32)), expected)


def test_a_view_without_chance_is_the_resized_image(make_image):
    image = make_image(40, 30)
    view = train_transform(image, PLAIN, 32, 0, 0, 0)
    assert beside(view, image.resize((32, 32), Image.Resampling.BICUBIC)) <= 2


def test_flip_is_certain_at_one(make_image):
    image = make_image(40, 40)
    flipped = AugmentConfig(crop_scale=(1.0, 1.0), hflip=1.0)
    assert np.array_equal(
        train_transform(image, flipped, 40, 0, 0, 0),
        np.asarray(ImageOps.mirror(image)).transpose(2, 0, 1),
    )


def test_flips_happen_half_of_the_time(make_image):
    image, config = make_image(8, 8), AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.5)
    plain = train_transform(image, PLAIN, 8, 0, 0, 0)
    flips = sum(
        not np.array_equal(train_transform(image, config, 8, 0, 0, i), plain) for i in range(400)
    )
    assert 150 < flips < 250  # 5 deviations


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_views_are_functions_of_their_key(recipe, make_image):
    image, keys = make_image(), [(i % 2, i // 2) for i in range(6)]
    size = 48
    forwards = {k: train_transform(image, recipe.augment, size, 3, *k) for k in keys}
    random.seed(99), np.random.seed(99)  # the globals must not matter
    backwards = {k: train_transform(image, recipe.augment, size, 3, *k) for k in reversed(keys)}
    assert all(np.array_equal(forwards[k], backwards[k]) for k in keys)
    assert all(v.shape == (3, size, size) and v.dtype == np.uint8 for v in forwards.values())
    assert len({v.tobytes() for v in forwards.values()}) == len(keys)


@pytest.mark.parametrize("change", [(4, 0, 0), (3, 1, 0), (3, 0, 1)], ids=["seed", "view", "index"])
def test_every_part_of_the_key_matters(change, make_image):
    augment = RECIPES["paper"].augment
    view, other = (
        train_transform(make_image(), augment, 48, 3, 0, 0),
        train_transform(make_image(), augment, 48, *change),
    )
    assert not np.array_equal(view, other)


def test_a_view_in_another_size_is_the_same_view(make_image):
    """What a teacher sees is what its student sees: crop, flip, map and colors, in other pixels."""
    digits = replace(RECIPES["digits"].augment, hflip=0.5)
    for augment in (RECIPES["finetune"].augment, digits):
        for index in range(8):
            image = make_image(300, 200, seed=index)
            small, large = (train_transform(image, augment, size, 3, 0, index) for size in (48, 96))
            shrunk = large.reshape(3, 48, 2, 48, 2).mean(axis=(2, 4))
            same = np.corrcoef(small.ravel(), shrunk.ravel())[0, 1]
            other = train_transform(image, augment, 48, 3, 1, index)
            assert same > 0.97
            assert same > np.corrcoef(other.ravel(), shrunk.ravel())[0, 1] + 0.01


def test_views_are_what_their_version_says():
    """If other numbers are right here, `VIEWS_VERSION` goes up: stored words would be about other images."""
    gray = Image.fromarray(
        np.arange(64 * 48, dtype=np.uint32).reshape(48, 64).astype(np.uint8)
    ).convert("RGB")
    geometry = AugmentConfig(crop_scale=(0.3, 1.0), hflip=0.5)
    draws = []
    for view, index in ((0, 0), (0, 1), (1, 0)):
        draw = rng.generator(7, "view", view, index)
        box, flip = sample_crop_box(gray.size, geometry, draw), draw.random() < 0.5
        draws.append((*box, bool(flip)))
        expected = gray.crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        expected = ImageOps.mirror(expected) if flip else expected
        assert beside(train_transform(gray, geometry, 32, 7, view, index), expected) <= 2
    assert VIEWS_VERSION == 4
    assert draws == [(0, 3, 45, 42, True), (18, 4, 58, 46, False), (8, 7, 39, 45, True)]


def test_views_leave_the_global_generators_alone(make_image):
    random.seed(1), np.random.seed(1)
    train_transform(make_image(), RECIPES["paper"].augment, 48, 0, 0, 0)
    after = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    assert after == (random.random(), np.random.random())


def test_the_papers_view_is_rand_augment_of_the_crop(make_image):
    """With the crop and the flip taken out, what is left is RandAugment by the view's own generator."""
    image = make_image(48, 48)
    config = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, rand_augment="rand-m9-mstd0.5-inc1")
    for index in range(5):
        draw = rng.generator(0, "view", 2, index)
        draw.random()  # the flip
        expected = parse_rand_augment("rand-m9-mstd0.5-inc1")(image, draw)
        assert np.array_equal(
            train_transform(image, config, 48, 0, 2, index), np.asarray(expected).transpose(2, 0, 1)
        )


def test_the_strongest_rand_augment_gives_a_view(make_image):
    """At magnitude 10 `inc1` posterizes to 0 bits, which Pillow 13 refuses."""
    config = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, rand_augment="rand-m10-n15-inc1")
    for index in range(20):
        assert train_transform(make_image(32, 32), config, 32, 0, 0, index).shape == (3, 32, 32)


def test_a_malformed_rand_augment_is_refused(make_image):
    config = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, rand_augment="augment-me")
    with pytest.raises(ConfigError, match="rand-m9"):
        train_transform(make_image(), config, 32, 0, 0, 0)


@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    low=st.floats(0.01, 1.0),
    seed=st.integers(0, 10**6),
    ratio=st.floats(0.05, 1.0),
)
def test_crop_box_lies_within_the_image(width, height, low, seed, ratio):
    config = AugmentConfig(crop_scale=(low, 1.0), crop_ratio=(ratio, 1 / ratio), hflip=0.0)
    left, top, right, bottom = sample_crop_box((width, height), config, rng.generator(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_the_requested_area_and_ratio():
    config = AugmentConfig(crop_scale=(0.2, 0.5), hflip=0.0)
    boxes = np.array(
        [sample_crop_box((400, 400), config, rng.generator(i)) for i in range(500)], dtype=float
    )
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = w * h / 400**2
    assert 0.195 < area.min() < 0.22
    assert 0.48 < area.max() < 0.505
    assert area.mean() == pytest.approx(0.35, abs=0.02)  # 5 deviations of a uniform
    assert 0.74 < (w / h).min() < 0.78
    assert 1.28 < (w / h).max() < 1.35
    assert np.log(w / h).mean() == pytest.approx(0.0, abs=0.04)


def test_a_very_long_image_gets_its_largest_central_crop():
    config = AugmentConfig(crop_scale=(1.0, 1.0001), hflip=0.0)
    # 4/3 of 30 wide
    assert sample_crop_box((400, 30), config, rng.generator(0)) == (180, 0, 220, 30)


def test_an_affine_map_of_nothing_changes_nothing(make_image):
    image = make_image(32, 32)
    assert np.array_equal(
        np.asarray(random_affine(image, (0.0, 0.0, 0.0), rng.generator(0))), np.asarray(image)
    )


def test_a_shift_moves_within_its_bounds():
    image = Image.new("L", (40, 40))
    image.paste(255, (18, 18, 22, 22))
    moved = []
    for seed in range(50):
        values = np.asarray(random_affine(image, (0.0, 0.0, 0.1), rng.generator(seed)), dtype=float)
        y, x = np.indices(values.shape)
        moved.append(
            ((values * x).sum() / values.sum() - 19.5, (values * y).sum() / values.sum() - 19.5)
        )
    moved = np.array(moved)
    assert np.abs(moved).max() <= 4.1  # a tenth of 40
    assert np.abs(moved).max() > 3


def test_colors_stay_where_the_strength_is_nothing_and_move_where_it_is_not(make_image):
    image = make_image(16, 16)
    assert np.array_equal(np.asarray(color_jitter(image, 0.0, rng.generator(0))), np.asarray(image))
    assert not np.array_equal(
        np.asarray(color_jitter(image, 0.4, rng.generator(0))), np.asarray(image)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_the_smallest_images_have_views(size, recipe, make_image):
    assert train_transform(make_image(*size), recipe.augment, 32, 0, 0, 0).shape == (3, 32, 32)
