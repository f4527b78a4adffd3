from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from deitctl import __version__
from deitctl.data.batch_transforms import normalize
from deitctl.explanation.attention_maps import forward_with_attention
from deitctl.exporters.metadata import describe_model
from deitctl.exporters.network import TOKENS, AttentionClassifier, silence_warnings, trace
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.verification_images import compute_reference
from deitctl.models.model_config import HEADS, Preprocessing


@pytest.mark.parametrize("head", HEADS)
def test_the_network_gives_the_outputs_of_predict_with_every_head_rule(
    head, shallow, network, sample, answer
):
    loaded = shallow()
    pixels = sample(loaded).pixels
    wanted = compute_reference(loaded.model, loaded.model_config, head, pixels)
    got = answer(network(loaded, head), pixels)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(got[1].sum(axis=1), 1, atol=1e-5)


def test_probabilities_are_calibrated_and_logits_are_the_models_own(
    shallow, network, sample, answer
):
    """The temperature of the rule that the file has; another rule's changes nothing."""
    loaded = shallow()
    model_config = replace(loaded.model_config, temperatures={"cls": 2.5, "dist": 9.0})
    pixels = sample(loaded, 4).pixels
    plain = answer(network(loaded, "cls"), pixels)
    logits, probabilities = answer(
        network(replace(loaded, model_config=model_config), "cls"), pixels
    )
    np.testing.assert_array_equal(logits, plain[0])
    expected = torch.from_numpy(plain[0]).div(2.5).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert np.abs(probabilities - plain[1]).max() > 1e-3
    np.testing.assert_allclose(
        compute_reference(loaded.model, model_config, "cls", pixels)[1], expected, atol=1e-6
    )
    assert (
        describe_model(model_config, "cls")["temperature"],
        describe_model(model_config, "avg-probs")["temperature"],
    ) == (
        "2.5",
        "1.0",
    )


def test_the_head_rules_give_different_predictions(shallow, network, sample, answer):
    loaded = shallow()
    pixels = sample(loaded, 4).pixels
    answers = [answer(network(loaded, head), pixels)[0] for head in HEADS]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(answers) for b in answers[:i])


def test_the_traced_program_names_no_file_of_this_machine(shallow, network):
    program = trace(network(shallow(), "cls"))
    assert not [n for n in program.graph.nodes if "stack_trace" in n.meta]


def test_metadata_says_what_is_left_to_the_reader(shallow):
    model_config = replace(
        shallow().model_config, descriptions=tuple(f"digit {d}" for d in range(10))
    )
    metadata = describe_model(model_config, "cls")
    pre = json.loads(metadata["preprocessing"])
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert json.loads(metadata["descriptions"])[3] == "digit 3"
    assert (metadata["deitctl_version"], metadata["head"]) == (__version__, "cls")
    assert metadata["architecture"] == "deit_tiny_distilled_patch16_224"
    assert (pre["img_size"], pre["resize_to"], pre["crop_mode"]) == (
        32,
        Preprocessing(img_size=32).resize_to,
        "center",
    )
    assert (pre["layout"], pre["normalization"]["where"]) == ("NHWC uint8", "inside the network")


def test_metadata_of_a_bare_network_leaves_normalization_to_the_reader(shallow):
    pre = json.loads(describe_model(shallow().model_config, "cls", bare=True)["preprocessing"])
    assert (pre["layout"], pre["normalization"]["where"]) == ("NCHW float32", "left to the reader")


def test_metadata_leaves_out_names_that_are_unknown(shallow):
    metadata = describe_model(
        replace(shallow().model_config, class_names=None, descriptions=None), "cls"
    )
    assert not {"class_names", "descriptions"} & metadata.keys()


def test_silence_warnings_suppresses_warnings_and_logs_and_then_restores_them(caplog):
    with silence_warnings():
        warnings.warn("unheard", stacklevel=1)  # an error in these tests, were it heard
        logging.getLogger("torch.onnx").warning("unheard")
    logging.getLogger("torch.onnx").warning("heard")
    assert [r.message for r in caplog.records] == ["heard"]
    with pytest.raises(UserWarning):
        warnings.warn("heard", stacklevel=1)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("alias", "tokens"), [("deit_tiny", 1), ("deit_tiny_distilled", 2), ("deit3_small", 1)]
)
def test_it_gives_the_models_outputs_and_its_attention_is_that_of_the_last_block(
    alias, tokens, classifier, network, sample, answer
):
    loaded = classifier(alias)
    head = "cls" if tokens == 1 else "avg-logits"
    pixels = torch.from_numpy(sample(loaded, 3).pixels)
    with torch.no_grad():
        *answers, attention = AttentionClassifier(loaded.model, loaded.model_config, head)(pixels)
    np.testing.assert_allclose(
        torch.stack(answers), answer(network(loaded, head), pixels.numpy()), atol=1e-5
    )
    images = normalize(pixels.permute(0, 3, 1, 2), loaded.model_config.preprocessing)
    wanted = (
        forward_with_attention(loaded.model, images)
        .attention[-1]
        .mean(dim=1)[:, :tokens, tokens:]
        .reshape(3, tokens, 2, 2)
    )
    torch.testing.assert_close(attention, wanted)
    assert attention.sum((2, 3)).lt(1).all()
    assert len(TOKENS[:tokens]) == tokens


def test_the_file_gives_the_attention_for_any_batch(shallow, sample, tmp_path):
    import onnxruntime

    loaded = shallow()
    attending = AttentionClassifier(loaded.model, loaded.model_config, "dist")
    export_onnx(attending, loaded.model_config, {}, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits", "probabilities", "attention"]
    for count in (1, 5):
        pixels = sample(loaded, count).pixels
        with torch.no_grad():
            wanted = attending(torch.from_numpy(pixels))
        for given, expected in zip(session.run(None, {"pixels": pixels}), wanted, strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-4)
