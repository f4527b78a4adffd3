from __future__ import annotations

import json
import runpy

import numpy as np
import pytest
import torch

from deitctl.errors import ExportError
from deitctl.exporters import FORMATS
from deitctl.exporters.aoti import export_aoti, read_metadata, require_compiler
from deitctl.exporters.network import describe

KIND = FORMATS["aoti"]


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture(scope="module")
def file(loaded, network, tmp_path_factory):
    try:
        require_compiler()
    except ExportError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("aoti") / "m-aoti.pt2"
    export_aoti(
        network(loaded, "avg-probs"),
        loaded.model_config,
        describe(loaded.model_config, "avg-probs"),
        path,
    )
    return path


@pytest.mark.slow
def test_the_package_answers_as_the_model_at_any_batch_size_and_says_what_it_is(
    file, loaded, network, sample, answer
):
    load = runpy.run_path(str(KIND.program_file))["load"]
    ask = load(str(file))
    for count in (1, 5):
        pixels = sample(loaded, count).pixels
        np.testing.assert_allclose(
            ask(pixels), answer(network(loaded, "avg-probs"), pixels), atol=1e-5
        )
    assert [p.name for p in file.parent.iterdir()] == ["m-aoti.pt2"]
    said = read_metadata(file)
    assert describe(loaded.model_config, "avg-probs").items() <= said.items()
    assert json.loads(said["class_names"]) == list("0123456789")
    assert said["torch_version"] == torch.__version__
    assert "AOTI_CPU_ISA" in said


def test_a_missing_compiler_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ExportError, match=r"no C\+\+ compiler 'no-such-compiler' here. Install it, or name"
    ):
        KIND.require()


def test_what_is_no_package_is_said_to_be_none(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"PK")
    with pytest.raises(ExportError, match=r"m.pt2 is not a readable .pt2 file"):
        read_metadata(tmp_path / "m.pt2")
