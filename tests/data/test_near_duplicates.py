"""Near duplicates are all pairs that brute force finds, and the groups that chains of them form."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deitctl.data import near_duplicates
from deitctl.data.near_duplicates import (
    MAX_DISTANCE,
    difference_hash,
    find_near_pairs,
    group_duplicates,
    group_rows,
)
from deitctl.data.readers.folder import open_folder


def texture(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image unlike those of other seeds: soft spots of color."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pairs_by_search(hashes, distance) -> set[tuple[int, int]]:
    return {
        (a, b)
        for x, y in find_near_pairs(hashes, distance)
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    }


def pairs_by_force(hashes, distance) -> set[tuple[int, int]]:
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = np.abs(bits[:, None] - bits[None]).sum(axis=2)
    return {(int(a), int(b)) for a, b in zip(*np.nonzero(apart <= distance), strict=True) if a < b}


def hashes_with_neighbors(seed: int, originals: int, copies: int, farthest: int):
    """Random hashes, and copies of them with up to `farthest` bits turned."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2, (originals, 128), dtype=np.uint8)
    near = bits[generator.integers(0, originals, copies)]
    for row in near:
        row[generator.choice(128, generator.integers(0, farthest + 1), replace=False)] ^= 1
    return np.packbits(np.concatenate([bits, near]), axis=1)


@given(
    seed=st.integers(0, 2**32),
    originals=st.integers(1, 20),
    copies=st.integers(0, 40),
    distance=st.integers(0, 12),
)
def test_the_search_finds_the_pairs_that_brute_force_finds(seed, originals, copies, distance):
    hashes = hashes_with_neighbors(seed, originals, copies, distance + 2)
    assert pairs_by_search(hashes, distance) == pairs_by_force(hashes, distance)


def test_no_hash_and_one_hash_have_no_pairs():
    for count in (0, 1):
        assert not pairs_by_search(np.zeros((count, 16), np.uint8), MAX_DISTANCE)


def test_equal_rows_are_one_group():
    groups = group_rows(np.array([[1, 2], [3, 4], [1, 2]], dtype=np.uint8))
    assert groups[0] == groups[2] != groups[1]


def apart(one: Image.Image, other: Image.Image) -> int:
    hashes = [np.frombuffer(difference_hash(i.convert("RGB")), np.uint8) for i in (one, other)]
    return int(np.unpackbits(hashes[0] ^ hashes[1]).sum())


def test_near_duplicates_share_the_hash_and_other_images_do_not():
    original = texture()
    assert apart(original, Image.open(io.BytesIO(encoded(original, "JPEG", quality=50)))) <= 9
    assert apart(original, original.resize((48, 36))) <= 9
    assert min(apart(original, texture(seed)) for seed in range(1, 10)) > 20


@pytest.mark.parametrize("image", [Image.new("RGB", (100, 100), "white"), texture(size=(31, 200))])
def test_plain_and_small_images_have_no_hash(image):
    assert difference_hash(image) == b""


def write_images(root, images: dict[str, Image.Image | bytes]):
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
    return root


def test_copies_of_an_image_are_one_group_across_classes_and_formats(tmp_path, reporter):
    original, small = texture(1), Image.new("RGB", (8, 8), "red")
    images = {
        "a/0.png": original,
        "a/1.jpg": original.resize((48, 36)),  # near
        "a/2.png": texture(2),
        "a/3.jpg": b"not an image",
        "b/0.bmp": original,  # exact
        "b/1.png": small,
        "b/2.png": small,  # exact, and too small for a hash
        "b/3.jpg": b"not an image",
    }
    groups = group_duplicates(open_folder(write_images(tmp_path, images), reporter), reporter)
    assert groups.exact.tolist() == [0, 1, 2, 3, 0, 5, 5, 7]
    assert groups.near.tolist() == [0, 0, 2, 3, 0, 5, 5, 7]


def test_a_large_jpeg_has_the_hash_of_its_small_copy(tmp_path, reporter):
    """It is decoded at an eighth."""
    images = {"a/0.jpg": texture(1, (2000, 1500)), "a/1.jpg": texture(1, (200, 150))}
    images["b/0.jpg"] = texture(2, (2000, 1500))
    groups = group_duplicates(open_folder(write_images(tmp_path, images), reporter), reporter)
    assert groups.near.tolist() == [0, 0, 2]


def test_a_chain_of_near_duplicates_is_one_group(monkeypatch, image_folder, reporter):
    """The first and the last differ in 18 bits."""
    bits = np.zeros((4, 128), np.uint8)
    bits[1, :9] = bits[2, :18] = bits[3, :60] = 1
    hashes = [row.tobytes() for row in np.packbits(bits, axis=1)]
    monkeypatch.setattr(
        near_duplicates, "_hash_image", lambda _, index: (bytes([index] * 16), hashes[index])
    )
    groups = group_duplicates(open_folder(image_folder({"a": 4}), reporter), reporter)
    assert groups.exact.tolist() == [0, 1, 2, 3]
    assert groups.near.tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize(("name", "limit"), [("MAX_IMAGES", 2), ("MAX_BYTES", 100)])
def test_large_data_is_not_searched(name, limit, monkeypatch, image_folder, reporter):
    dataset = open_folder(image_folder({"a": 3}), reporter)
    assert group_duplicates(dataset, reporter) is not None
    monkeypatch.setattr(near_duplicates, name, limit)
    assert group_duplicates(dataset, reporter) is None
