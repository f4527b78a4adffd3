"""What the proof from files makes of the answers of a process; here one that says what the test wants."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import FileDataset
from deitctl.errors import ExportError
from deitctl.exporters.compare_outputs import Images
from deitctl.exporters.verify_files import cut_alike, verify_files
from deitctl.models.model_config import Preprocessing

SQUASH = Preprocessing(img_size=32, crop_pct=1.0, crop_mode="squash")
WANTED = np.zeros((2, 3, 4), dtype=np.float32)
WANTED[:, :, 1] = 5


@pytest.fixture
def check(tmp_path, make_image):
    """Verify three images, the last of another shape, against a process that adds `pillow` and `chosen`, [3] each."""

    def run(
        pillow=(0, 0, 0),
        chosen=(0, 0, 0),
        said=("a", "b", "c", "d"),
        pre=SQUASH,
        sizes=((40, 30),) * 3,
    ):
        files = []
        for number, size in enumerate(sizes):
            files.append(str(tmp_path / f"{number}.png"))
            make_image(*size, seed=number).save(files[-1])
        given = np.stack(
            [
                WANTED[0] + np.float32(d)[:, None] * [1, 0, 0, 0]
                for d in (np.array(pillow), np.array(chosen))
            ]
        )
        np.save(tmp_path / "given.npy", given.astype(np.float32))
        program = tmp_path / "program.py"
        program.write_text(
            "import json, pathlib, shutil, sys\n"
            f"shutil.copy({str(tmp_path / 'given.npy')!r}, sys.argv[3])\n"
            f"pathlib.Path(sys.argv[3]).with_name('labels.json').write_text({json.dumps(list(said))!r})\n"
            f"shutil.copytree(sys.argv[2], {str(tmp_path / 'seen')!r}, dirs_exist_ok=True)\n"
        )
        sample = Images(np.zeros((3, 32, 32, 3), np.uint8), ("0.png", "1.png", "2.png"), (0, 1, 2))
        dataset = FileDataset(files, np.zeros(3, dtype=np.int64), ("",))
        return verify_files(tmp_path, program, WANTED, dataset, sample, pre, "abcd", tolerance=1e-4)

    return run


def test_the_process_sees_the_images_whole(check, tmp_path, make_image):
    assert check().chosen.max_abs_diff == 0
    with Image.open(tmp_path / "seen" / "000001.png") as seen:
        assert np.array_equal(np.asarray(seen), np.asarray(make_image(40, 30, seed=1)))


def test_a_difference_with_pillow_is_a_failure(check):
    with pytest.raises(ExportError, match=r"differ by up to 0\.01 where 0\.0001"):
        check(pillow=(0, 0.01, 0))


def test_torchvisions_resizing_may_differ_a_little_and_the_difference_is_told(check):
    found = check(chosen=(0, 0.05, 0))
    assert (found.pillow, found.chosen.max_abs_diff) == (0, pytest.approx(0.05))
    with pytest.raises(ExportError, match="looks at images otherwise"):
        check(chosen=(0, 0.6, 0))


def test_another_name_of_a_class_is_a_failure(check):
    with pytest.raises(ExportError, match="calls the class 'b' 'c'"):
        check(said="acbd")


def test_an_image_that_is_cut_one_pixel_beside_may_differ_and_is_counted(check):
    pre = Preprocessing(img_size=32, crop_pct=1.0)
    found = check(
        pillow=(0, 0, 0.9), chosen=(0, 0, 0.9), pre=pre, sizes=((32, 32), (64, 32), (35, 32))
    )
    assert (found.shifted, found.pillow, found.chosen.max_abs_diff) == (1, 0, pytest.approx(0.9))
    with pytest.raises(ExportError, match="disagrees"):
        check(pillow=(0, 0.9, 0), pre=pre, sizes=((32, 32), (64, 32), (35, 32)))


def test_images_that_are_all_cut_beside_prove_nothing(check):
    with pytest.raises(ExportError, match="None of 3 images is cut alike"):
        check(pre=Preprocessing(img_size=32, crop_pct=1.0), sizes=((35, 32),) * 3)


def test_the_cuts_differ_where_the_middle_is_between_two_pixels_and_the_lower_is_odd():
    """331 - 224 = 107, half is 53.5: transformers begins at 53, we at 54. 329 - 224 = 105, half is 52.5: 52 for both."""
    whole = Preprocessing(img_size=224, crop_pct=1.0)
    assert not cut_alike(331, 224, whole)
    assert not cut_alike(224, 331, whole)
    assert cut_alike(329, 224, whole)
    assert cut_alike(330, 224, whole)
    assert cut_alike(331, 224, Preprocessing(img_size=224, crop_pct=1.0, crop_mode="squash"))
