"""Gray inputs and inputs that are not square: pixels as timm has them, boxes and views that fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.config import AugmentConfig
from deitctl.data.batch_table import AFFINE, TableDraws, draw_table
from deitctl.data.batch_transforms import normalize, student_affine, to_model_channels
from deitctl.data.eval_transform import eval_transform
from deitctl.data.loader import TeacherView, TrainViews, ViewPlan
from deitctl.data.mixup import rand_bbox
from deitctl.data.samplers import SampleKey
from deitctl.data.transforms import train_transform
from deitctl.models.model_config import Preprocessing, parse_preprocessing
from deitctl.sizes import make_size

CROP = AugmentConfig(crop_scale=(0.5, 1.0), hflip=0.5, affine=(20.0, 0.1, 0.1))


def timm_pixels(image: Image.Image, pre: Preprocessing) -> np.ndarray:
    from timm.data import create_transform

    transform = create_transform(
        input_size=(pre.in_chans, *pre.hw),
        interpolation=pre.interpolation,
        crop_pct=pre.crop_pct,
        crop_mode=pre.crop_mode,
        mean=(0.0,) * pre.in_chans,
        std=(1.0,) * pre.in_chans,
    )
    image = image.convert("L") if pre.in_chans == 1 else image
    return (transform(image) * 255).round().byte().numpy()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(32, 64), (48, 32), 32])
@pytest.mark.parametrize("shape", [(90, 70), (40, 200), (30, 20)])
@pytest.mark.parametrize("mean", [(0.5,), (0.5, 0.5, 0.5)], ids=["gray", "rgb"])
def test_evaluation_pixels_are_timms(make_image, mode, size, shape, mean):
    pre = Preprocessing(img_size=size, crop_pct=0.9, crop_mode=mode, mean=mean, std=mean)
    image = make_image(*shape)
    assert np.array_equal(eval_transform(image, pre), timm_pixels(image, pre))


def test_a_view_has_the_height_and_width_of_the_input(make_image):
    views = train_transform(make_image(), CROP, (32, 64), 1, 2, 3)
    assert views.shape == (3, 32, 64)


def test_a_gray_student_and_its_teacher_see_one_view(digit_datasets, monkeypatch, make_image):
    train, _ = digit_datasets
    monkeypatch.setattr(type(train), "open", lambda self, index: make_image(seed=index))
    plan = ViewPlan(1, in_chans=1, teacher_views=(TeacherView(32, 3),))
    sample = TrainViews(train, CROP, 32, plan)[SampleKey(0, 5, 0)]
    color = np.moveaxis(sample.teacher_pixels[0], 0, -1)
    assert np.array_equal(sample.pixels[0], np.asarray(Image.fromarray(color).convert("L")))


def test_luminance_on_the_device_is_pillows_but_for_rounding(make_image):
    colors = np.moveaxis(np.asarray(make_image()), -1, 0)
    gray = np.asarray(make_image().convert("L"), dtype=np.float32)
    pre = Preprocessing(mean=(0.4,), std=(0.2,))
    images = to_model_channels(normalize(torch.from_numpy(colors.copy())[None], pre), pre.in_chans)
    assert images.shape[1] == 1
    assert np.abs(images[0, 0].numpy() * 0.2 * 255 + 0.4 * 255 - gray).max() < 0.51


def test_cutmix_takes_its_share_of_both_sides():
    draw = np.random.default_rng(0)
    for lam in (0.1, 0.5, 0.9):
        mix = rand_bbox((32, 128), lam, draw)
        top, bottom, left, right = mix.bbox
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 128
        assert mix.lam == 1 - (bottom - top) * (right - left) / (32 * 128)


def test_a_quarter_turn_of_a_wide_image_keeps_its_proportions():
    image = torch.zeros(1, 1, 32, 64)
    image[..., 12:20, 28:36] = 1  # a square in the middle, as wide as high
    config = AugmentConfig(crop_scale=(1, 1), hflip=0.0, student_affine=(90.0, 0.0, 0.0))
    for index in range(8):
        draws, size = TableDraws(0, uses_affine=True), make_size(*image.shape[-2:])
        table = draw_table([SampleKey(0, index, 0)], config, size, draws)
        moved = student_affine(image, table.values[:, AFFINE])
        places = (moved[0, 0] > 0.5).nonzero()
        rows, columns = places.amax(0) - places.amin(0)
        assert abs(int(rows) - int(columns)) <= 1


@pytest.mark.parametrize("channels", [0, 300])
def test_channels_that_no_image_has_are_refused(channels):
    with pytest.raises(ValueError, match=f"images of {channels} channels"):
        parse_preprocessing({"input_size": (channels, 32, 32)})
