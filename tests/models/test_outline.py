"""A dry run learns what a repository's weights are from their header, and a file's from one reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.models import catalog, outline, timm_models
from deitctl.models.build import build_model, has_class_rows
from deitctl.models.checkpoint_io import read_checkpoint, save_model, save_tensors
from deitctl.models.factory import LoadedModel, find_architecture, load_model
from deitctl.models.introspect import describe_layers
from deitctl.models.sources import needs_download
from deitctl.models.vit import VisionTransformer
from tests.fake_hub import Hub, Repository, connect
from tests.models.test_state_dicts import foreign

NAMES = ("owl", "cat", "dog")


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deit: Callable[..., VisionTransformer]
) -> Iterator[Hub]:
    """A hub with a DeiT of deitctl's, of transformers' and in a pickle, and a model of timm's."""

    def publish(name: str, folder: Path) -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        served.repositories[f"me/{name}"] = Repository(False, {"main": files})

    with connect(monkeypatch, tmp_path) as served:
        net = deit(classes=3)
        config = replace(
            net.arch.to_model_config().at_size(32),
            num_classes=3,
            class_names=NAMES,
            descriptions=None,
        )
        save_model(tmp_path / "own", net.state_dict(), config, describe_layers(net))
        publish("own", tmp_path / "own")
        (tmp_path / "own" / "model.safetensors").unlink()
        torch.save(net.state_dict(), tmp_path / "own" / "pytorch_model.bin")
        publish("pickle", tmp_path / "own")
        theirs = deit("deit_tiny_distilled", classes=3).state_dict()
        foreign.write_transformers_folder(tmp_path / "hf", theirs, heads=3, classes=3)
        publish("hf", tmp_path / "hf")
        cnn = timm_models.create_model("test_resnet", num_classes=3, img_size=32)
        config = timm_models.read_model_config(cnn, "test_resnet", 3).at_size(32)
        save_model(tmp_path / "cnn", cnn.state_dict(), config, describe_layers(cnn))
        publish("cnn", tmp_path / "cnn")
        yield served


def list_cached() -> set[str]:
    return {path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*")}


def build(ref: str, reporter, **changes: object) -> LoadedModel:
    options = {"class_names": ("cat", "owl"), "img_size": 32, "weights": "", "distilled": None}
    return build_model(
        ref,
        drop_path_rate=0.0,
        pretrained=False,
        reporter=reporter,
        **{**options, **changes},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("ref", ["me/own", "hf-hub:me/own", "me/hf", "me/cnn", "me/pickle"])
def test_a_dry_run_fetches_no_weights_and_says_what_the_run_does(
    ref: str, hub: Hub, reporter
) -> None:
    assert needs_download(ref)
    has_rows = has_class_rows(ref, "", ("cat", "owl"), reporter)
    planned, described = (
        build(ref, reporter, download=False),
        load_model(ref, download=False, reporter=reporter),
    )
    assert planned.weights == ref.removeprefix("hf-hub:")
    assert not list_cached() & {"model.safetensors", "pytorch_model.bin"}
    fetched = [r for r in hub.requests if r.startswith("GET") and "model.safetensors" in r]
    assert all(request.endswith(" bytes=0-100000") for request in fetched)
    notes = list(reporter.notes)
    loaded = build(ref, reporter)
    assert (planned.changes, planned.has_new_head) == (loaded.changes, loaded.has_new_head)
    assert has_rows is not loaded.has_new_head
    assert planned.model_config == loaded.model_config
    assert described.model_config == load_model(ref, reporter=reporter).model_config
    assert len(reporter.notes) == 2 * len(notes)
    assert not needs_download(ref)


def test_weights_of_the_hub_that_do_not_fit_are_refused_before_they_are_fetched(
    hub: Hub, reporter
) -> None:
    with pytest.raises(ModelError, match="me/own holds deit_tiny, not deit_small"):
        build("deit_small", reporter, weights="me/own", download=False)
    with pytest.raises(ModelError, match="--classes names 2 classes, and me/own has 3"):
        build("me/own", reporter, start_classes=("a", "b"), download=False)
    with pytest.raises(ModelError, match="weights of another architecture"):
        build("test_vit", reporter, weights="me/cnn", download=False)
    del hub.repositories["me/own"].branches["main"]["model.safetensors"]
    with pytest.raises(WeightsNotFound, match="the hub has no readable me/own/model.safetensors"):
        build("me/own", reporter, download=False)
    assert "model.safetensors" not in list_cached()


def test_what_a_bare_file_is_comes_from_one_reading(
    deit: Callable[..., VisionTransformer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reporter,
) -> None:
    path, read = tmp_path / "w.ckpt", list[Path]()
    torch.save({"state_dict": deit(classes=2).state_dict()}, path)

    def count(file: Path):
        read.append(file)
        return read_checkpoint(file)

    monkeypatch.setattr(outline, "read_checkpoint", count)
    for _ in range(2):
        assert find_architecture(str(path), reporter) == catalog.find("deit_tiny")
        assert has_class_rows(str(path), "", ("cat", "owl"), reporter)
    assert read == [path]
    save_tensors(path, deit("deit_tiny_distilled", classes=3).state_dict())  # another file there
    assert not has_class_rows(str(path), "", ("cat", "owl"), reporter)
    assert len(read) == 2
