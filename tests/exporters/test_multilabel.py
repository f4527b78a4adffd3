"""Exports of a model of several labels: probabilities by class, thresholds inside, and the same labels everywhere."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deitctl.device import choose_device
from deitctl.errors import ExportError, ModelError
from deitctl.exporters.compare import (
    Verification,
    compare,
    compare_quantized,
    list_cutoffs,
    measure,
)
from deitctl.exporters.coreml import PARTS
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.model_card import History, make_model_card
from deitctl.exporters.network import AttentionClassifier, ExportedClassifier, silence_warnings
from deitctl.exporters.quantize import quantize_onnx
from deitctl.exporters.runner import LOADERS, run_batches
from deitctl.exporters.verification_images import compute_reference
from deitctl.exporters.verify import verify_export
from deitctl.exporters.web import describe_for_page
from deitctl.inference.classifier import Classifier, load
from deitctl.inference.torch_classifier import TorchClassifier
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.tasks import choose_labels

RULE = "avg-probs"


@pytest.fixture(scope="module")
def model(shallow, sample) -> LoadedModel:
    """A distilled DeiT of one block, whose thresholds lie between its probabilities of the images; those
    of the mean of both heads are others."""
    loaded = shallow()
    config = replace(
        loaded.model_config,
        head=RULE,
        temperatures={RULE: 0.7},
        task="multilabel",
        preprocessing=Preprocessing(img_size=32, crop_pct=0.8),  # transformers crops it alike
    )
    pixels = sample(replace(loaded, model_config=config)).pixels
    thresholds = {}
    for rule, row in ((RULE, 8), ("avg-logits", 14)):
        probs = compute_reference(loaded.model, config, rule, pixels)[1]
        low, high = np.sort(probs, axis=0)[[row, row + 1]].astype(np.float64)
        thresholds[rule] = tuple(((low + high) / 2).tolist())
    return LoadedModel(loaded.model, replace(config, thresholds=thresholds))


@pytest.fixture(scope="module")
def write(model, tmp_path_factory):
    """Write the model in a format, once each; return the file or folder."""
    done = {}

    def make(name, wrap=ExportedClassifier):
        if name not in done:
            kind, config = FORMATS[name], model.model_config
            network = wrap(model.model, config, kind.head or RULE)
            path = tmp_path_factory.mktemp(name) / f"m{kind.suffix}"
            kind.write(network, config, collect_metadata(network, config, name), path)
            done[name] = path
        return done[name]

    return make


def as_classifier(model: LoadedModel) -> Classifier:
    backend = TorchClassifier(model.model, model.model_config, choose_device("cpu", "fp32"))
    return Classifier(backend)


@pytest.mark.parametrize("name", ["onnx", "torch", "timm", "transformers"])
def test_every_format_has_the_models_outputs_and_labels(name, write, model, sample):
    kind, images = FORMATS[name], sample(model)
    for package in kind.packages:
        pytest.importorskip(package)
    config = replace(model.model_config, head=kind.head or RULE)
    expected = compute_reference(model.model, config, config.head, images.pixels)
    outputs = run_batches(LOADERS[name](str(write(name))), images.pixels)
    assert len(outputs) == (1 if kind.head else 3)
    verification = compare(outputs, expected, images.names, kind.tolerance, list_cutoffs(config))
    assert (verification.labels_agreement, verification.top1_agreement) == (100, None)
    labels = choose_labels(expected[1], config.list_thresholds(config.head))
    assert labels.mean(axis=0).tolist() == [3 / 18 if kind.head else 9 / 18] * 10
    if not kind.head:
        np.testing.assert_array_equal(outputs[2], labels)
        np.testing.assert_allclose(outputs[1].sum(1).std(), expected[1].sum(1).std(), rtol=1e-3)


def test_an_onnx_file_predicts_the_labels_of_the_model(write, model, make_image):
    image = make_image()
    file = load(write("onnx"))
    assert file.model_config.task == "multilabel"
    assert file.model_config.thresholds == {RULE: model.model_config.thresholds[RULE]}
    ours, theirs = (
        [(c.label, c.threshold) for c in classifier.predict(image).labels]
        for classifier in (as_classifier(model), file)
    )
    assert ours == theirs
    assert len(load(write("onnx"), threshold=0.0).predict(image).labels) == 10
    with pytest.raises(ModelError, match="was exported for multilabel, not classification"):
        load(write("onnx"), task="classification")


def test_an_export_with_other_thresholds_is_found_out(write, model, sample):
    images, config = sample(model), model.model_config
    expected = compute_reference(model.model, config, RULE, images.pixels)
    outputs = run_batches(LOADERS["torch"](str(write("torch"))), images.pixels)
    other = replace(config, thresholds={RULE: (0.0,) * 10})
    with pytest.raises(ExportError, match=r"labels agree on 0.0 % \(not on "):
        compare(outputs, expected, images.names, 1e-3, list_cutoffs(other))


def decide(probs: list[float], config: ModelConfig) -> np.ndarray:
    """Return logits and probabilities, [2,1,K], of probabilities [K]."""
    p = np.array(probs)
    return np.array([[np.log(p / (1 - p))], [p]], np.float32)


TWO = ModelConfig(
    architecture="x", num_classes=2, task="multilabel", thresholds={"cls": (0.5, 0.2)}
)


def test_a_label_may_change_only_where_its_probability_is_as_close_as_outputs_differ():
    expected, cutoffs = decide([0.5001, 0.4], TWO), list_cutoffs(TWO)
    near = decide([0.4999, 0.4], TWO)
    verification = compare(near, expected, ["a"], 1e-2, cutoffs)
    assert (verification.labels_agreement, verification.differing) == (0, ("a",))
    lying = np.concatenate(
        [expected, np.array([[[True, False]]])]
    )  # the same outputs, another label
    with pytest.raises(ExportError, match="labels agree on 0.0 %"):
        compare(lying, expected, ["a"], 1e-2, cutoffs)


def test_a_clear_label_must_survive_quantization():
    config = replace(TWO, thresholds={"cls": (0.5, 0.5)})
    expected = np.concatenate([decide([0.9, 0.1], config)] * 40, axis=1)
    names = [str(n) for n in range(40)]
    outputs = expected.copy()
    assert compare_quantized(outputs, expected, names, 0.2, list_cutoffs(config)).relative_diff == 0
    outputs[:, 7] = decide([0.4, 0.1], config)[:, 0]
    with pytest.raises(ExportError, match="labels agree on 97.5 %, and 7 is a clear image"):
        compare_quantized(outputs, expected, names, 1.0, list_cutoffs(config))


def test_thresholds_of_zero_and_one_are_infinite_logits():
    cutoffs = list_cutoffs(replace(TWO, thresholds={"cls": (0.0, 1.0)}))
    assert cutoffs.tolist() == [[-np.inf, np.inf], [0, 1]]
    outputs = decide([0.001, 0.999], TWO)[:1]
    assert measure(outputs, outputs, ["a"], cutoffs).labels_agreement == 100


def test_a_quantized_file_has_its_labels_inside(write, model, sample, tmp_path):
    quantize_onnx(write("onnx"), "int8", tmp_path / "int8.onnx")
    logits, probs, labels = LOADERS["onnx"](str(tmp_path / "int8.onnx"))(sample(model).pixels)
    np.testing.assert_allclose(probs, 1 / (1 + np.exp(-logits / 0.7)), atol=1e-6)
    np.testing.assert_array_equal(labels, choose_labels(probs, model.model_config.thresholds[RULE]))


def test_verify_knows_the_labels_and_refuses_other_thresholds(write, tmp_path, image_folder):
    folder, images = write("timm"), image_folder({"a": 3})
    result = verify_export(write("onnx"), model=str(folder), verify_data=str(images))
    assert (result.labels_agreement, result.num_verified) == (100, 3)
    config = json.loads((folder / CONFIG).read_text())
    config["deitctl"]["thresholds"][RULE][0] = 0.123
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "other" / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ExportError, match="as it is now: thresholds differ"):
        verify_export(write("onnx"), model=str(tmp_path / "other"), verify_data=str(images))


def test_transformers_takes_the_sigmoid_and_its_folder_is_read_back(
    write, model, make_image, tmp_path, reporter
):
    transformers = pytest.importorskip("transformers")
    folder, file = write("transformers"), tmp_path / "image.png"
    make_image(40, 40).save(file)
    read = load_model_config(folder)
    assert (read.task, read.thresholds) == ("multilabel", model.model_config.thresholds)
    classify = transformers.pipeline("image-classification", model=str(folder))
    scores = {scored["label"]: scored["score"] for scored in classify(str(file), top_k=10)}
    loaded = load_model(str(folder), reporter=reporter)
    # its own reader averages logits and has no temperature
    config = replace(read, head="avg-logits", temperatures={})
    ours = as_classifier(replace(loaded, model_config=config)).predict(file, topk=10)
    assert sum(scores.values()) != pytest.approx(1, abs=0.1)
    assert scores == pytest.approx({c.label: c.score for c in ours.predictions}, abs=0.02)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_the_code_of_a_folders_readme_finds_the_labels_of_its_readers_head_rule(
    name, write, model, sample, tmp_path, capsys
):
    pytest.importorskip(name)
    folder, kind, file = write(name), FORMATS[name], tmp_path / "image.png"
    network = ExportedClassifier(model.model, model.model_config, kind.head)
    usage = kind.choose_usage(network).replace("PATH", str(folder)).replace("image.jpg", str(file))
    classifier = as_classifier(
        replace(model, model_config=replace(model.model_config, head=kind.head))
    )
    found = []
    for pixels in sample(model).pixels[[0, 5, 9]]:
        Image.fromarray(pixels).resize((40, 40)).save(file)
        exec(usage, {})
        labels = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
        assert sorted(labels) == sorted(c.label for c in classifier.predict(file).labels)
        found += labels
    assert found


def test_a_core_ml_package_has_arrays_instead_of_one_label(write):
    with silence_warnings():
        pytest.importorskip("coremltools")
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString((write("coreml") / PARTS[1]).read_bytes())
    kinds = {o.name: o.type.WhichOneof("Type") for o in spec.description.output}
    assert kinds == dict.fromkeys(("logits", "probabilities", "labels"), "multiArrayType")


def test_a_page_gets_thresholds_and_labels(write, model):
    network = AttentionClassifier(model.model, model.model_config, RULE)
    assert network.output_names == ("logits", "probabilities", "labels", "attention")
    info = describe_for_page(network, model.model_config)
    assert (info["task"], info["thresholds"]) == ("multilabel", model.model_config.thresholds[RULE])


def test_a_model_card_has_thresholds_and_scores_of_several_labels(model):
    best = {"epoch": 2, "map": 81.5, "macro_f1": 70.0, "micro_f1": 72.0, "sample_f1": 65.25}
    card = make_model_card(
        model.model_config,
        History(run={"data": "pairs"}, result={"best": {**best, "top1": None}, "epochs": 3}),
        title="pairs",
        library="timm",
        usage="",
        head=RULE,
        verification=Verification(num_verified=3, max_abs_diff=1e-5, labels_agreement=100.0),
    )
    assert "- multi-label\n---" in card
    assert f"| `3` | {model.model_config.thresholds[RULE][3]:.4g} |" in card
    assert "| mAP | macro F1 | micro F1 | sample F1 |" in card
    assert "| 81.50 % | 70.00 % | 72.00 % | 65.25 % |" in card
    assert "labels agree on 100.0 %" in card
    assert "top-1" not in card
