"""A checkpoint fits other sizes, classes and tokens, and says what was done to it."""

from __future__ import annotations

import pytest
import torch

from deitctl.errors import ModelError
from deitctl.models import convert
from deitctl.models.catalog import ARCHITECTURES, find
from deitctl.models.vit import VisionTransformer, resize_pos_embed


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize(
    "arch", [a for a in ARCHITECTURES if not a.alias.endswith("_in22k")], ids=lambda a: a.alias
)
def test_architecture_is_inferred_from_the_shapes(arch):
    with torch.device("meta"):
        state = VisionTransformer(arch, num_classes=3, img_size=arch.img_size).state_dict()
    assert convert.infer_architecture(shapes(state), "f") is arch
    assert convert.infer_img_size(state, arch) == arch.img_size
    assert convert.count_classes(state) == 3


def test_what_is_no_deit_is_refused():
    with pytest.raises(ModelError, match=r"x\.pth does not hold a DeiT"):
        convert.infer_architecture({"conv.weight": (3, 3)}, "x.pth")
    with pytest.raises(ModelError, match=r"an unknown DeiT: width 999, depth 1, patches of 16"):
        convert.infer_architecture(
            {
                "patch_embed.proj.weight": (999, 3, 16, 16),
                "blocks.0.x": (1,),
                "pos_embed": (1, 197, 999),
            },
            "x",
        )


def test_names_of_the_authors_layer_scales_become_timms(deit):
    state = deit("deit3_small").state_dict()
    theirs = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in state.items()
    }
    assert "blocks.0.gamma_1" in theirs
    assert set(convert.normalize_names(theirs)) == set(state)


def test_equal_shapes_are_loaded_without_changes(deit):
    source, model = deit(seed=1), deit(seed=2)
    assert convert.load_adapted(model, source.state_dict(), "f") == []
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True)
    )


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled", "deit3_small"])
def test_another_size_resizes_the_positions(alias, deit):
    source, model = deit(alias, img_size=64, seed=1), deit(alias, img_size=96, seed=2)
    (change,) = convert.load_adapted(model, source.state_dict(), "f")
    assert "6x6 patches" in change
    prefix = {"deit_tiny": 1, "deit_tiny_distilled": 2, "deit3_small": 0}[alias]
    assert torch.equal(
        model.pos_embed, resize_pos_embed(source.pos_embed, 6, num_prefix_tokens=prefix)
    )
    assert torch.equal(model.head.weight, source.head.weight)


def test_plain_becomes_distilled_with_a_copy_of_the_class_token(deit, noise):
    source, model = deit(seed=1), deit("deit_tiny_distilled", seed=2)
    (change,) = convert.load_adapted(model, source.state_dict(), "f")
    assert "copy of the class token" in change
    assert torch.equal(model.dist_token, source.cls_token)
    assert torch.equal(model.pos_embed[:, 1], source.pos_embed[:, 0])
    assert torch.equal(model.pos_embed[:, 2:], source.pos_embed[:, 1:])
    with torch.no_grad():
        cls, dist = model(noise(2, 3, 32, 32))
    torch.testing.assert_close(cls, dist)  # two equal tokens get two equal answers


def test_distilled_becomes_plain_by_leaving_the_token_out(deit):
    source, model = deit("deit_tiny_distilled", seed=1), deit(seed=2)
    (change,) = convert.load_adapted(model, source.state_dict(), "f")
    assert "left out" in change
    assert torch.equal(
        model.pos_embed, torch.cat([source.pos_embed[:, :1], source.pos_embed[:, 2:]], dim=1)
    )
    assert torch.equal(model.head.weight, source.head.weight)


def test_plain_to_distilled_at_another_size(deit):
    source, model = deit(img_size=64, seed=1), deit("deit_tiny_distilled", img_size=32, seed=2)
    assert len(convert.load_adapted(model, source.state_dict(), "f")) == 2
    assert torch.equal(model.pos_embed[:, 1], source.pos_embed[:, 0])


def test_head_of_other_classes_stays_new(deit):
    source, model = deit(classes=9, seed=1), deit(classes=3, seed=2)
    head = model.head.weight.detach().clone()
    (change,) = convert.load_adapted(model, source.state_dict(), "f")
    assert change == "the head is new: 3 classes, the weights have 9"
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_weights_without_a_head_give_a_new_one(deit):
    state = {k: v for k, v in deit(seed=1).state_dict().items() if not k.startswith("head")}
    (change,) = convert.load_adapted(deit(seed=2), state, "f")
    assert "the weights have none of them" in change


def test_rows_of_both_heads_are_taken_in_order(deit, noise):
    source = deit("deit_tiny_distilled", classes=9, seed=1)
    model = deit("deit_tiny_distilled", classes=3, seed=2)
    convert.load_adapted(model, convert.take_head_rows(source.state_dict(), [7, 0, 3]), "f")
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        ours, whole = model(images), source(images)
    torch.testing.assert_close(ours.cls, whole.cls[:, [7, 0, 3]])
    torch.testing.assert_close(ours.dist, whole.dist[:, [7, 0, 3]])


def test_another_width_is_refused_with_the_right_name(deit):
    with pytest.raises(
        ModelError, match=r"f holds deit3_small, not deit_tiny\. Use --model deit3_small\."
    ):
        convert.load_adapted(deit(), deit("deit3_small").state_dict(), "f")


def test_a_damaged_state_dict_is_refused(deit):
    state = deit().state_dict()
    del state["blocks.3.norm1.weight"]
    with pytest.raises(ModelError, match=r"f is not a complete DeiT: .*blocks\.3\.norm1\.weight"):
        convert.load_adapted(deit(), state, "f")


@pytest.mark.parametrize(("size", "near"), [(100, 96), (8, 16), (225, 224)])
def test_sizes_that_patches_do_not_fill_are_refused_with_the_nearest(size, near):
    with pytest.raises(ModelError, match=f"--img-size {near}"):
        convert.resize_architecture(find("deit_tiny"), size)


def test_a_square_files_positions_are_resized_for_another_grid_of_as_many_patches(deit):
    source = deit(img_size=64)  # 4x4 patches
    model = deit(img_size=(32, 128))  # 2x8
    changes = convert.load_adapted(model, source.state_dict(), "f")
    expected = resize_pos_embed(source.pos_embed, (2, 8), num_prefix_tokens=1, old_grid=(4, 4))
    assert torch.equal(model.pos_embed, expected)
    assert changes == [
        "position embeddings are resized to 2x8 patches from 4x4, which they are taken to be: the file "
        "states no height and width"
    ]


def test_a_file_that_states_its_height_and_width_keeps_its_grid(deit):
    source, model, larger = deit(img_size=(32, 128)), deit(img_size=(32, 128)), deit(img_size=128)
    state = source.state_dict()
    assert convert.load_adapted(model, state, "f", img_size=(32, 128)) == []
    assert torch.equal(model.pos_embed, source.pos_embed)
    changes = convert.load_adapted(larger, state, "f", img_size=(32, 128))
    assert changes == ["position embeddings are resized to 8x8 patches"]
    expected = resize_pos_embed(source.pos_embed, (8, 8), num_prefix_tokens=1, old_grid=(2, 8))
    assert torch.equal(larger.pos_embed, expected)


def test_positions_that_make_no_square_are_the_models_own_or_refused(deit):
    source, model = deit(img_size=(32, 48)), deit(img_size=(32, 48))
    changes = convert.load_adapted(model, source.state_dict(), "f")
    assert changes == ["its positions are taken to be those of 32x48 pixels"]
    assert torch.equal(model.pos_embed, source.pos_embed)
    with pytest.raises(ModelError, match=r"positions of 6 patches, which make no square"):
        convert.load_adapted(deit(img_size=64), source.state_dict(), "f")
