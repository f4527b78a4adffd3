from __future__ import annotations

import sys

import pytest

from deitctl.errors import ExportError
from deitctl.exporters import FORMATS


@pytest.mark.parametrize(
    ("name", "package"),
    [("onnx", "onnx"), ("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("transformers", "transformers")],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"needs {package}\. pip install 'deitctl\[{name}\]'"):
        FORMATS[name].require()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_program_that_proves_it_and_imports_nothing_of_ours(name):
    assert "import deitctl" not in FORMATS[name].program_file.read_text()
    assert "from deitctl" not in FORMATS[name].program_file.read_text()
