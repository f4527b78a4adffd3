from __future__ import annotations

import json
import warnings
import zipfile

import numpy as np
import pytest
import torch

from deitctl.errors import ExportError
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.metadata import METADATA, describe_model
from deitctl.exporters.runner import load_aoti
from deitctl.exporters.torch_export import (
    export_aoti,
    export_torch,
    read_aoti_metadata,
    read_torch_metadata,
    require_compiler,
)


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture(scope="module")
def file(loaded, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    export_torch(
        network(loaded, "avg-probs"),
        loaded.model_config,
        describe_model(loaded.model_config, "avg-probs"),
        path,
    )
    return path


def load(path, **extra):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about how it reads a buffer
        return torch.export.load(path, **extra)


@pytest.mark.parametrize("count", [1, 5])
def test_the_file_gives_the_models_outputs_at_any_batch_size(
    count, file, loaded, network, sample, answer
):
    pixels = sample(loaded, count).pixels
    got = torch.stack(load(file).module()(torch.from_numpy(pixels))).detach()
    torch.testing.assert_close(
        got, torch.from_numpy(answer(network(loaded, "avg-probs"), pixels)), atol=1e-5, rtol=0
    )


def test_metadata_comes_back(file):
    extra = {METADATA: ""}
    load(file, extra_files=extra)
    assert json.loads(json.loads(extra[METADATA])["class_names"]) == list("0123456789")


def test_metadata_is_read_without_torch(file, loaded, tmp_path):
    assert read_torch_metadata(file) == describe_model(loaded.model_config, "avg-logits") | {
        "head": "avg-probs"
    }
    for name, content in {"empty": b"", "half": file.read_bytes()[:10_000]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match=f"{name} is not a readable .pt2 file"):
            read_torch_metadata(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other", "w") as other:
        other.writestr("m/weights", b"")
    assert read_torch_metadata(tmp_path / "other") == {}


def test_the_file_holds_the_weights_a_graph_and_no_image(file, loaded):
    weights = sum(t.numel() * t.element_size() for t in loaded.model.state_dict().values())
    assert weights < file.stat().st_size < weights + 300_000
    (example,) = load(file).example_inputs[0]
    assert not example.any()
    assert example.untyped_storage().nbytes() == 2 * 32 * 32 * 3


@pytest.fixture(scope="module")
def aoti_file(loaded, network, tmp_path_factory):
    try:
        require_compiler()
    except ExportError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("aoti") / "m-aoti.pt2"
    export_aoti(
        network(loaded, "avg-probs"),
        loaded.model_config,
        describe_model(loaded.model_config, "avg-probs"),
        path,
    )
    return path


@pytest.mark.slow
def test_the_package_gives_the_models_outputs_at_any_batch_size_and_describes_itself(
    aoti_file, loaded, network, sample, answer
):
    run = load_aoti(str(aoti_file))
    for count in (1, 5):
        pixels = sample(loaded, count).pixels
        np.testing.assert_allclose(
            run(pixels), answer(network(loaded, "avg-probs"), pixels), atol=1e-5
        )
    assert [p.name for p in aoti_file.parent.iterdir()] == ["m-aoti.pt2"]
    metadata = read_aoti_metadata(aoti_file)
    assert describe_model(loaded.model_config, "avg-probs").items() <= metadata.items()
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert metadata["torch_version"] == torch.__version__
    assert "AOTI_CPU_ISA" in metadata


def test_a_missing_compiler_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ExportError, match=r"no C\+\+ compiler 'no-such-compiler' here. Install it, or name"
    ):
        FORMATS["aoti"].require()


def test_what_is_no_package_is_reported_to_be_none(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"PK")
    with pytest.raises(ExportError, match=r"m.pt2 is not a readable .pt2 file"):
        read_aoti_metadata(tmp_path / "m.pt2")
