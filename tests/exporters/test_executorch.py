from __future__ import annotations

import numpy as np
import pytest

from deitctl.errors import ExportError
from deitctl.exporters.executorch import MAX_BATCH, export_executorch, read_metadata
from deitctl.exporters.metadata import describe_model
from deitctl.exporters.network import silence_warnings
from deitctl.exporters.runner import load_executorch

with silence_warnings():
    pytest.importorskip(
        "executorch.exir", reason="executorch is not installed: pip install 'deitctl[executorch]'"
    )

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture(scope="module")
def file(loaded, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("executorch") / "m.pte"
    metadata = describe_model(loaded.model_config, "avg-probs") | {"architecture": "ünder"}
    export_executorch(network(loaded, "avg-probs"), loaded.model_config, metadata, path)
    return path


def test_the_file_gives_the_models_outputs_at_any_batch_size_that_it_allows(
    file, loaded, network, sample, answer
):
    with silence_warnings():  # ExecuTorch calls its runtime for Python experimental
        run = load_executorch(str(file))
    for count in (1, 5, MAX_BATCH, 3):
        pixels = sample(loaded, count).pixels
        np.testing.assert_allclose(
            run(pixels), answer(network(loaded, "avg-probs"), pixels), atol=1e-5
        )
    with pytest.raises(RuntimeError):
        run(sample(loaded, MAX_BATCH + 1).pixels)


def test_metadata_comes_back(file, loaded, tmp_path):
    assert read_metadata(file) == describe_model(loaded.model_config, "avg-probs") | {
        "architecture": "ünder"
    }
    (tmp_path / "half.pte").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"half.pte is not a readable .pte file"):
        read_metadata(tmp_path / "half.pte")


def test_the_file_names_no_file_of_this_machine(file):
    assert b".py" not in file.read_bytes()
