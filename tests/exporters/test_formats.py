from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from deitctl.errors import ExportError
from deitctl.exporters import FORMATS


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
def test_a_missing_package_is_named_with_the_extra_that_has_it(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"needs {package}\. pip install 'deitctl\[{name}\]'"):
        FORMATS[name].require()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_program_that_proves_it_and_imports_nothing_of_ours(name):
    assert "import deitctl" not in FORMATS[name].program_file.read_text()
    assert "from deitctl" not in FORMATS[name].program_file.read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_extra_that_the_project_has(name):
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert not FORMATS[name].packages or FORMATS[name].extra in extras


@pytest.mark.parametrize("name", FORMATS)
def test_every_program_opens_its_export_by_load(name):
    """The convention by which an export is asked in the same process, as benchmarks/export_formats.py does."""
    assert "\ndef load(" in FORMATS[name].program_file.read_text()
