"""A DeiT has the shape that was asked for, in words where it cannot, and timm builds the same one."""

from __future__ import annotations

import pytest
import torch

from deitctl.errors import ConfigError, ModelError
from deitctl.models.build import build_model
from deitctl.models.catalog import find, get_distilled, get_plain
from deitctl.models.checkpoint_io import save_model
from deitctl.models.factory import find_architecture, load_model
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.own_shape import list_own_args, require_model_args, reshape

TINY = find("deit_tiny")
SHAPE = {"patch_size": 8, "depth": 6, "embed_dim": 48, "num_heads": 4, "mlp_ratio": 2.5}


def build(reporter, *, ref="deit_tiny", weights="", distilled=False, shape=SHAPE):
    return build_model(
        ref,
        class_names=("a", "b", "c"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights=weights,
        distilled=distilled,
        model_args=shape,
        reporter=reporter,
    )


def save(loaded, folder):
    model = loaded.model
    save_model(
        folder,
        model.state_dict(),
        pin_img_size(model, loaded.model_config),
        describe_layers(model),
    )


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distilled"])
@pytest.mark.parametrize("extra", [{}, {"qkv_bias": False}], ids=["", "no-bias"])
def test_timm_and_we_load_a_saved_shape_with_equal_logits(tmp_path, reporter, distilled, extra):
    import timm

    loaded = build(reporter, distilled=distilled, shape=SHAPE | extra)
    save(loaded, tmp_path / "m")
    images = torch.randn(2, 3, 32, 32)
    ours = forward_heads(loaded.model.eval(), images)
    expected = fuse_heads(ours, "avg-logits" if distilled else "cls")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert len(theirs.blocks) == 6
    assert theirs.patch_embed.patch_size == (8, 8)
    torch.testing.assert_close(theirs(images), expected, atol=1e-5, rtol=0)
    again = load_model(str(tmp_path / "m"), reporter=reporter)
    assert torch.equal(forward_heads(again.model, images).cls, ours.cls)
    arch = find_architecture(str(tmp_path / "m"), reporter)
    assert (arch.depth, arch.patch_size, arch.num_heads, arch.hidden_dim) == (6, 8, 4, 120)


def test_a_run_of_its_own_shape_starts_another_that_is_cut_further(tmp_path, reporter):
    save(build(reporter), tmp_path / "m")
    again = build(reporter, ref=str(tmp_path / "m"), shape={"depth": 2})
    assert again.changes == ("the first 2 of the weights' 6 blocks are kept",)
    assert list_own_args(again.model.arch) == {**SHAPE, "depth": 2}
    first = load_model(str(tmp_path / "m"), reporter=reporter).model
    assert torch.equal(again.model.blocks[1].mlp.fc1.weight, first.blocks[1].mlp.fc1.weight)


def test_published_shapes_are_cut_resampled_and_said(tmp_path, reporter):
    save(build(reporter, shape={}), tmp_path / "m")
    shape = {"patch_size": 8, "depth": 3, "num_heads": 6}
    loaded = build(reporter, weights=str(tmp_path / "m"), shape=shape)
    assert loaded.changes == (
        "the first 3 of the weights' 12 blocks are kept",
        "the patch embedding is resampled from 16 to 8 pixels",
        "the attention has 6 heads, the weights were trained with 3",
        "position embeddings are resized to 4x4 patches",
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"embed_dim": 96}, "has embed_dim = 192, and a model of 96 cannot start from it"),
        ({"mlp_ratio": 3}, "has hidden_dim = 768, and a model of 576"),
        ({"depth": 13}, "has 12 blocks, and a model of 13"),
    ],
)
def test_weights_that_cannot_be_cut_to_a_shape_are_refused(tmp_path, reporter, shape, message):
    save(build(reporter, shape={}), tmp_path / "m")
    with pytest.raises(ModelError, match=message):
        build(reporter, weights=str(tmp_path / "m"), shape=shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"embed_dim": 100}, "A width of 100 does not divide into 3 heads"),
        ({"depth": 0}, r"model\.depth = 0 is out of range"),
        ({"depth": 2.5}, r"model\.depth = 2\.5 does not fit"),
        ({"qkv_bias": 1}, "expected true or false"),
        ({"dept": 6}, r"deit_tiny has no model\.dept"),
        ({"img_size": 64}, "--img-size decides it"),
        ({"mlp_ratio": 0.001}, "leaves no hidden channel"),
    ],
)
def test_shapes_that_no_network_has_are_refused_in_words(shape, message):
    with pytest.raises(ConfigError, match=message):
        require_model_args(shape, TINY)


def test_the_distilled_variant_keeps_the_shape():
    own = get_distilled(reshape(TINY, SHAPE))
    assert own.distilled
    assert list_own_args(own) == SHAPE
    assert get_plain(own) == reshape(TINY, SHAPE)


def test_arguments_reach_timms_models(tmp_path, reporter):
    import timm

    shape = {"depth": 2, "embed_dim": 48, "patch_size": 8, "reg_tokens": 2}
    loaded = build(reporter, ref="vit_tiny_patch16_224", shape=shape)
    save(loaded, tmp_path / "m")
    images = torch.randn(1, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert theirs.num_prefix_tokens == 3
    torch.testing.assert_close(theirs(images), loaded.model.eval()(images))
    again = load_model(str(tmp_path / "m"), reporter=reporter)
    assert torch.equal(again.model(images), loaded.model(images))


def test_an_argument_that_timms_model_does_not_have_is_refused(reporter):
    with pytest.raises(ModelError, match="timm cannot build resnet10t: .*embed_dim"):
        build(reporter, ref="resnet10t", shape={"embed_dim": 8})


@pytest.mark.parametrize("size", [(32, 64), (16, 144), (48, 16)])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_other_inputs_are_loaded_with_equal_logits_here_and_in_timm(
    tmp_path, reporter, size, in_chans
):
    import timm

    loaded = build_model(
        "deit_tiny_distilled",
        class_names=("a", "b"),
        img_size=size,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=True,
        model_args={"depth": 2},
        in_chans=in_chans,
        reporter=reporter,
    )
    save(loaded, tmp_path / "m")
    images = torch.randn(2, in_chans, *size)
    ours = forward_heads(loaded.model.eval(), images)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), fuse_heads(ours, "avg-logits"), atol=1e-5, rtol=0)
    assert tuple(theirs.pretrained_cfg["input_size"]) == (in_chans, *size)
    again = load_model(str(tmp_path / "m"), reporter=reporter)
    assert torch.equal(forward_heads(again.model, images).dist, ours.dist)
    assert again.model_config.preprocessing.hw == size


def test_positions_are_resized_between_grids_as_timm_does(tmp_path, reporter):
    from timm.layers import resample_abs_pos_embed

    from deitctl.models.vit import resize_pos_embed

    positions = torch.randn(1, 1 + 4 * 9, 8)
    expected = resample_abs_pos_embed(positions, [6, 5], old_size=[4, 9], num_prefix_tokens=1)
    resized = resize_pos_embed(positions, (6, 5), num_prefix_tokens=1, old_grid=(4, 9))
    torch.testing.assert_close(resized, expected)
    loaded = build(reporter, shape={"depth": 1})
    save(loaded, tmp_path / "m")
    wide = load_model(str(tmp_path / "m"), img_size=(32, 64), reporter=reporter)
    assert wide.changes == ("position embeddings are resized to 2x4 patches",)


def test_gray_students_start_from_rgb_weights(tmp_path, reporter):
    save(build(reporter, shape={"depth": 1}), tmp_path / "m")
    gray = build_model(
        str(tmp_path / "m"),
        class_names=("a", "b", "c"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=False,
        in_chans=1,
        reporter=reporter,
    )
    assert gray.changes == ("the first layer's weights for 3 channels are adapted to 1",)
    assert gray.model_config.preprocessing.mean == (0.449,)


def test_a_lone_file_states_its_height_and_width(tmp_path, reporter):
    loaded = build_model(
        "deit_tiny",
        class_names=("a", "b"),
        img_size=(32, 128),
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=False,
        model_args={"depth": 1, "embed_dim": 24, "num_heads": 3},
        reporter=reporter,
    )
    torch.nn.init.normal_(loaded.model.pos_embed)
    save(loaded, tmp_path / "m")
    again = build_model(
        "deit_tiny",
        class_names=("a", "b"),
        img_size=(32, 128),  # as many patches as a square of 64 pixels has
        drop_path_rate=0.0,
        pretrained=False,
        weights=str((tmp_path / "m" / "model.safetensors").rename(tmp_path / "lone.safetensors")),
        distilled=False,
        model_args={"depth": 1, "embed_dim": 24, "num_heads": 3},
        reporter=reporter,
    )
    assert torch.equal(again.model.pos_embed, loaded.model.pos_embed)
    assert not any("position" in change for change in again.changes)
