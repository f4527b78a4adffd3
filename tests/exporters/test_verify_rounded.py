from __future__ import annotations

import numpy as np
import pytest

from deitctl.errors import ExportError
from deitctl.exporters.compare_outputs import Images
from deitctl.exporters.verify_rounded import CLEAR, verify_rounded


@pytest.fixture
def reply(tmp_path):
    """Verify against a process that gives `given`, logits [N,K], whatever the images are."""

    def run(wanted, given, tolerance):
        np.save(tmp_path / "given.npy", np.array([given], dtype=np.float32))
        program = tmp_path / "reply.py"
        program.write_text("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[3])")
        sample = Images(
            np.zeros((len(wanted), 2, 2, 3), np.uint8),
            tuple(f"{i}.png" for i in range(len(wanted))),
        )
        return verify_rounded(
            tmp_path / "given.npy",
            program,
            np.array([wanted], np.float32),
            sample,
            tolerance=tolerance,
        )

    return run


def test_the_difference_is_relative_to_the_spread_around_each_images_mean(reply):
    """Logits 10 +- 2 have an RMS of 2 around their mean; all of them half a unit off is a quarter of that."""
    found, relative = reply([[12.0, 8.0], [8.0, 12.0]], [[12.5, 8.5], [7.5, 11.5]], 0.26)
    assert relative == pytest.approx(0.25)
    assert (found.num_images, found.max_abs_diff, found.top1_agreement, found.differing) == (
        2,
        0.5,
        100,
        [],
    )
    with pytest.raises(
        ExportError, match=r"logits differ by 0.25 of their spread where 0.24 is allowed"
    ):
        reply([[12.0, 8.0], [8.0, 12.0]], [[12.5, 8.5], [7.5, 11.5]], 0.24)


def test_an_image_whose_classes_are_close_may_change_sides(reply):
    wanted, given = [[0.1, 0.0], [2.0, 0.0]], [[0.0, 0.1], [2.0, 0.0]]
    found, _ = reply(wanted, given, 0.15)
    assert (found.top1_agreement, found.differing) == (50, ["0.png"])


def test_a_clear_image_may_not(reply):
    """One of four hundred flips: the RMS is a twentieth, and its classes were a whole unit apart."""
    wanted = np.tile([1.0, 0.0], (400, 1))
    given = wanted.copy()
    given[7] = [0.0, 1.0]
    assert CLEAR * 0.05 < 1
    with pytest.raises(ExportError, match=r"top-1 agrees on 99.8 %, and 7.png is a clear image"):
        reply(wanted, given, 0.15)


def test_answers_that_are_no_numbers_fail(reply):
    with pytest.raises(ExportError, match="nan"):
        reply([[1.0, 0.0]], [[np.nan, 0.0]], 0.15)


def test_one_class_alone_has_no_spread_and_passes(reply):
    assert reply([[3.0], [4.0]], [[3.0], [4.0]], 0.15)[1] == 0


def test_answers_of_another_shape_fail(reply):
    with pytest.raises(ExportError, match="shape"):
        reply([[1.0, 0.0]], [[1.0, 0.0, 0.0]], 0.15)
