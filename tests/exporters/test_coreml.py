"""What is written for Core ML, computed operation by operation with torch: Core ML itself is for macOS alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deitctl.errors import ExportError
from deitctl.exporters.coreml import PARTS, export_coreml, read_metadata
from deitctl.exporters.metadata import describe_model
from deitctl.exporters.network import silence_warnings

with silence_warnings():
    coremltools = pytest.importorskip(
        "coremltools", reason="coremltools is not installed: pip install 'deitctl[coreml]'"
    )

OPERATIONS = {
    "mul": lambda o: o.x * o.y,
    "sub": lambda o: o.x - o.y,
    "add": lambda o: o.x + o.y,
    "conv": lambda o: F.conv2d(o.x, o.weight, o.bias, stride=tuple(o.strides.tolist())),
    "linear": lambda o: F.linear(o.x, o.weight, o.bias),
    "matmul": lambda o: (o.x.mT if o.transpose_x else o.x) @ (o.y.mT if o.transpose_y else o.y),
    "layer_norm": lambda o: F.layer_norm(o.x, o.gamma.shape, o.gamma, o.beta, float(o.epsilon)),
    "gelu": lambda o: F.gelu(o.x),
    "softmax": lambda o: o.x.softmax(int(o.axis)),
    "log": lambda o: (o.x + float(o.epsilon)).log(),
    "clip": lambda o: o.x.clamp(float(o.alpha), float(o.beta)),
    "real_div": lambda o: o.x / o.y,
    "stack": lambda o: torch.stack(o.values, int(o.axis)),
    "reduce_log_sum_exp": lambda o: o.x.logsumexp(
        tuple(o.axes.tolist()), keepdim=bool(o.keep_dims)
    ),
    "reduce_mean": lambda o: o.x.mean(tuple(o.axes.tolist()), keepdim=bool(o.keep_dims)),
    "reshape": lambda o: o.x.reshape(o.shape.tolist()),
    "transpose": lambda o: o.x.permute(o.perm.tolist()),
    "squeeze": lambda o: o.x.squeeze(tuple(o.axes.tolist())),
    "concat": lambda o: torch.cat(o.values, int(o.axis)),
    "split": lambda o: o.x.split(o.split_sizes.tolist(), int(o.axis)),
}


def compute(package, pixels):
    """Return the logits [K] that the graph in a package has for an image [S,S,3], weights and all from the files."""
    from coremltools.converters.mil.frontend.milproto.load import load

    with silence_warnings():
        spec = coremltools.models.utils.load_spec(str(package))
        program = load(spec, spec.specificationVersion, str(package / PARTS[0].rpartition("/")[0]))
    known = {"image": torch.from_numpy(pixels).permute(2, 0, 1)[None].float()}
    for operation in program.functions["main"].operations:
        if operation.op_type in ("const", "classify"):
            continue
        inputs = SimpleNamespace(**dict.fromkeys(("bias", "transpose_x", "transpose_y")))
        for name, given in operation.inputs.items():
            values = [
                known[v.name] if v.val is None else v.val
                for v in (given if isinstance(given, list | tuple) else [given])
            ]
            values = [
                torch.from_numpy(np.asarray(v)) if isinstance(v, np.ndarray | np.generic) else v
                for v in values
            ]
            setattr(inputs, name, values if isinstance(given, list | tuple) else values[0])
        if operation.op_type == "slice_by_index":
            results = sliced(inputs)
        else:
            assert operation.op_type != "gelu" or inputs.mode == "EXACT"
            results = OPERATIONS[operation.op_type](inputs)
        results = results if isinstance(results, tuple) else (results,)
        known.update(zip((v.name for v in operation.outputs), results, strict=True))
    return known["logits"][0]


def sliced(o):
    places = []
    for axis, (begin, end) in enumerate(zip(o.begin.tolist(), o.end.tolist(), strict=True)):
        whole, one = (
            getattr(o, n, None) is not None and bool(getattr(o, n)[axis])
            for n in ("end_mask", "squeeze_mask")
        )
        places.append(begin if one else slice(begin, None if whole else end))
    return o.x[tuple(places)]


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture(scope="module")
def package(loaded, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("coreml") / "m.mlpackage"
    export_coreml(
        network(loaded, "avg-probs"),
        loaded.model_config,
        describe_model(loaded.model_config, "avg-probs"),
        path,
    )
    return path


def test_the_graph_that_is_written_gives_the_models_outputs(
    package, loaded, network, sample, answer
):
    pixels = sample(loaded, 3).pixels
    wanted = answer(network(loaded, "avg-probs"), pixels)[0]
    for image, logits in zip(pixels, wanted, strict=True):
        np.testing.assert_allclose(compute(package, image), logits, atol=1e-5)


def test_an_image_goes_in_and_label_probabilities_and_logits_come_out(package):
    said = coremltools.models.utils.load_spec(str(package)).description
    (image,) = said.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == (
        "image",
        32,
        32,
    )
    assert image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace) == "RGB"
    kinds = {output.name: output.type.WhichOneof("Type") for output in said.output}
    assert kinds == {
        "label": "stringType",
        "probabilities": "dictionaryType",
        "logits": "multiArrayType",
    }
    assert (said.predictedFeatureName, said.predictedProbabilitiesName) == (
        "label",
        "probabilities",
    )


def test_the_labels_are_those_of_the_classes_in_their_order(package):
    from coremltools.converters.mil.frontend.milproto.load import load

    with silence_warnings():
        spec = coremltools.models.utils.load_spec(str(package))
        program = load(spec, spec.specificationVersion, str(package / PARTS[0].rpartition("/")[0]))
    (classify,) = program.functions["main"].find_ops(op_type="classify")
    assert (
        list(classify.classes.val)
        == list("0123456789")
        == json.loads(read_metadata(package)["labels"])
    )


def test_metadata_comes_back(package, loaded, tmp_path):
    assert (
        describe_model(loaded.model_config, "avg-probs").items() <= read_metadata(package).items()
    )
    with pytest.raises(ExportError, match="not a readable Core ML package"):
        read_metadata(tmp_path)


def test_the_package_is_three_files_and_names_none_of_this_machine(package):
    assert {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file()} == set(PARTS)
    assert b".py" not in (package / PARTS[1]).read_bytes()


def test_what_cannot_be_converted_is_refused(loaded, network, tmp_path, monkeypatch, capfd):
    wrapped = network(loaded, "cls")
    monkeypatch.setattr(
        wrapped, "forward", lambda pixels: (pixels.float().flatten(1).cholesky_inverse(),)
    )
    with pytest.raises(ExportError, match=r"cannot be written for Core ML: .*--to onnx"):
        export_coreml(wrapped, loaded.model_config, {}, tmp_path / "m.mlpackage")
    assert not (tmp_path / "m.mlpackage").exists()
    assert capfd.readouterr() == ("", "")
