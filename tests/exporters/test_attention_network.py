from __future__ import annotations

import numpy as np
import pytest
import torch

from deitctl.data.batch_transforms import normalize
from deitctl.explanation.attention import attend
from deitctl.exporters.attention_network import TOKENS, AttendingClassifier
from deitctl.exporters.onnx import export_onnx


@pytest.mark.parametrize(
    ("alias", "tokens"), [("deit_tiny", 1), ("deit_tiny_distilled", 2), ("deit3_small", 1)]
)
def test_it_answers_as_the_model_and_its_attention_is_that_of_the_last_block(
    alias, tokens, classifier, network, sample, answer
):
    loaded = classifier(alias)
    head = "cls" if tokens == 1 else "avg-logits"
    pixels = torch.from_numpy(sample(loaded, 3).pixels)
    with torch.no_grad():
        *answers, attention = AttendingClassifier(loaded.model, loaded.model_config, head)(pixels)
    np.testing.assert_allclose(
        torch.stack(answers), answer(network(loaded, head), pixels.numpy()), atol=1e-5
    )
    images = normalize(pixels.permute(0, 3, 1, 2), loaded.model_config.preprocessing)
    wanted = (
        attend(loaded.model, images)
        .kept[-1]
        .mean(dim=1)[:, :tokens, tokens:]
        .reshape(3, tokens, 2, 2)
    )
    torch.testing.assert_close(attention, wanted)
    assert attention.sum((2, 3)).lt(1).all()
    assert len(TOKENS[:tokens]) == tokens


def test_the_file_gives_the_attention_for_any_batch(shallow, sample, tmp_path):
    import onnxruntime

    loaded = shallow()
    attending = AttendingClassifier(loaded.model, loaded.model_config, "dist")
    export_onnx(attending, loaded.model_config, {}, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits", "probabilities", "attention"]
    for count in (1, 5):
        pixels = sample(loaded, count).pixels
        with torch.no_grad():
            wanted = attending(torch.from_numpy(pixels))
        for given, expected in zip(session.run(None, {"pixels": pixels}), wanted, strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-4)
