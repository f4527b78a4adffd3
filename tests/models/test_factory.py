"""Whatever a user calls a model, it is built or loaded with the right config, or the mistake is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.models.build import build_model, has_class_rows
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import save_model
from deitctl.models.factory import load_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.vit import VisionTransformer

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def folder(tmp_path, deit):
    """Write a model folder as training does, and return it with the model."""

    def make(alias="deit_tiny", classes=5, names=NAMES, name="run", seed=1):
        model = deit(alias, classes=classes, seed=seed)
        model_config = replace(
            model.arch.to_model_config(), num_classes=classes, class_names=names, descriptions=None
        ).at_size(32)
        save_model(
            tmp_path / name,
            model.state_dict(),
            pin_img_size(model, model_config),
            describe_layers(model),
        )
        return tmp_path / name, model

    return make


def build(ref, reporter, **changes):
    values = {
        "class_names": NAMES,
        "img_size": 32,
        "drop_path_rate": 0.0,
        "pretrained": False,
        "weights": "",
        "distilled": None,
        "reporter": reporter,
    }
    return build_model(str(ref), **{**values, **changes})


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled", "deit3_small"])
def test_a_saved_folder_has_equal_logits_here_and_in_timm(alias, folder, noise, reporter):
    root, model = folder(alias)
    loaded = load_model(str(root), reporter=reporter)
    theirs = timm.create_model(f"local-dir:{root}", pretrained=True).eval()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        ours, before = loaded.model(images), model(images)
        assert torch.equal(ours.cls, before.cls)
        joined = before.cls if before.dist is None else (before.cls + before.dist) / 2
        torch.testing.assert_close(theirs(images), joined, rtol=1e-4, atol=1e-5)
    assert loaded.model_config.class_names == NAMES
    assert loaded.model_config.preprocessing.img_size == 32
    assert loaded.model_config.head == ("cls" if before.dist is None else "avg-logits")
    assert loaded.changes == ()
    assert not loaded.model.training


def test_the_weights_file_inside_a_folder_means_the_folder(folder, reporter):
    root, _ = folder()
    assert (
        load_model(str(root / "model.safetensors"), reporter=reporter).model_config.class_names
        == NAMES
    )


def test_a_bare_file_is_loaded_by_its_shapes(folder, tmp_path, reporter):
    _, model = folder("deit_tiny_distilled")
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    loaded = load_model(str(tmp_path / "checkpoint.pth"), reporter=reporter)
    assert loaded.model_config.architecture == "deit_tiny_distilled_patch16_224"
    assert (loaded.model_config.num_classes, loaded.model_config.class_names) == (5, None)
    assert loaded.model_config.preprocessing.img_size == 32


def test_a_file_with_imagenets_thousand_classes_has_their_names(tmp_path, deit, reporter):
    save_file(deit(classes=1000).state_dict(), tmp_path / "w.safetensors")
    assert (
        load_model(str(tmp_path / "w.safetensors"), reporter=reporter).model_config.class_names
        == load_imagenet_classes()[0]
    )


def test_published_weights_come_from_the_weights_folder(tmp_path, deit, monkeypatch, reporter):
    save_file(
        deit(classes=1000, img_size=224).state_dict(),
        tmp_path / "deit_tiny_patch16_224.fb_in1k.safetensors",
    )
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path))
    for ref in ("deit_tiny", "deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"):
        loaded = load_model(ref, reporter=reporter)
        assert loaded.model_config == loaded.model.arch.to_model_config()
    smaller = load_model("deit_tiny", img_size=64, reporter=reporter)
    assert smaller.model_config.preprocessing.img_size == smaller.model.img_size == 64
    assert smaller.changes == ("position embeddings are resized to 4x4 patches",)


def test_weights_of_any_dtype_are_copied_to_float32(tmp_path, deit, noise, reporter):
    """Loaded without numbers to be replaced first, so every one must come from the file, and none stay in it."""
    state = deit("deit_tiny_distilled", classes=7).state_dict()
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in state.items()}, path)
    model = load_model(str(path), reporter=reporter).model
    loaded = {k: v.clone() for k, v in model.state_dict().items()}
    assert {v.dtype for v in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[k], v.half().float()) for k, v in state.items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    with path.open("r+b") as file:  # written over where it lies, which a memory map would show
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(v, loaded[k]) for k, v in model.state_dict().items())


def test_two_heads_of_different_sizes_are_refused(tmp_path, deit, reporter):
    state = deit("deit_tiny_distilled", classes=7).state_dict()
    other = deit("deit_tiny_distilled", classes=5).state_dict()
    save_file(
        {k: other[k] if k.startswith("head_dist") else v for k, v in state.items()},
        tmp_path / "m.safetensors",
    )
    with pytest.raises(ModelError, match="does not fit"):
        load_model(str(tmp_path / "m.safetensors"), reporter=reporter)


@pytest.mark.parametrize("size", [-1, 2049, 10**9])
def test_an_absurd_input_size_is_refused_before_loading(size, reporter):
    with pytest.raises(ModelError, match="1 to 2048 pixels"):
        load_model("deit_tiny", img_size=size, reporter=reporter)


def test_a_named_architecture_must_match_the_file(folder, reporter):
    root, _ = folder("deit_tiny_distilled")
    file = str(root / "model.safetensors")
    with pytest.raises(
        ModelError,
        match=r"holds deit_tiny_distilled\w*, not deit_tiny\. Use --model deit_tiny_distilled",
    ):
        load_model("deit_tiny", weights=file, reporter=reporter)
    with pytest.raises(ModelError, match="holds deit_tiny_distilled_patch16_224, not deit_small"):
        load_model("deit_small", weights=str(root), reporter=reporter)
    assert (
        load_model(
            "deit_tiny_distilled", weights=str(root), reporter=reporter
        ).model_config.class_names
        == NAMES
    )


def test_a_file_without_a_head_cannot_classify(tmp_path, deit, reporter):
    state = {k: v for k, v in deit().state_dict().items() if not k.startswith("head")}
    save_file(state, tmp_path / "body.safetensors")
    with pytest.raises(ModelError, match="has no classifier head"):
        load_model(str(tmp_path / "body.safetensors"), reporter=reporter)


@pytest.mark.parametrize(
    ("ref", "what"),
    [
        ("deit_tinny", "There is no model 'deit_tinny'. Did you mean 'deit_tiny'"),
        ("no/such", "There is no model file"),
        ("nothing.pth", "There is no model file"),
    ],
)
def test_an_unknown_model_is_an_error_with_a_hint(ref, what, reporter):
    with pytest.raises(ModelError, match=what):
        load_model(ref, reporter=reporter)


def test_a_folder_without_a_model_is_refused(tmp_path, reporter):
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        load_model(str(tmp_path), reporter=reporter)


def test_a_timm_file_needs_its_name(tmp_path, reporter, noise):
    model = timm.create_model("regnety_002").eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match="--model NAME --weights FILE"):
        load_model(str(tmp_path / "net.safetensors"), reporter=reporter)
    loaded = load_model("regnety_002", weights=str(tmp_path / "net.safetensors"), reporter=reporter)
    with torch.no_grad():
        assert torch.equal(loaded.model(noise(1, 3, 32, 32)), model(noise(1, 3, 32, 32)))


def test_a_new_model_has_the_datas_classes(reporter):
    built = build(
        "deit_tiny", reporter, descriptions=[n.upper() for n in NAMES], drop_path_rate=0.2
    )
    assert built.model_config.class_names == NAMES
    assert built.model_config.descriptions == ("A", "B", "C", "D", "E")
    assert built.model_config.preprocessing.img_size == 32
    assert built.model.drop_path_rate == 0.2
    assert built.changes == ()


def test_distilled_decides_the_distillation_token(reporter):
    assert build("deit_tiny", reporter, distilled=True).model.dist_token is not None
    assert build("deit_tiny_distilled", reporter, distilled=False).model.dist_token is None
    assert build("deit_tiny_distilled", reporter).model_config.head == "avg-logits"
    assert build("deit3_small", reporter, distilled=True).model.dist_token is None


def test_img_size_zero_is_the_models_own(reporter):
    assert build("deit_tiny", reporter, img_size=0).model.img_size == 224


def test_head_rows_are_taken_by_class_name(folder, noise, reporter):
    root, model = folder()
    built = build(root, reporter, class_names=("d", "a"))
    with torch.no_grad():
        torch.testing.assert_close(
            built.model.eval()(noise(1, 3, 32, 32)).cls, model(noise(1, 3, 32, 32)).cls[:, [3, 0]]
        )
    assert built.changes == ("the head keeps the weights' rows of the data's 2 classes",)


def test_unknown_classes_get_a_new_head(folder, reporter):
    root, model = folder()
    built = build(root, reporter, class_names=("d", "new"))
    assert built.model.head.weight.shape == (2, 192)
    assert any("head is new" in c for c in built.changes)
    assert torch.equal(built.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_as_many_but_other_classes_get_a_new_head(folder, reporter):
    root, model = folder()
    built = build(root, reporter, class_names=("v", "w", "x", "y", "z"))
    assert not torch.equal(built.model.head.weight, model.head.weight)
    assert any("head is new" in c for c in built.changes)


@pytest.mark.parametrize(
    ("names", "is_new"),
    [
        (NAMES[::-1], False),
        (NAMES[:2], False),
        (("v", "w", "x", "y", "z"), True),
        (("d", "new"), True),
    ],
)
def test_whether_a_head_is_new_is_known_before_and_after_building(folder, names, is_new, reporter):
    root, _ = folder()
    assert build(root, reporter, class_names=names).has_new_head is is_new
    assert has_class_rows(str(root), "", names, reporter) is not is_new
    assert has_class_rows("deit_tiny", str(root), names, reporter) is not is_new


def test_a_model_from_scratch_has_no_new_head_to_fit(reporter):
    assert not build("deit_tiny", reporter).has_new_head
    assert not build("regnety_002", reporter).has_new_head


def test_published_weights_have_rows_for_imagenets_classes_alone(reporter):
    assert has_class_rows("deit_tiny", "", ("n01440764", "n01443537"), reporter)
    assert not has_class_rows("deit_tiny", "", ("n01440764", "cat"), reporter)
    assert not has_class_rows("resnet18", "", ("n01440764",), reporter)


def test_the_same_classes_in_another_order_are_permuted(folder, reporter):
    root, model = folder()
    built = build(root, reporter, class_names=NAMES[::-1])
    assert torch.equal(built.model.head.weight, model.head.weight.flip(0))


def test_a_folder_as_starting_weights_of_a_name(folder, reporter):
    root, model = folder()
    built = build("deit_tiny_distilled", reporter, weights=str(root), img_size=64)
    assert isinstance(built.model, VisionTransformer)
    assert torch.equal(built.model.blocks[5].mlp.fc2.weight, model.blocks[5].mlp.fc2.weight)
    assert len(built.changes) == 2


def test_pretrained_without_weights_names_their_source(reporter):
    with pytest.raises(WeightsNotFound, match="--weights FILE"):
        build("deit_tiny", reporter, pretrained=True)


def test_timms_models_are_built_and_started_from_folders(tmp_path, reporter, noise):
    built = build("regnety_002", reporter)
    assert built.model_config.class_names == NAMES
    save_model(
        tmp_path / "net",
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )
    loaded = load_model(str(tmp_path / "net"), reporter=reporter)
    images = noise(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), built.model.eval()(images))
    again = build(tmp_path / "net", reporter, class_names=("x", "y"))
    assert torch.equal(again.model.stem.conv.weight, built.model.stem.conv.weight)
    assert again.model.head.fc.weight.shape[0] == 2


@pytest.mark.parametrize("model", ["test_resnet", "deit_tiny"])
def test_weights_keep_their_normalization_when_they_get_new_classes(model, tmp_path, reporter):
    """A teacher of mean and deviation 0.5 that is fitted to other classes sees its own images still."""
    first = build_model(
        model,
        class_names=["a", "b"],
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=reporter,
    )
    half = (0.5, 0.5, 0.5)
    model_config = replace(
        first.model_config,
        preprocessing=replace(first.model_config.preprocessing, mean=half, std=half),
    )
    save_model(
        tmp_path / "half", first.model.state_dict(), model_config, describe_layers(first.model)
    )
    for ref, weights in ((str(tmp_path / "half"), ""), (model, str(tmp_path / "half"))):
        second = build_model(
            ref,
            class_names=["x", "y", "z"],
            img_size=32,
            drop_path_rate=0.0,
            pretrained=False,
            weights=weights,
            distilled=None,
            reporter=reporter,
        )
        assert (second.model_config.preprocessing.mean, second.model_config.preprocessing.std) == (
            half,
            half,
        )


def test_a_file_that_is_no_model_is_named_as_such(tmp_path, reporter):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError, match=r"notes\.txt is no file of weights"):
        load_model(str(tmp_path / "notes.txt"), reporter=reporter)
