"""One look at an image tells what it is, why it cannot be read, and what its copies share."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deitctl.checks.image_info import (
    ImageInfo,
    Images,
    difference_hash,
    look,
    look_at_all,
    pixel_digest,
)
from deitctl.data.dataset import subset
from deitctl.data.open import scan_classes


def texture(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image unlike those of other seeds: soft spots of color."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def seen(tmp_path, reporter):
    """Look at a file of some bytes."""

    def make(data: bytes, name: str = "a.jpg") -> ImageInfo:
        path = tmp_path / "class" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return look(scan_classes(tmp_path, reporter), 0)

    return make


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: b"", "empty_file"),
        (lambda data: b"<html>404</html>", "not_an_image"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:200] + bytes(50) + data[250:], "damaged"),
    ],
)
def test_an_unreadable_file_says_which_way(change, problem, seen):
    found = seen(change(encoded(texture(), "PNG")))
    assert found.problem == problem
    assert "a.jpg" in found.why


def test_a_file_that_is_gone_is_unreadable(image_folder, reporter):
    root = image_folder({"cat": 1})
    source = scan_classes(root, reporter)
    (root / "cat" / "0.png").unlink()
    assert look(source, 0).problem == "unreadable"


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
def test_an_image_is_described_as_it_is_stored(mode, kind, seen):
    image = texture().convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    found = seen(encoded(image, kind))
    assert (found.problem, found.mode, found.format, found.size) == ("", mode, kind, (96, 72))


def test_frames_rotation_and_blankness_are_seen(seen):
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = seen(encoded(texture(), "JPEG", exif=turned))
    assert (upright.rotated, upright.size) == (True, (72, 96))
    moving = encoded(texture(), "GIF", save_all=True, append_images=[texture(1)])
    assert seen(moving).animated
    assert not seen(encoded(texture(), "GIF")).animated
    assert seen(encoded(Image.new("RGB", (40, 40), "red"), "PNG")).blank
    assert not seen(encoded(texture(), "PNG")).blank


def test_the_digest_is_of_the_pixels_not_of_the_file(seen):
    digests = {seen(encoded(texture(), kind)).digest for kind in ("PNG", "BMP", "TIFF")}
    assert len(digests) == 1
    assert pixel_digest(texture(1)) not in digests
    assert pixel_digest(Image.new("RGB", (4, 9))) != pixel_digest(Image.new("RGB", (9, 4)))


def apart(one: Image.Image, other: Image.Image) -> int:
    hashes = [np.frombuffer(difference_hash(i.convert("RGB")), np.uint8) for i in (one, other)]
    return int(np.unpackbits(hashes[0] ^ hashes[1]).sum())


def test_a_copy_keeps_the_hash_and_another_image_does_not():
    original = texture()
    assert apart(original, Image.open(io.BytesIO(encoded(original, "JPEG", quality=50)))) <= 9
    assert apart(original, original.resize((48, 36))) <= 9
    assert min(apart(original, texture(seed)) for seed in range(1, 10)) > 20


@pytest.mark.parametrize("image", [Image.new("RGB", (100, 100), "white"), texture(size=(31, 200))])
def test_what_says_nothing_has_no_hash(image):
    assert difference_hash(image) == b""


def test_images_without_a_file_are_looked_at_too(digit_sources):
    found = look(digit_sources[0], 0)
    assert (found.problem, found.format, found.size) == ("", "", (8, 8))


def test_looks_come_in_order_whatever_the_number_of_processes(digit_sources):
    images = Images([subset(digit_sources[0], range(40)), subset(digit_sources[1], range(30))])
    alone, together = (
        [one for some in look_at_all(images, workers) for one in some] for workers in (0, 2)
    )
    assert alone == together
    assert len(alone) == len(images) == 70
    assert [images.name(i) for i in (39, 40)] == [
        digit_sources[0].name(39),
        digit_sources[1].name(0),
    ]
