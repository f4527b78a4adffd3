"""Teachers and other classifiers come from timm, by name, file, folder or the hub's cache."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.models import timm_models
from deitctl.models.catalog import TIMM_TAGS
from deitctl.models.checkpoint_io import load_tensors, save_model
from deitctl.models.factory import load_model
from deitctl.models.model_config import ModelConfig, parse_preprocessing

SMALL = "regnety_002"


def test_timm_names_are_recognized_with_and_without_a_tag():
    assert timm_models.is_timm_model("regnety_160")
    assert timm_models.is_timm_model("regnety_160.deit_in1k")
    assert not timm_models.is_timm_model("regnetty")


def _change_default(monkeypatch, name, tag):
    """Make `tag` timm's default for a name, as another version of timm might."""
    from timm.models import _registry

    cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, cfg)
    assert timm.get_pretrained_cfg(name).tag == tag


def test_a_name_without_a_tag_means_the_papers_weights_else_timms_default():
    assert timm_models.add_tag("regnety_160") == "regnety_160.deit_in1k"
    assert timm_models.add_tag("regnety_160.sw_in12k") == "regnety_160.sw_in12k"
    assert timm_models.add_tag("resnet50") == f"resnet50.{timm.get_pretrained_cfg('resnet50').tag}"
    assert timm_models.add_tag("no_such_model") == "no_such_model"
    assert timm_models.add_tag("davit_giant") == "davit_giant"  # timm has no weights of it


@pytest.mark.parametrize("name", sorted(TIMM_TAGS))
def test_weights_and_preprocessing_of_our_names_do_not_follow_timms_default(
    name, monkeypatch, reporter
):
    tag = TIMM_TAGS[name]
    expected = parse_preprocessing(timm.get_pretrained_cfg(f"{name}.{tag}").to_dict())
    others = [n for n in timm.list_pretrained(f"{name}.*") if n != f"{name}.{tag}"]
    for other in others or [f"{name}.{tag}"]:
        _change_default(monkeypatch, name, other.partition(".")[2])
        with torch.device("meta"):
            model = timm_models.create_model(name, num_classes=None)
        assert model.pretrained_cfg["tag"] == tag
        assert timm_models.read_model_config(model, name, 1000).preprocessing == expected
        with pytest.raises(WeightsNotFound, match=rf"{name}\.{tag} .*"):
            load_model(name, reporter=reporter)


def test_misspelled_names_get_suggestions_from_both_families():
    assert "'regnety_160'" in timm_models.suggest_model("regnety_16")
    assert "'deit_tiny'" in timm_models.suggest_model("deit_tinny")


@pytest.mark.parametrize("name", [SMALL, "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_size_and_stochastic_depth_reach_the_models_that_take_them(name, noise):
    model = timm_models.create_model(
        name, num_classes=4, img_size=32, drop_path_rate=0.1, model_args={}
    )
    with torch.no_grad():
        assert model.eval()(noise(1, 3, 32, 32)).shape == (1, 4)
    depths = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(depths) == pytest.approx(0.1, abs=0.02) or name == "mobilenetv3_small_050"


def test_arguments_that_a_model_does_not_take_are_refused():
    with pytest.raises(ModelError, match="timm cannot build regnety_002"):
        timm_models.create_model(
            SMALL, num_classes=4, img_size=32, drop_path_rate=0.0, model_args={"color": "red"}
        )


def test_model_config_is_read_from_timms_pretrained_cfg():
    model = timm.create_model(SMALL)
    model_config = timm_models.read_model_config(model, SMALL, 1000)
    cfg = model.pretrained_cfg
    assert model_config.architecture == SMALL
    assert model_config.preprocessing.crop_pct == cfg["crop_pct"]
    assert model_config.preprocessing.mean == tuple(cfg["mean"])
    assert model_config.class_names[0] == "n01440764"
    assert timm_models.read_model_config(model, SMALL, 7).class_names is None


def test_weights_of_another_architecture_are_refused():
    model = timm.create_model(SMALL, num_classes=3)
    with pytest.raises(ModelError, match="f holds weights of another architecture"):
        timm_models.load_weights(model, {"x": torch.zeros(1)}, "f", new_head=False)


def test_a_new_head_keeps_the_backbone_and_starts_at_zero(randomize):
    """Every class is equally likely at first: timm's own start gives some families ten times that loss."""
    source = randomize(timm.create_model(SMALL, num_classes=9))
    model = timm.create_model(SMALL, num_classes=3)
    timm_models.load_weights(model, source.state_dict(), "f", new_head=True)
    assert not model.head.fc.weight.any()
    assert not model.head.fc.bias.any()
    assert torch.equal(model.stem.conv.weight, source.stem.conv.weight)


def test_a_convnets_folder_has_equal_logits_here_and_in_timm(tmp_path, noise):
    model = timm.create_model(SMALL, num_classes=3).eval()
    model_config = ModelConfig(
        architecture=SMALL, num_classes=3, class_names=("a", "b", "c")
    ).at_size(64)
    save_model(
        tmp_path / "net", model.state_dict(), model_config, timm_models.describe_layers(model)
    )
    path = tmp_path / "net" / "model.safetensors"
    ours, read = timm_models.load_folder(tmp_path / "net", path, load_tensors(path))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    images = noise(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), model(images))
        assert torch.equal(theirs(images), model(images))
    assert read.class_names == ("a", "b", "c")
    assert read.preprocessing.img_size == 64


def test_a_folder_of_an_unknown_architecture_is_refused(tmp_path):
    model_config = ModelConfig(architecture="regnety_003", num_classes=3)
    save_model(
        tmp_path,
        {"x": torch.zeros(1)},
        model_config,
        {"classifier": ("head",), "first_conv": "c", "fixed_input_size": False},
    )
    with pytest.raises(ModelError, match="'regnety_003', which timm does not have"):
        timm_models.load_folder(tmp_path, tmp_path / "model.safetensors", {})


def test_missing_weights_are_named_with_their_url(reporter):
    with pytest.raises(WeightsNotFound, match=r"huggingface\.co/timm/regnety_160\.deit_in1k"):
        load_model("regnety_160.deit_in1k", reporter=reporter)


def test_weights_in_the_hubs_cache_are_used_without_a_network(
    tmp_path, monkeypatch, noise, reporter
):
    from huggingface_hub import constants

    model = timm.create_model(SMALL).eval()
    repo = tmp_path / "hub" / "models--timm--regnety_002.pycls_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_model(SMALL, reporter=reporter)
    images = noise(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))
    assert loaded.model_config.class_names is not None


def test_positions_of_a_file_are_resampled_for_another_grid_of_as_many_patches(reporter):
    from timm.layers import resample_abs_pos_embed

    shape = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    square = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=64, **shape)
    state = square.state_dict()
    for size, grid in (((32, 128), (2, 8)), (96, (6, 6))):
        model = timm_models.create_model(
            "vit_tiny_patch16_224", num_classes=2, img_size=size, model_args=shape
        )
        changes = timm_models.load_weights(model, state, "f", new_head=False)
        expected = resample_abs_pos_embed(square.pos_embed, list(grid), [4, 4])
        assert torch.equal(model.pos_embed, expected)
        assert f"position embeddings are resized to {grid[0]}x{grid[1]} patches" in changes[0]
        assert ("states no height and width" in changes[0]) == (size == (32, 128))
    wide = timm_models.create_model(
        "vit_tiny_patch16_224", num_classes=2, img_size=(32, 128), model_args=shape
    )
    assert timm_models.load_weights(wide, state, "f", new_head=False, img_size=(32, 128)) == []
    assert torch.equal(wide.pos_embed, square.pos_embed)


def test_a_vit_of_timms_drops_the_branches_of_every_block_alike() -> None:
    vit, convnet = (
        timm_models.create_model(name, num_classes=2, img_size=160)
        for name in ("test_vit", "test_convnext")
    )
    assert timm_models.drop_alike(vit, 0.3)
    rates = [path.drop_prob for b in vit.blocks for path in (b.drop_path1, b.drop_path2)]
    assert rates == [0.3] * 2 * len(vit.blocks)
    assert not timm_models.drop_alike(convnet, 0.3)
