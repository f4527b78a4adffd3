"""An inspected image has its format, or why it cannot be read, and a hash that near duplicates share."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_pillow

from deitctl.checks.image_info import (
    ImageInfo,
    JoinedImages,
    inspect_image,
    inspect_images,
)
from deitctl.data.near_duplicates import digest_pixels
from deitctl.data.readers.folder import open_folder
from deitctl.data.subsets import select


def texture(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image unlike those of other seeds: soft spots of color."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def inspect_file(tmp_path, reporter):
    """Inspect a file of some bytes."""

    def make(data: bytes, name: str = "a.jpg") -> ImageInfo:
        path = tmp_path / "class" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return inspect_image(open_folder(tmp_path, reporter), 0)

    return make


@pytest.mark.parametrize(
    ("change", "issue"),
    [
        (lambda data: b"", "empty_file"),
        (lambda data: b"<html>404</html>", "not_an_image"),
        (lambda data: b"%PDF-1.7", "other_format"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:200] + bytes(50) + data[250:], "damaged"),
    ],
)
def test_an_unreadable_file_has_its_issue(change, issue, inspect_file):
    info = inspect_file(change(encoded(texture(), "PNG")))
    assert info.issue == issue
    assert "a.jpg" in info.error


def test_a_cut_heic_image_is_truncated_and_a_whole_one_is_of_its_format(inspect_file):
    file = io.BytesIO()
    from_pillow(texture()).save(file)
    assert inspect_file(file.getvalue()).format == "HEIF"
    assert inspect_file(file.getvalue()[:-9]).issue == "truncated"


def test_a_missing_file_is_unreadable(image_folder, reporter):
    root = image_folder({"cat": 1})
    dataset = open_folder(root, reporter)
    (root / "cat" / "0.png").unlink()
    assert inspect_image(dataset, 0).issue == "unreadable"


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("I;16", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
    ],
)
def test_an_image_is_described_as_it_is_stored(mode, kind, inspect_file):
    image = texture().convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    info = inspect_file(encoded(image, kind))
    assert (info.issue, info.mode, info.format, info.size) == ("", mode, kind, (96, 72))


def test_animation_rotation_and_blank_images_are_recognized(inspect_file):
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = inspect_file(encoded(texture(), "JPEG", exif=turned))
    assert (upright.rotated, upright.size) == (True, (72, 96))
    moving = encoded(texture(), "GIF", save_all=True, append_images=[texture(1)])
    assert inspect_file(moving).animated
    assert not inspect_file(encoded(texture(), "GIF")).animated
    assert inspect_file(encoded(Image.new("RGB", (40, 40), "red"), "PNG")).blank
    assert not inspect_file(encoded(texture(), "PNG")).blank


def test_the_digest_is_of_the_pixels_not_of_the_file(inspect_file):
    digests = {inspect_file(encoded(texture(), kind)).digest for kind in ("PNG", "BMP", "TIFF")}
    assert len(digests) == 1
    assert digest_pixels(texture(1)) not in digests
    assert digest_pixels(Image.new("RGB", (4, 9))) != digest_pixels(Image.new("RGB", (9, 4)))


def test_images_without_a_file_are_inspected_too(digit_datasets):
    info = inspect_image(digit_datasets[0], 0)
    assert (info.issue, info.format, info.size) == ("", "", (8, 8))


def test_infos_come_in_order_with_any_number_of_workers(digit_datasets):
    images = JoinedImages(
        [select(digit_datasets[0], range(40)), select(digit_datasets[1], range(30))]
    )
    alone, together = (
        [info for infos in inspect_images(images, workers) for info in infos] for workers in (0, 2)
    )
    assert alone == together
    assert len(alone) == len(images) == 70
    assert [images.name(i) for i in (39, 40)] == [
        digit_datasets[0].name(39),
        digit_datasets[1].name(0),
    ]
