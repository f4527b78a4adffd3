from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from deitctl.errors import ExportError
from deitctl.exporters.compare import RUNNER
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.runner import LOADERS, WHOLE_IMAGES


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnx", "onnx"),
        ("onnx", "onnxscript"),
        ("onnx", "onnxruntime"),
        ("transformers", "transformers"),
        ("openvino", "openvino"),
        ("coreml", "coremltools"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"needs {package}\. .* `pip install .*{package}"):
        FORMATS[name].require()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_extra_that_the_project_has(name):
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert not FORMATS[name].packages or FORMATS[name].extra in extras


def test_every_format_has_a_loader_in_the_runner():
    assert list(LOADERS) == list(FORMATS)
    assert WHOLE_IMAGES.keys() <= FORMATS.keys()


def test_the_runner_imports_nothing_of_deitctl():
    assert "import deitctl" not in RUNNER.read_text()
    assert "from deitctl" not in RUNNER.read_text()
