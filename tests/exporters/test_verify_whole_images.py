"""Verification from image files on: what is made of the outputs of a process, here of a stand-in for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import FileDataset
from deitctl.errors import ExportError
from deitctl.exporters.verification_images import Images
from deitctl.exporters.verify_whole_images import is_cropped_alike, verify_image_files
from deitctl.models.model_config import Preprocessing

SQUASH = Preprocessing(img_size=32, crop_pct=1.0, crop_mode="squash")
EXPECTED = np.zeros((2, 3, 4), dtype=np.float32)
EXPECTED[:, :, 1] = 5


@pytest.fixture
def check(tmp_path, make_image, replace_runner):
    """Verify three images against a process that adds `pillow` and `default`, [3] each, to the model's first logit."""

    def run(
        pillow=(0, 0, 0),
        default=(0, 0, 0),
        labels="abcd",
        pre=SQUASH,
        sizes=((40, 30),) * 3,
    ):
        files = []
        for number, size in enumerate(sizes):
            files.append(str(tmp_path / f"{number}.png"))
            make_image(*size, seed=number).save(files[-1])
        offsets = np.array([pillow, default], dtype=np.float32)
        outputs = EXPECTED[0] + offsets[:, :, None] * np.float32([1, 0, 0, 0])
        np.save(tmp_path / "outputs.npy", outputs)
        replace_runner(
            "import json, pathlib, shutil, sys\n"
            "_, name, path, inputs, output = sys.argv\n"
            f"shutil.copy({str(tmp_path / 'outputs.npy')!r}, output)\n"
            f"labels = {json.dumps(list(labels))!r}\n"
            "pathlib.Path(output).with_name('labels.json').write_text(labels)\n"
            f"shutil.copytree(inputs, {str(tmp_path / 'seen')!r}, dirs_exist_ok=True)\n"
        )
        sample = Images(np.zeros((3, 32, 32, 3), np.uint8), ("0.png", "1.png", "2.png"), (0, 1, 2))
        dataset = FileDataset(files, np.zeros(3, dtype=np.int64), ("",))
        return verify_image_files(tmp_path, EXPECTED, dataset, sample, pre, "abcd", tolerance=1e-4)

    return run


def test_the_process_gets_whole_images(check, tmp_path, make_image):
    assert check().max_abs_diff == 0
    with Image.open(tmp_path / "seen" / "000001.png") as seen:
        assert np.array_equal(np.asarray(seen), np.asarray(make_image(40, 30, seed=1)))


def test_a_difference_with_pillow_is_a_failure(check):
    with pytest.raises(ExportError, match=r"differ by up to 0\.01 where 0\.0001"):
        check(pillow=(0, 0.01, 0))


def test_torchvisions_resizing_may_differ_a_little_and_the_difference_is_reported(check):
    result = check(default=(0, 0.05, 0))
    assert result.max_abs_diff == pytest.approx(0.05)
    assert 'with backend="pil" logits differ by up to 0 where' in result.remark
    assert "where installed) by 0.05 in all." in result.remark
    with pytest.raises(ExportError, match="preprocesses images unlike the model"):
        check(default=(0, 0.6, 0))


def test_another_name_of_a_class_is_a_failure(check):
    with pytest.raises(ExportError, match="calls the class 'b' 'c'"):
        check(labels="acbd")


def test_an_image_that_is_cropped_one_pixel_beside_may_differ_and_is_counted(check):
    pre = Preprocessing(img_size=32, crop_pct=1.0)
    result = check(
        pillow=(0, 0, 0.9), default=(0, 0, 0.9), pre=pre, sizes=((32, 32), (64, 32), (35, 32))
    )
    assert result.max_abs_diff == pytest.approx(0.9)
    assert 'with backend="pil" logits differ by up to 0 where' in result.remark
    assert "Of 3 images 1 are cropped one pixel beside" in result.remark
    with pytest.raises(ExportError, match="disagrees"):
        check(pillow=(0, 0.9, 0), pre=pre, sizes=((32, 32), (64, 32), (35, 32)))


def test_images_that_are_all_cropped_beside_are_refused(check):
    with pytest.raises(ExportError, match="None of 3 images is cropped alike"):
        check(pre=Preprocessing(img_size=32, crop_pct=1.0), sizes=((35, 32),) * 3)


def test_the_crops_differ_where_the_center_is_between_two_pixels_and_the_lower_is_odd():
    """(331 - 224) / 2 is 53.5: transformers begins at 53, we at 54. (329 - 224) / 2 is 52.5: both begin at 52."""
    whole = Preprocessing(img_size=224, crop_pct=1.0)
    assert not is_cropped_alike(331, 224, whole)
    assert not is_cropped_alike(224, 331, whole)
    assert is_cropped_alike(329, 224, whole)
    assert is_cropped_alike(330, 224, whole)
    assert is_cropped_alike(331, 224, Preprocessing(img_size=224, crop_pct=1.0, crop_mode="squash"))
