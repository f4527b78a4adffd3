"""An error is one line that says what happened and what to do."""

from __future__ import annotations

import pytest

from deitctl import errors


def test_message_and_hint_are_one_line():
    error = errors.DataError("No images in 'x'.", "Name a folder.")
    assert str(error) == "No images in 'x'. Name a folder."
    assert str(errors.DataError("No images in 'x'.")) == "No images in 'x'."


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_interrupted_exits_as_shells_do(signum, code):
    error = errors.Interrupted(signum, "deitctl train --resume runs/a")
    assert error.exit_code == code
    assert error.resume_command == "deitctl train --resume runs/a"


def test_the_tree_is_the_one_drawn():
    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.DeitctlError):
            assert name in drawn
    assert issubclass(errors.WeightsNotFound, errors.ModelError)
    assert errors.DeitctlError.exit_code == 1


def test_nearest_names_are_offered_and_far_ones_are_not():
    assert errors.did_you_mean("papr", ["paper", "digits"]) == "Did you mean 'paper'?"
    assert errors.did_you_mean("ab", ["abc", "abd"]) == "Did you mean 'abd' or 'abc'?"
    assert errors.did_you_mean("zzz", ["paper"]) == ""
