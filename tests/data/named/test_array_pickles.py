"""Pickles of arrays: what CIFAR's are made of is read, anything else is refused before it runs."""

import io
import os
import pickle

import numpy as np
import pytest

from deitctl.data.named import array_pickles


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_lists_and_texts_are_read(protocol: int) -> None:
    batch = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "x": b"bytes"}
    loaded = array_pickles.load(io.BytesIO(pickle.dumps(batch, protocol)), encoding="latin1")
    assert np.array_equal(loaded["data"], batch["data"])
    assert loaded["labels"] == [1, 2]


def test_code_is_not_run(tmp_path) -> None:
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    with pytest.raises(pickle.UnpicklingError, match=r"mkdir, which is no array"):
        array_pickles.load(io.BytesIO(pickle.dumps(Hostile())))
    assert not (tmp_path / "was-run").exists()
