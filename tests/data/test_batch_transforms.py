"""Normalization, random erasing and the student's affine augmentation, by hand, by statistics and against timm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data import batch_transforms
from deitctl.data.batch_table import AFFINE, ERASE_AREA, TableDraws, draw_table, list_parts
from deitctl.data.batch_transforms import normalize, renormalize
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deitctl.recipes import RECIPES
from deitctl.sizes import make_size

KEYS = [SampleKey(epoch, index, 0) for epoch in range(3) for index in range(4)]
ERASE_KEYS = [SampleKey(0, i, 0) for i in range(400)]
HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def student_affine(
    images: torch.Tensor, keys: Sequence[SampleKey], config: AugmentConfig, seed: int
) -> torch.Tensor:
    """The transforms of a batch of which nothing but the affine map is on."""
    size = make_size(*images.shape[-2:])
    table = draw_table(keys, config, size, TableDraws(seed, uses_affine=True))
    if not list_parts(config, [], uses_affine=True).has_affine:
        return images
    return batch_transforms.student_affine(images, table.values[:, AFFINE])


def random_erase(
    images: torch.Tensor, keys: Sequence[SampleKey], probability: float, seed: int
) -> torch.Tensor:
    config = AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, random_erase_prob=probability)
    size = make_size(*images.shape[-2:])
    table = draw_table(keys, config, size, TableDraws(seed, uses_affine=False))
    return batch_transforms.random_erase(images, table)


def moving(
    degrees: float = 0.0, scaling: float = 0.0, shift: float = 0.0, hflip: float = 0.0
) -> AugmentConfig:
    return AugmentConfig(
        crop_scale=(1.0, 1.0), hflip=hflip, student_affine=(degrees, scaling, shift)
    )


def draws(
    key: SampleKey, config: AugmentConfig, seed: int
) -> tuple[float, float, float, float, bool]:
    """Angle in radians, scale, shift in shares of the side, flip: in the order in which they are drawn."""
    draw, (degrees, scaling, shift) = rng.generator(seed, "on top", *key), config.student_affine
    angle = math.radians(draw.uniform(-degrees, degrees))
    scale = 1 / (1 + draw.uniform(-scaling, scaling))
    dx, dy = (draw.uniform(-2 * shift, 2 * shift, 2) / 2).tolist()
    return angle, scale, dx, dy, draw.random() < config.hflip


def ramp(size: int, x: float, y: float) -> torch.Tensor:
    """Return a linear ramp over coordinates -1 to 1, [1,3,S,S], which bilinear sampling reproduces exactly."""
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    return (x * line[None, :] + y * line[:, None]).expand(1, 3, size, size).clone()


def test_zero_strength_returns_the_same_tensor(noise):
    images = noise(4, 3, 8, 8)
    assert student_affine(images, KEYS[:4], moving(), 0) is images
    # views flip, nothing is on top of them
    assert student_affine(images, KEYS[:4], moving(hflip=1.0), 0) is images


def test_translation_by_hand():
    """A translated ramp is the ramp plus a constant; at the edge, the last value."""
    config, size = moving(shift=0.2), 20
    for key in KEYS:
        _, _, dx, dy, _ = draws(key, config, 3)
        moved = student_affine(ramp(size, 1.0, 10.0), [key], config, 3)
        line = ((torch.arange(size) + 0.5) * 2 / size - 1)[None]
        edge = 1 - 1 / size  # the middle of the last pixel
        x, y = ((line + 2 * d).clamp(-edge, edge) for d in (dx, dy))
        torch.testing.assert_close(moved[0, 0], x + 10 * y.T, rtol=1e-4, atol=1e-4)
        assert max(abs(dx), abs(dy)) <= 0.2


def test_rotation_and_scaling_by_hand():
    """The middle of the image, where no edge comes in, is the ramp at the turned and scaled coordinates."""
    config, size = moving(degrees=20.0, scaling=0.3), 24
    for key in KEYS:
        angle, scale, _, _, _ = draws(key, config, 0)
        assert abs(angle) <= math.radians(20)
        assert 1 / 1.3 <= scale <= 1 / 0.7
        moved = student_affine(ramp(size, 1.0, 10.0), [key], config, 0)[0, 0, 8:16, 8:16]
        line = ((torch.arange(size) + 0.5) * 2 / size - 1)[8:16]
        x, y = line[None, :], line[:, None]
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        torch.testing.assert_close(
            moved, (cos * x + sin * y) + 10 * (-sin * x + cos * y), rtol=1e-4, atol=1e-4
        )


def test_an_image_flips_where_the_recipe_flips_and_only_there(noise):
    """With a shift too small to see, what is left is the flip."""
    images = noise(len(KEYS), 3, 8, 8)
    for hflip in (0.0, 0.5, 1.0):
        config = moving(shift=1e-6, hflip=hflip)
        moved = student_affine(images, KEYS, config, 5)
        flips = [draws(key, config, 5)[4] for key in KEYS]
        expected = torch.stack([i.flip(-1) if f else i for i, f in zip(images, flips, strict=True)])
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)
        assert sum(flips) == {0.0: 0, 1.0: len(KEYS)}.get(hflip, sum(flips))
    assert 0 < sum(draws(key, moving(hflip=0.5), 5)[4] for key in KEYS) < len(KEYS)


def test_flipped_images_get_the_same_affine_map(noise):
    """The flip is of what comes out."""
    plain, flipped = moving(10.0, 0.1, 0.1), moving(10.0, 0.1, 0.1, hflip=1.0)
    images = noise(4, 3, 12, 12)
    straight = student_affine(images, KEYS[:4], plain, 0)
    torch.testing.assert_close(
        student_affine(images, KEYS[:4], flipped, 0), straight.flip(-1), rtol=1e-4, atol=1e-4
    )


def test_pixels_from_outside_repeat_the_edge():
    """A one-colored image stays what it is; zeros from outside would darken it."""
    white = torch.full((len(KEYS), 3, 16, 16), 2.5)
    torch.testing.assert_close(student_affine(white, KEYS, moving(45.0, 0.5, 0.5), 0), white)


@given(
    chosen=st.lists(st.sampled_from(range(len(KEYS))), min_size=1, max_size=5),
    seed=st.integers(0, 20),
    hflip=st.sampled_from([0.0, 0.5]),
)
def test_the_affine_map_is_a_function_of_seed_and_key(chosen, seed, hflip):
    config = moving(8.0, 0.1, 0.1, hflip)
    images = torch.randn(len(KEYS), 3, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = student_affine(images, KEYS, config, seed)
    some = student_affine(images[chosen], [KEYS[i] for i in chosen], config, seed)
    torch.testing.assert_close(some, whole[chosen], rtol=0, atol=1e-6)


def test_every_part_of_the_key_and_the_seed_matters(noise):
    image, config = noise(1, 3, 8, 8), moving(5.0, 0.1, 0.05)
    keys = [(0, SampleKey(0, 0, 0)), (1, SampleKey(0, 0, 0))]
    keys += [(0, SampleKey(1, 0, 0)), (0, SampleKey(0, 1, 0)), (0, SampleKey(0, 0, 1))]
    moved = [student_affine(image, [key], config, seed) for seed, key in keys]
    for number, one in enumerate(moved):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in moved[number + 1 :])


def test_the_input_is_not_modified(noise):
    images = noise(2, 3, 8, 8)
    student_affine(images, KEYS[:2], moving(5.0, 0.1, 0.05, 1.0), 0)
    assert torch.equal(images, noise(2, 3, 8, 8))


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if any(r.augment.student_affine)])
def test_recipes_use_small_affine_maps(name, noise):
    """Of a smooth image most stays: what a teacher said of the view still fits."""
    augment = RECIPES[name].augment
    image = torch.nn.functional.interpolate(noise(1, 3, 4, 4), 32, mode="bicubic").expand(
        len(KEYS), -1, -1, -1
    )
    moved = student_affine(
        image,
        KEYS,
        AugmentConfig(crop_scale=(1.0, 1.0), hflip=0.0, student_affine=augment.student_affine),
        0,
    )
    near = [
        float(torch.corrcoef(torch.stack([m.ravel(), i.ravel()]))[0, 1])
        for m, i in zip(moved, image, strict=True)
    ]
    assert min(near) > 0.6
    assert max(near) < 1.0


def test_normalize_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    torch.testing.assert_close(normalize(pixels, HALVES)[0, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    first = normalize(pixels, Preprocessing())[0, :, 0, 0]
    torch.testing.assert_close(first, -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))


def test_renormalize_equals_normalizing_for_the_other(noise):
    pixels = (noise(2, 3, 4, 4) * 60 + 128).clamp(0, 255).to(torch.uint8)
    ours = renormalize(normalize(pixels, Preprocessing()), Preprocessing(), HALVES)
    torch.testing.assert_close(ours, normalize(pixels, HALVES))


def test_renormalize_by_hand():
    """0.485 of full white is 0 for ImageNet's mean and (0.485 - 0.5) / 0.5 = -0.03 for halves."""
    out = renormalize(torch.zeros(1, 3, 1, 1), Preprocessing(), HALVES)
    torch.testing.assert_close(out.flatten(), torch.tensor([-0.03, -0.088, -0.188]))


def test_renormalizing_to_equal_statistics_returns_the_input(noise):
    images = noise(1, 3, 2, 2)
    assert renormalize(images, Preprocessing(), Preprocessing(img_size=384)) is images


def test_erasing_has_the_probability_and_areas_requested():
    images = random_erase(torch.zeros(400, 3, 64, 64), ERASE_KEYS, 0.25, seed=0)
    erased = (images != 0).all(dim=1)
    share = erased.float().mean(dim=(1, 2))
    hit = share[share > 0]
    assert 70 < len(hit) < 130  # 100 +- 3.5 deviations
    assert float(hit.min()) > ERASE_AREA[0] * 0.8  # sides are whole pixels
    assert float(hit.max()) < ERASE_AREA[1] * 1.1
    assert float(hit.mean()) == pytest.approx(sum(ERASE_AREA) / 2, abs=0.04)
    noise = images[erased[:, None].expand(-1, 3, -1, -1)]
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)


def test_the_erased_region_is_a_rectangle():
    images = random_erase(torch.zeros(40, 3, 32, 32), ERASE_KEYS[:40], 1.0, seed=0)
    for image in images:
        ys, xs = torch.nonzero(image[0], as_tuple=True)
        assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)


def test_erased_rectangles_have_timms_shapes():
    ratios = []
    for image in random_erase(torch.zeros(400, 3, 64, 64), ERASE_KEYS, 1.0, seed=0):
        ys, xs = torch.nonzero(image[0], as_tuple=True)
        ratios.append(float((ys.max() - ys.min() + 1) / (xs.max() - xs.min() + 1)))
    assert min(ratios) == pytest.approx(0.3, abs=0.06)
    assert max(ratios) == pytest.approx(1 / 0.3, abs=0.6)
    # 4.5 deviations of a uniform logarithm
    assert np.log(ratios).mean() == pytest.approx(0.0, abs=0.15)


def test_erasing_is_a_function_of_the_key():
    whole = random_erase(torch.zeros(6, 3, 32, 32), ERASE_KEYS[:6], 0.7, seed=1)
    turned = random_erase(torch.zeros(3, 3, 32, 32), ERASE_KEYS[5:2:-1], 0.7, seed=1)
    assert torch.equal(turned, whole[[5, 4, 3]])
    assert not torch.equal(
        whole, random_erase(torch.zeros(6, 3, 32, 32), ERASE_KEYS[:6], 0.7, seed=2)
    )


def test_no_erasing_at_probability_zero(noise):
    images = noise(2, 3, 8, 8)
    assert torch.equal(random_erase(images.clone(), ERASE_KEYS[:2], 0.0, seed=0), images)
