from __future__ import annotations

import json

import pytest
import timm
import torch

from deitctl.data.batch_transforms import normalize
from deitctl.exporters.timm_folder import HEAD, export_timm_folder
from deitctl.models.heads import choose_head, forward_heads, fuse_heads


@pytest.mark.parametrize(
    ("ref", "img_size", "distilled"),
    [("deit_tiny", 32, False), ("deit_tiny", 48, True), ("test_byobnet", 64, None)],
)
def test_timm_loads_the_folder_with_the_same_logits(
    ref, img_size, distilled, classifier, network, sample, tmp_path
):
    loaded = classifier(ref, img_size=img_size, distilled=distilled)
    export_timm_folder(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    pixels = torch.from_numpy(sample(loaded, 5).pixels).permute(0, 3, 1, 2)
    images = normalize(pixels, loaded.model_config.preprocessing)
    with torch.no_grad():
        wanted = fuse_heads(
            forward_heads(loaded.model, images), choose_head(HEAD, "", loaded.model)
        )
        torch.testing.assert_close(theirs(images), wanted, atol=1e-5, rtol=0)
    assert theirs.pretrained_cfg["label_names"] == list("0123456789")
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, img_size, img_size)


def test_timm_can_give_the_folder_another_head(classifier, network, tmp_path):
    loaded = classifier("deit_tiny", distilled=True)
    export_timm_folder(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    model = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=3)
    assert (model.head.out_features, model.head_dist.out_features) == (3, 3)


def test_the_folder_keeps_our_head_rule(classifier, network, tmp_path):
    loaded = classifier("deit_tiny", distilled=True)
    export_timm_folder(network(loaded, HEAD), loaded.model_config, {}, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["deitctl"] == {"head": loaded.model_config.head}
