"""3-Augment and the simple random crop give the released code's pixels, given the same draws (deit/augment.py)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as F

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data import three_augment as module
from deitctl.data.three_augment import cover, three_augment
from deitctl.data.transforms import render_view, resized_crop, sample_crop_box

CONFIG = AugmentConfig(crop_scale=(0.08, 1.0), hflip=0.5, three_augment=True, color_jitter=0.3)
SIZE = 40


def release(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The released transform after its crop, of torchvision's classes, with the draws of a view."""
    if draw.random() < 0.5:
        image = transforms.RandomHorizontalFlip(p=1.0)(image)
    choice, radius = int(draw.integers(3)), float(draw.uniform(0.1, 2.0))
    image = (
        transforms.Grayscale(3),
        ImageOps.solarize,
        lambda image: image.filter(ImageFilter.GaussianBlur(radius=radius)),
    )[choice](image)
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for which in draw.permutation(3):
        image = changes[which](image, float(draw.uniform(0.7, 1.3)))
    return image


@pytest.mark.parametrize("view", range(12))
def test_a_view_is_the_released_transforms_to_the_bit(view: int, make_image):
    image = make_image(90, 70, seed=view)
    draw = rng.generator(0, "view", view, 5)
    cropped = resized_crop(image, sample_crop_box(image.size, CONFIG, draw), SIZE)
    expected = release(cropped, draw)
    assert np.array_equal(render_view(image, CONFIG, SIZE, 0, view, 5), expected)


@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (40, 40), (31, 200), (20, 24)], ids=str)
def test_the_simple_random_crop_is_torchvisions(shape: tuple[int, int], make_image):
    config = replace(CONFIG, crop_mode="src", hflip=0.0, three_augment=False, color_jitter=0.0)
    image = make_image(*shape)
    for view in range(4):
        draw = rng.generator(0, "view", view, 0)
        resized = resized_crop(image, (0, 0, *image.size), cover(image.size, (SIZE, SIZE)))
        theirs = transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC)(image)
        assert resized.size == theirs.size
        difference = np.asarray(resized, np.int16) - np.asarray(theirs, np.int16)
        assert np.abs(difference).max() <= 2  # torch's rounding, as of every view
        padded = transforms.Pad(4, padding_mode="reflect")(resized)
        top, left = (int(draw.integers(0, side - SIZE + 1)) for side in padded.size[::-1])
        expected = F.crop(padded, top, left, SIZE, SIZE)
        assert np.array_equal(render_view(image, config, SIZE, 0, view, 0), expected)


@pytest.mark.parametrize("hw", [(32, 64), (64, 32), (32, 32)])
def test_an_image_covers_a_view_of_any_ratio(hw: tuple[int, int], make_image):
    config = replace(CONFIG, crop_mode="src")
    for shape in ((90, 70), (33, 71), (200, 20)):
        height, width = cover(shape, hw)
        assert height >= hw[0]
        assert width >= hw[1]
        assert height == hw[0] or width == hw[1]
        assert render_view(make_image(*shape), config, hw, 0, 0, 0).size == hw[::-1]


def test_each_operation_is_a_third(monkeypatch: pytest.MonkeyPatch):
    image, counts = Image.new("RGB", (4, 4), (10, 200, 30)), Counter[str]()
    gray, solarized = image.convert("L").convert("RGB"), ImageOps.solarize(image)
    for seed in range(600):
        view = three_augment(image, np.random.default_rng(seed))
        counts["gray" if view == gray else "solarized" if view == solarized else "blurred"] += 1
    assert all(150 < counts[name] < 250 for name in ("gray", "solarized", "blurred"))
    assert module.BLUR_RADIUS == (0.1, 2.0)


def test_a_gray_image_stays_gray(make_image):
    gray = make_image().convert("L")
    for seed in range(6):
        assert three_augment(gray, np.random.default_rng(seed)).mode == "L"


def test_views_without_it_are_what_they_were(make_image):
    """Nothing is drawn for what is off: the views of all other recipes stay the same."""
    plain = replace(CONFIG, three_augment=False, color_jitter=0.0)
    draw = rng.generator(0, "view", 1, 2)
    image = make_image()
    expected = resized_crop(image, sample_crop_box(image.size, plain, draw), SIZE)
    if draw.random() < 0.5:
        expected = ImageOps.mirror(expected)
    assert np.array_equal(render_view(image, plain, SIZE, 0, 1, 2), expected)
