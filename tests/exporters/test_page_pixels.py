"""The page's decoding and resizing, in a real browser, against Python's: no pixel may differ."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.decode import decode
from deitctl.data.eval_transform import INTERPOLATION, eval_transform
from deitctl.exporters.web import describe_preprocessing
from deitctl.models.model_config import Preprocessing

_spec = importlib.util.spec_from_file_location(
    "chromium", Path(__file__).parents[1] / "chromium.py"
)
assert _spec is not None
assert _spec.loader is not None
chromium = importlib.util.module_from_spec(_spec)  # tests are no package
_spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no Chromium"),
]
PAGE = Path(__file__).parents[2] / "deitctl" / "exporters" / "page"
VIEW = """(async () => {
  const { decode } = await import("/decode.js"), { evalView } = await import("/view.js");
  const bytes = Uint8Array.from(atob(%s), (c) => c.charCodeAt(0));
  const image = await decode(new Blob([bytes]));
  const view = evalView(image, %s);
  return btoa(Array.from(view, (v) => String.fromCharCode(v)).join(""));
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    folder = tmp_path_factory.mktemp("page")
    for script in PAGE.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "index.html").write_text("<!doctype html><title>scripts</title>")
    profile = tmp_path_factory.mktemp("chromium") / "profile"
    with chromium.serve(folder) as (url, _), chromium.browser(profile) as tab:
        tab.open(url)
        yield tab


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def differs(tab) -> Callable[..., np.ndarray]:
    """How far the page's view of a file is from Python's, level by level."""

    def compare(data: bytes, preprocessing: Preprocessing | None = None) -> np.ndarray:
        pre = preprocessing or Preprocessing()
        wanted = eval_transform(decode(data, "image"), pre).transpose(1, 2, 0)
        settings = json.dumps(describe_preprocessing(pre))
        given = base64.b64decode(
            tab.js(VIEW % (json.dumps(base64.b64encode(data).decode()), settings))
        )
        return np.abs(np.frombuffer(given, np.uint8).reshape(wanted.shape).astype(int) - wanted)

    return compare


@pytest.fixture(scope="module")
def noise_image() -> Callable[..., Image.Image]:
    """Noise: no pixel is like its neighbors, so that a wrong one shows."""
    generator = np.random.Generator(np.random.PCG64(0))

    def make(width: int, height: int, mode: str = "RGB") -> Image.Image:
        return Image.fromarray(
            generator.integers(0, 256, (height, width, len(mode)), dtype=np.uint8), mode
        )

    return make


SHAPES = [
    (1, 1),
    (224, 224),
    (248, 248),
    (249, 248),
    (331, 250),
    (427, 640),
    (50, 60),
    (33, 200),
    (1800, 1500),
    (800, 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_becomes_pythons_pixels(shape, differs, noise_image):
    assert not differs(encoded(noise_image(*shape)), Preprocessing(img_size=96)).any()
    assert not differs(encoded(noise_image(*shape))).any()


@pytest.mark.parametrize("interpolation", [*INTERPOLATION, "random"])
@pytest.mark.parametrize("shape", [(333, 217), (60, 90)], ids=str)
def test_every_interpolation_becomes_pythons_pixels(interpolation, shape, differs, noise_image):
    assert not differs(
        encoded(noise_image(*shape)), Preprocessing(interpolation=interpolation)
    ).any()


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.3])
def test_every_cut_becomes_pythons_pixels(crop_mode, crop_pct, differs, noise_image):
    pre = Preprocessing(img_size=33, crop_mode=crop_mode, crop_pct=crop_pct)
    assert not differs(encoded(noise_image(101, 64)), pre).any()
    assert not differs(encoded(noise_image(64, 101)), pre).any()


def test_a_ribbon_is_a_level_beside_at_most_because_python_resizes_its_middle_alone(
    differs, noise_image
):
    found = differs(encoded(noise_image(7000, 20)))
    assert found.max() <= 1
    assert 0 < (found > 0).mean() < 0.01, "no difference: the docs say that there is one"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_over_white_for_every_color_at_every_alpha(kind, differs):
    color, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    every = Image.fromarray(np.stack([color, 255 - color, color // 2, alpha], axis=-1), "RGBA")
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert not differs(
        encoded(every, kind, **options), Preprocessing(img_size=256, crop_pct=1.0)
    ).any()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_every_kind_of_png_becomes_pythons_pixels(mode, differs, noise_image):
    image = (
        noise_image(120, 90, mode) if mode in ("LA", "RGBA") else noise_image(120, 90).convert(mode)
    )
    assert not differs(encoded(image)).any()
    if mode == "P":
        assert not differs(encoded(image, transparency=3)).any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind, orientation, differs, make_image):
    exif = Image.Exif()
    exif[0x112] = orientation
    assert not differs(encoded(make_image(120, 90), kind, exif=exif)).any()


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}], ids=str
)
def test_this_browser_decodes_jpeg_as_pillow_does(options, differs, make_image):
    assert not differs(encoded(make_image(300, 200), "JPEG", quality=75, **options)).any()


def test_a_color_profile_is_not_applied(tab, differs):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # red is blue
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    data = encoded(Image.new("RGB", (40, 40), "red"), icc_profile=swapped)
    applied = tab.js(
        f"""(async () => {{
          const bytes = Uint8Array.from(atob("{base64.b64encode(data).decode()}"), (c) => c.charCodeAt(0));
          const context = new OffscreenCanvas(1, 1).getContext("2d");
          context.drawImage(await createImageBitmap(new Blob([bytes])), 0, 0);
          return [...context.getImageData(0, 0, 1, 1).data];
        }})()"""
    )
    assert applied[:3] != [255, 0, 0], (
        "the browser would apply this profile, unless it is told not to"
    )
    assert not differs(data).any()
