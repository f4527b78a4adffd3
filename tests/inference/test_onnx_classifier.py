"""An exported file answers as the model does, without torch; what is no such file is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from deitctl.device import choose_device
from deitctl.errors import DeitctlError, ModelError
from deitctl.exporters.dynamic_size import make_dynamic, make_golden_view
from deitctl.exporters.metadata import collect_metadata, describe_model
from deitctl.exporters.network import BareClassifier, ExportedClassifier
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.quantize import PRECISIONS, quantize_onnx
from deitctl.exporters.verification_images import compute_reference
from deitctl.inference import onnx_classifier
from deitctl.inference.classifier import Classifier, load, predict
from deitctl.inference.onnx_classifier import load_onnx_classifier
from deitctl.inference.torch_classifier import TorchClassifier
from deitctl.models.vit import VisionTransformer

DEFAULTS = {"weights": "", "head": "auto", "img_size": 0, "device": "auto", "precision": "auto"}
CLASSES = ("ant", "bee", "cow", "dog")
RULE = "avg-probs"


@pytest.fixture(scope="module")
def model(tiny_arch, randomize):
    """A distilled DeiT of one block for four classes, with a temperature."""
    arch = replace(tiny_arch("deit_tiny_distilled"), depth=1)
    model_config = replace(
        arch.to_model_config(),
        num_classes=4,
        class_names=CLASSES,
        descriptions=tuple(f"a {c}" for c in CLASSES),
        head=RULE,
        temperatures={RULE: 1.7},
    )
    return randomize(VisionTransformer(arch, num_classes=4, img_size=32)).eval(), model_config


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    network, model_config = model
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    wrapped = ExportedClassifier(network, model_config, RULE)
    export_onnx(wrapped, model_config, collect_metadata(wrapped, model_config, "onnx"), path)
    return path


@pytest.fixture
def changed(file, tmp_path):
    """Write the file again with other metadata, or with other inputs."""

    def write(**metadata: str | None) -> Path:
        proto = onnx.load(file)
        said = {p.key: p.value for p in proto.metadata_props} | metadata
        del proto.metadata_props[:]
        helper.set_model_props(proto, {k: v for k, v in said.items() if v is not None})
        onnx.save(proto, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return write


def foreign(
    path: Path, dtype: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("b", 3, 32, 32)
) -> Path:
    """Write a network of somebody else's: pixels go out as they come in."""
    pixels, out = (
        helper.make_tensor_value_info(n, dtype, shape) for n in ("pixels", "probabilities")
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["probabilities"])], "g", [pixels], [out]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def test_scores_equal_those_of_the_model(file, model, image_folder):
    network, model_config = model
    folder = image_folder({"in": 7})
    theirs = TorchClassifier(network, model_config, choose_device("cpu", "fp32"))
    names = [str(folder / "in" / f"{n}.png") for n in range(7)]
    expected = Classifier(theirs).stream(names, topk=4, batch_size=3)
    for ours, his in zip(predict(names, model=str(file), batch_size=3), expected, strict=True):
        assert [g.label for g in ours.predictions] == [g.label for g in his.predictions]
        np.testing.assert_allclose(
            [g.score for g in ours.predictions], [g.score for g in his.predictions], atol=1e-5
        )


@pytest.mark.parametrize(
    ("precision", "atol"), [("fp16", 1e-3), ("int8", 0.05), ("int8-static", 0.05)]
)
def test_scores_of_a_quantized_file_are_close(precision, atol, file, image_folder, tmp_path):
    """Calibrated as in fp32: without the temperature of 1.7 the scores would be further away than that."""
    assert set(PRECISIONS) == {"fp16", "int8", "int8-static"}
    seen = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    quantize_onnx(file, precision, tmp_path / "rounded.onnx", seen)
    names = [str(image_folder({"in": 1}) / "in" / "0.png")]
    [wanted], [ours] = (
        list(predict(names, model=str(path))) for path in (file, tmp_path / "rounded.onnx")
    )
    by_class = {g.label: g.score for g in wanted.predictions}
    assert ours.predictions[0].label == wanted.predictions[0].label
    assert all(abs(g.score - by_class[g.label]) < atol for g in ours.predictions)


@pytest.fixture(scope="module")
def any_file(file, model) -> Path:
    """The same network behind its own resize."""
    network, model_config = model
    golden = compute_reference(
        network, model_config, RULE, make_golden_view(model_config.preprocessing)
    )[0, 0]
    make_dynamic(file, model_config.preprocessing, golden, file.with_name("dynamic.onnx"))
    return file.with_name("dynamic.onnx")


def test_a_file_that_resizes_takes_images_of_any_size(any_file, file, make_image, tmp_path):
    names = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, size in enumerate(((90, 61), (32, 32), (20, 47))):
        make_image(*size, seed=n).save(names[n])
    session = onnxruntime.InferenceSession(any_file)
    ours = list(predict(names, model=str(any_file), batch_size=2, keep_pixels=True))
    for name, record, resized in zip(names, ours, predict(names, model=str(file)), strict=True):
        with Image.open(name) as image:
            scores, seen = session.run(
                ["probabilities", "seen"], {"pixels": np.asarray(image)[None]}
            )
        given = {g.index: g.score for g in record.predictions}
        assert [given[k] for k in range(4)] == scores[0].tolist()
        assert [g.index for g in record.predictions] == [g.index for g in resized.predictions]
        np.testing.assert_allclose(
            [g.score for g in record.predictions], [g.score for g in resized.predictions], atol=1e-3
        )
        assert np.abs(record.pixels.transpose(1, 2, 0).astype(int) - seen[0]).max() <= 2


def test_a_file_that_resizes_is_refused_for_resized_images(any_file, model):
    assert (
        load_onnx_classifier(
            str(any_file), **DEFAULTS, allow_resizing=True
        ).model_config.preprocessing
        == model[1].preprocessing
    )
    with pytest.raises(
        ModelError, match=r"dynamic\.onnx resizes images itself.*without --dynamic-size"
    ):
        load_onnx_classifier(str(any_file), **DEFAULTS)


def test_an_image_too_long_for_a_file_that_resizes_is_an_error(any_file, file, tmp_path):
    Image.new("RGB", (3, 301)).save(tmp_path / "long.png")
    [record] = predict([str(tmp_path / "long.png")], model=str(any_file))
    assert "3 x 301 pixels is too long" in record.error
    [record] = predict([str(tmp_path / "long.png")], model=str(file))
    assert record.error is None


def test_a_bare_network_is_refused_in_one_line(model, tmp_path):
    network, model_config = model
    path = tmp_path / "bare.onnx"
    export_onnx(
        BareClassifier(network, model_config, RULE),
        model_config,
        describe_model(model_config, RULE, bare=True),
        path,
    )
    with pytest.raises(
        ModelError, match=r"bare network, without normalization.*without --no-preprocess"
    ):
        predict(["x.png"], model=str(path))


def test_the_model_config_is_read_from_the_metadata(file, model):
    model_config = load_onnx_classifier(str(file), **DEFAULTS).model_config
    assert model_config.preprocessing == model[1].preprocessing
    assert (model_config.class_names, model_config.descriptions) == (
        model[1].class_names,
        model[1].descriptions,
    )
    assert (model_config.head, model_config.num_classes) == (RULE, 4)


def test_other_names_replace_those_of_the_file(file, reporter):
    names = ("a", "b", "c", "d")
    named = load_onnx_classifier(str(file), **DEFAULTS, classes=names, reporter=reporter)
    assert [named.model_config.label(n) for n in range(4)] == list(names)
    assert ["are replaced" in note for note in reporter.notes] == [True]
    with pytest.raises(ModelError, match="--classes names 3 classes"):
        load_onnx_classifier(str(file), **DEFAULTS, classes=names[:3])


def test_classes_without_names_are_numbered(changed, image_folder):
    path = changed(class_names=None, descriptions=None)
    [record] = predict([str(image_folder({"in": 1}) / "in" / "0.png")], model=str(path))
    assert {g.label for g in record.predictions} == {f"class {n}" for n in range(4)}


def test_predict_with_a_file_imports_no_torch(file, image_folder):
    image = image_folder({"in": 1}) / "in" / "0.png"
    code = (
        "import sys; from deitctl.cli.app import app\n"
        f"try: app(['predict', {str(image)!r}, '--model', {str(file)!r}, '--format', 'jsonl'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'safetensors', 'matplotlib', 'scipy', 'onnx', 'huggingface_hub',"
        " 'urllib.request', 'rich.console'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["label"].startswith("a ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a readable ONNX file"),
        (b"\xff" * 999, "not a readable ONNX file"),
        (None, "There is no ONNX file"),
    ],
    ids=["empty", "garbage", "none"],
)
def test_a_damaged_file_is_one_line(content, says, tmp_path):
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        predict(["x.png"], model=str(tmp_path / "m.onnx"))


def test_a_file_cut_short_is_one_line(file, tmp_path, capfd):
    (tmp_path / "m.onnx").write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(
        ModelError, match=r"not a readable ONNX file: .*Export it again: deitctl export"
    ):
        predict(["x.png"], model=str(tmp_path / "m.onnx"))
    assert capfd.readouterr() == ("", ""), "onnxruntime's own log"


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (TensorProto.FLOAT, ("b", 3, 32, 32)),
        (TensorProto.UINT8, ("b", 3, 32, 32)),
        (TensorProto.UINT8, ("b", 32, 32, 3)),
        (TensorProto.UINT8, ("b", 32)),
        (TensorProto.UINT8, ("b", "h", "w", 3)),
    ],
    ids=str,
)
def test_a_foreign_network_is_refused_with_what_is_expected(dtype, shape, tmp_path):
    with pytest.raises(
        ModelError, match=r"needs pixels \[B,S,S,3\] in uint8, .*deitctl export MODEL --to onnx"
    ):
        predict(["x.png"], model=str(foreign(tmp_path / "m.onnx", dtype, shape)))


def write_foreign_graph(path, node, weights=()):
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("b", 32, 32, 3))
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [pixels], [out], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("else", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())


def test_custom_operators_are_refused(tmp_path):
    """What onnxruntime promises, held here because `docs/security.md` does: no code from outside."""
    unknown = helper.make_node("Nope", ["pixels"], ["probabilities"], domain="else")
    write_foreign_graph(tmp_path / "m.onnx", unknown)
    with pytest.raises(ModelError, match="not a registered"):
        predict(["x.png"], model=str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("location", ["beside", "missing", "../secret", "/etc/hostname", "link"])
def test_weights_in_other_files_are_not_read(location, tmp_path):
    """Neither outside of the model's folder nor in it, where they would be mapped: one line."""
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "beside").write_bytes(bytes(16))
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    other = helper.make_node("Identity", ["w"], ["probabilities"])
    write_foreign_graph(tmp_path / "model" / "m.onnx", other, [weight])
    with pytest.raises(ModelError, match=r"m\.onnx has its weights in another file") as refused:
        predict(["x.png"], model=str(tmp_path / "model" / "m.onnx"))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"preprocessing": None},
        {"preprocessing": "{"},
        {"preprocessing": "[]"},
        {"preprocessing": "{}"},
        {"preprocessing": "[" * 100_000},
        {"head": None},
        {"head": "nonsense"},
        {"head": "auto"},
        {"class_names": "[1]"},
        {"class_names": '["a"]'},
        {"descriptions": '"abcd"'},
        {"architecture": None},
        {"architecture": "../x"},
        {
            "preprocessing": '{"img_size": 10000000, "crop_pct": 1, "crop_mode": "x", "interpolation": "y"}'
        },
        {
            "preprocessing": '{"img_size": 64, "crop_pct": 1, "crop_mode": "center", "interpolation": "bicubic"}'
        },
    ],
    ids=lambda m: str(m)[:40],
)
def test_invalid_metadata_is_one_line(metadata, changed):
    with pytest.raises(ModelError) as refused:
        predict(["x.png"], model=str(changed(**metadata)))
    assert "changed.onnx" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "cls"}, "was exported with head rule avg-probs, not cls"),
        ({"head": "both"}, "There are: auto, cls"),
        ({"img_size": 224}, "takes images of 32 pixels, not 224"),
        ({"weights": "w.safetensors"}, "holds its own weights"),
        ({"device": "cuda"}, "runs on the CPU"),
        ({"precision": "bf16"}, "runs on the CPU"),
        ({"img_size": 100_000}, "takes images of 32 pixels"),
    ],
    ids=str,
)
def test_options_that_the_file_does_not_support_are_refused(options, says, file):
    with pytest.raises(DeitctlError, match=says):
        predict(["x.png"], model=str(file), **options)


def test_options_equal_to_the_files_own_are_accepted(file, image_folder):
    image = str(image_folder({"in": 1}) / "in" / "0.png")
    [record] = predict(
        [image], model=str(file), head=RULE, img_size=32, device="cpu", precision="fp32"
    )
    assert record.error is None


def test_an_onnx_file_in_the_wrong_place_is_named(file):
    with pytest.raises(ModelError, match=r"Use --model .*model\.onnx alone"):
        predict(["x.png"], model="deit_tiny", weights=str(file))
    from deitctl.events import SilentReporter
    from deitctl.models.factory import load_model

    with pytest.raises(ModelError, match="deitctl predict"):
        load_model(str(file), reporter=SilentReporter())


def test_without_onnxruntime_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="`pip install onnxruntime`"):
        predict(["x.png"], model=str(file))


def test_a_file_larger_than_protobuf_allows_is_not_read(file, monkeypatch):
    monkeypatch.setattr(onnx_classifier, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="larger than an ONNX file can be"):
        predict(["x.png"], model=str(file))


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BOOL, TensorProto.INT64])
def test_probabilities_that_are_no_floats_are_refused_before_an_image_is_read(kind, tmp_path, file):
    proto = onnx.load(file)
    proto.graph.node.append(helper.make_node("Cast", ["probabilities"], ["cast"], to=kind))
    out = next(o for o in proto.graph.output if o.name == "probabilities")
    for node in proto.graph.node[:-1]:
        node.output[:] = ["as they were" if o == "probabilities" else o for o in node.output]
    proto.graph.node[-1].input[0], proto.graph.node[-1].output[0] = "as they were", "probabilities"
    out.type.tensor_type.elem_type = kind
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r"odd\.onnx is not an export of deitctl"):
        predict(["x.png"], model=str(tmp_path / "odd.onnx"))


def test_scores_that_are_no_probabilities_are_refused(file, image_folder, tmp_path):
    proto = onnx.load(file)
    for node in proto.graph.node:
        node.output[:] = ["as they were" if o == "probabilities" else o for o in node.output]
    proto.graph.node.append(helper.make_node("Sum", ["as they were"] * 8, ["probabilities"]))
    onnx.save(proto, tmp_path / "twice.onnx")
    with pytest.raises(ModelError, match="no probabilities"):
        list(predict([str(image_folder({"in": 1}))], model=str(tmp_path / "twice.onnx")))


def test_a_network_that_fails_on_the_way_is_one_line(file, image_folder):
    classifier = load_onnx_classifier(str(file), **DEFAULTS)
    with pytest.raises(ModelError, match="cannot be run: "):
        classifier.scores(np.zeros((1, 3, 8, 8), np.uint8))


def test_num_threads_is_the_variables_or_the_number_of_cores(monkeypatch):
    cores = onnx_classifier._choose_num_threads
    monkeypatch.setattr(onnx_classifier, "count_cores", lambda: 6)
    for asked, threads in (("", 6), ("2", 2), ("99", 6), ("0", 6), ("two", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert cores() == threads


def test_a_loaded_file_returns_logits_of_images_of_any_size(any_file, file, make_image):
    image = make_image(50, 40)
    resizing, fixed = load(any_file), load(file)
    np.testing.assert_allclose(resizing.logits(image), fixed.logits(image), atol=0.05)
    assert resizing.logits([image, make_image(30, 60)]).shape == (2, 4)
    assert fixed.predict(image).predictions[0] == fixed.predict([image])[0].predictions[0]
