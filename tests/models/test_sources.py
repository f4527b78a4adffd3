"""A model's name is a file, a folder, a repository of the hub or a published name, and never two of them."""

from __future__ import annotations

import os

import pytest
import torch

from deitctl.errors import DataError, ModelError, WeightsNotFound
from deitctl.evaluation.images import choose_images
from deitctl.models.checkpoint_io import save_tensors
from deitctl.models.factory import load_model
from deitctl.models.sources import get_repo_id, get_stem, is_weights_file, resolve_folder
from deitctl.paths import write_json
from tests.models.test_state_dicts import foreign


@pytest.mark.parametrize(
    ("ref", "repo_id"),
    [
        ("facebook/deit-tiny-patch16-224", "facebook/deit-tiny-patch16-224"),
        ("hf-hub:timm/deit_tiny_patch16_224.fb_in1k", "timm/deit_tiny_patch16_224.fb_in1k"),
        ("hf_hub:a/b", "a/b"),
        ("hf:a/b", "a/b"),
        ("https://huggingface.co/a/b", "a/b"),
        ("https://huggingface.co/a/b/tree/main", "a/b"),
        ("https://huggingface.co/a/b/blob/main/model.safetensors", "a/b"),
        ("a/b/tree/main", "a/b"),
        ("hf-hub:a/b@main", "a/b"),
        ("deit_tiny", ""),
        ("a/b.pth", ""),
        ("a/model.onnx", ""),
        ("./a/b", ""),
        ("/a/b", ""),
        ("a/b/c", ""),
        ("../a", ""),
        ("~/a", ""),
    ],
)
def test_a_name_of_owner_and_repository_is_the_hubs(ref, repo_id):
    assert get_repo_id(ref) == repo_id


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("hf-hub:a/b@v1.2", "revision 'v1.2' of a/b.*hf download a/b --revision v1.2"),
        ("https://huggingface.co/a/b/tree/refs", "revision 'refs'"),
        ("https://huggingface.co/a/b/resolve/main/x.onnx?download=true", "hf download a/b x.onnx"),
        ("a/b/blob/main/sub/w.pth", "is the page of one file"),
    ],
)
def test_revisions_and_pages_of_files_are_refused_with_what_to_type(ref, reason):
    with pytest.raises(ModelError, match=reason):
        get_repo_id(ref)


def test_a_path_below_a_folder_that_is_there_is_no_repository(tmp_path, monkeypatch, reporter):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert get_repo_id("runs/best") == ""
    with pytest.raises(ModelError, match="There is no model file or folder 'runs/best'"):
        resolve_folder("runs/best", reporter)
    with pytest.raises(WeightsNotFound, match="'run/best', and it cannot be loaded from the hub"):
        resolve_folder("run/best", reporter)


@pytest.mark.parametrize(
    ("ref", "stem"),
    [
        ("out/model_best.pth.tar", "model_best"),
        ("last.ckpt", "last"),
        ("runs/one/", "one"),
        ("facebook/deit-tiny-patch16-224", "deit-tiny-patch16-224"),
        ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_a_model_is_called_by_its_last_part(ref, stem):
    assert get_stem(ref) == stem


def test_a_file_with_the_name_of_a_model_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("deit_tiny", "resnet18", "weights", "last.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    found = [is_weights_file(ref) for ref in ("deit_tiny", "resnet18", "weights", "last.ckpt")]
    assert found == [False, False, True, True]
    assert is_weights_file("./deit_tiny")


def test_two_sources_of_weights_are_one_too_many(deit, tmp_path, reporter):
    path = str(tmp_path / "w")
    torch.save(deit().state_dict(), path)
    with pytest.raises(ModelError, match="has weights of its own"):
        load_model(path, weights=path, reporter=reporter)


@pytest.mark.parametrize("prefix", ["", "hf:", "https://huggingface.co/"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_of_transformers_is_read_from_the_hubs_cache(
    prefix, file, deit, tmp_path, monkeypatch, reporter
):
    from huggingface_hub import constants

    repo = tmp_path / "models--facebook--deit-small-model"
    snapshot = repo / "snapshots" / ("0" * 40)
    foreign.write_transformers_folder(snapshot, deit().state_dict(), heads=3, classes=5)
    if file != "model.safetensors":
        os.remove(snapshot / "model.safetensors")
        torch.save(foreign.to_transformers(deit().state_dict()), snapshot / file)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model(f"{prefix}facebook/deit-small-model", reporter=reporter)
    assert loaded.model_config.class_names[0] == "kind 0"
    assert loaded.model_config.preprocessing.crop_mode == "squash"


def test_a_folder_without_a_config_names_what_is_in_it(tmp_path, reporter):
    for name in ("last.pth.tar", "model_best.pth.tar", "summary.csv"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=r"It has last\.pth\.tar, model_best\.pth\.tar: name"):
        load_model(str(tmp_path), reporter=reporter)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It holds LoRA adapters"):
        load_model(str(tmp_path), reporter=reporter)


def test_a_folder_of_runs_is_refused_with_the_first_of_them(tmp_path, reporter):
    for fold in (1, 2, 3):
        (tmp_path / f"k/fold{fold}").mkdir(parents=True)
        (tmp_path / f"k/fold{fold}/run.toml").touch()
    with pytest.raises(ModelError, match="It has 3 runs: name one, .*/k/fold1"):
        load_model(str(tmp_path / "k"), reporter=reporter)
    (tmp_path / "k/folds.toml").touch()
    with pytest.raises(DataError, match="It has 3 runs of folds: name one, .*/k/fold1"):
        choose_images(str(tmp_path / "k"), ["deit_tiny"], reporter=reporter)


def test_a_folder_by_its_bare_name_says_what_is_in_it(tmp_path, monkeypatch, reporter):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_best.pth.tar").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no model 'out', and the folder .* It has model_best"):
        load_model("out", reporter=reporter)
    for weights in ("out", "./out"):
        with pytest.raises(ModelError, match=r"It has model_best\.pth\.tar: name the file"):
            load_model("deit_tiny", weights=weights, reporter=reporter)


@pytest.mark.parametrize("weights", ["{}", "{}/model-00002-of-00002.safetensors"])
@pytest.mark.parametrize("config", [False, True])
def test_shards_are_refused_as_shards(weights, config, deit, tmp_path, reporter):
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        save_tensors(tmp_path / name, {"a": torch.ones(2)})
    if config:
        write_json(tmp_path / "config.json", {"architecture": "deit_tiny_patch16_224"})
    with pytest.raises(ModelError, match=r"shard.*Join them"):
        load_model(weights.format(tmp_path), reporter=reporter)


def test_a_file_that_the_cache_knows_the_hub_has_not_is_not_asked_for(
    deit, tmp_path, monkeypatch, reporter
):
    from huggingface_hub import constants

    revision, repo = "1" * 40, tmp_path / "models--x--y"
    foreign.write_transformers_folder(
        repo / "snapshots" / revision, deit().state_dict(), heads=3, classes=5
    )
    (repo / "snapshots" / revision / "preprocessor_config.json").unlink()
    (repo / ".no_exist" / revision).mkdir(parents=True)
    (repo / ".no_exist" / revision / "preprocessor_config.json").touch()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked: list[int] = []
    monkeypatch.setattr("deitctl.models.weights.require_hub", lambda: asked.append(1))
    for _ in range(2):
        load_model("x/y", reporter=reporter)
    assert not asked
    assert "has no preprocessor_config.json" in reporter.warnings[0]
