"""Pushed files are loaded back from the hub, nothing else is sent, refusals are one line. Against tests/fake_hub.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from huggingface_hub import constants
from onnx import helper

from deitctl import __version__
from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, DeitctlError, ExportError
from deitctl.events import SilentReporter
from deitctl.exporters.model_card import README, _make_seal, is_unedited
from deitctl.hub.push import PushResult, push
from deitctl.inference.classifier import predict
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.factory import load_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.recipes import DIGITS
from deitctl.settings import write_toml
from tests.fake_hub import READS, WRITES, Hub, connect, serve

# huggingface_hub 2.4 uploads with an argument that its transport no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with an empty cache and a token that may write."""
    with connect(monkeypatch, tmp_path) as served:
        monkeypatch.setenv("HF_TOKEN", WRITES)
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Path:
    built = build_model(
        "deit_tiny",
        class_names=("a", "b"),
        descriptions=("ant", "bee"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    save_model(
        tmp_path / "m",
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )
    return tmp_path / "m"


def names(result: PushResult) -> set[str]:
    return {file.path for file in result.files}


def scores(ref: str, make_image: str) -> list[float]:
    (record,) = predict([make_image], model=ref)
    assert record.error is None
    return [g.score for g in record.predictions]


def test_a_pushed_model_predicts_the_same_from_the_hub(
    hub: Hub, model: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "notes.txt").write_text("mine")
    (model / "checkpoint").mkdir()
    monkeypatch.delenv("HF_TOKEN")
    planned = push(str(model), "me/mine", dry_run=True)
    assert (hub.requests, planned.url, planned.commit) == ([], None, None)
    monkeypatch.setenv("HF_TOKEN", WRITES)
    result = push(str(model), "me/mine", message="first")
    assert planned.files == result.files
    assert result.bytes == sum(file.bytes for file in result.files)
    assert (result.url, result.revision) == (f"{hub.url}/me/mine", "main")
    there = hub.repositories["me/mine"]
    assert (there.private, there.messages, result.commit) == (
        False,
        ["first"],
        there.commit("main"),
    )
    sent = there.branches["main"]
    assert set(sent) == names(result) == {"config.json", "model.safetensors"}
    assert all(data == (model / name).read_bytes() for name, data in sent.items())
    # the one large file went through LFS
    assert list(hub.stored.values()) == [sent["model.safetensors"]]
    image = str(image_folder({"in": 1}) / "in" / "0.png")
    assert scores("hf-hub:me/mine", image) == scores(str(model), image)
    assert Path(constants.HF_HUB_CACHE, "models--me--mine").is_dir()


def test_the_command_line_pushes_and_another_machine_predicts(
    model: Path, image_folder, tmp_path: Path
) -> None:
    image = str(image_folder({"in": 1}) / "in" / "0.png")
    with serve() as hub:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        clean |= {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": WRITES,
            "HF_HOME": str(tmp_path / "here"),
        }

        def deitctl(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "deitctl", *arguments],
                env=clean | changed,
                capture_output=True,
                text=True,
                check=False,
            )

        done = deitctl("push", str(model), "me/mine", "--private", "--format", "json")
        assert (done.returncode, WRITES in done.stdout + done.stderr) == (0, False), done.stderr
        assert json.loads(done.stdout)["commit"] == hub.repositories["me/mine"].commit("main")
        there = deitctl(
            "predict", image, "--model", "hf-hub:me/mine", HF_HOME=str(tmp_path / "there")
        )
        assert there.returncode == 0, there.stderr
        assert [g["score"] for g in json.loads(there.stdout)["predictions"]] == pytest.approx(
            scores(str(model), image)
        )
        stranger = deitctl(
            "predict",
            image,
            "--model",
            "hf-hub:me/mine",
            HF_HOME=str(tmp_path / "else"),
            HF_TOKEN="",
        )
        assert stranger.returncode == 1
        assert "hf-hub:me/mine cannot be loaded" in stranger.stderr
        assert "Traceback" not in stranger.stderr


def test_a_run_is_pushed_as_a_verified_folder_with_a_model_card_and_without_its_checkpoint(
    hub: Hub, model: Path
) -> None:
    (model / "run.toml").write_text(
        write_toml(TrainConfig(data="digits", model="deit_tiny", recipe=DIGITS))
    )
    (model / "metrics.jsonl").write_text("{}\n")
    result = push(str(model), "me/run")
    sent = hub.repositories["me/run"].branches["main"]
    assert set(sent) == {"config.json", "model.safetensors", "deitctl.json", "README.md"}
    assert {file.path: file.bytes for file in result.files} == {
        name: len(data) for name, data in sent.items()
    }
    assert "Trained on `digits`" in sent["README.md"].decode()
    assert hub.repositories["me/run"].messages == [f"Upload m with deitctl {__version__}"]
    loaded, ours = (
        load_model(ref, reporter=SilentReporter()) for ref in ("hf-hub:me/run", str(model))
    )
    for name, value in ours.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert loaded.model_config.class_names == ours.model_config.class_names


def with_readme(model: Path, text: str) -> str:
    sealed = f"{text}\n"
    (model / README).write_text(f"{sealed}\n{_make_seal(sealed)}\n")
    assert is_unedited((model / README).read_text())
    return (model / README).read_text()


def test_a_model_card_edited_on_the_hub_is_kept_and_one_edited_here_is_pushed(
    hub, model, reporter
) -> None:
    first = with_readme(model, "ours")
    push(str(model), "me/mine", reporter=reporter)
    sent = hub.repositories["me/mine"].branches["main"]
    assert sent[README].decode() == first
    second = with_readme(model, "ours, newer")
    push(str(model), "me/mine", reporter=reporter)
    assert sent[README].decode() == second
    sent[README] = b"edited on the hub"
    result = push(str(model), "me/mine", reporter=reporter)
    assert sent[README] == b"edited on the hub"
    assert README not in names(result)
    assert reporter.notes == ["README.md was edited on the hub and stays as it is there."]
    (model / README).write_text("edited here")
    push(str(model), "me/mine", reporter=reporter)
    assert sent[README] == b"edited here"


def test_a_private_push_never_goes_to_a_public_repository(hub: Hub, model: Path) -> None:
    push(str(model), "me/hidden", private=True)
    assert hub.repositories["me/hidden"].private
    push(str(model), "me/hidden", private=True)
    push(str(model), "me/open")
    before = dict(hub.repositories["me/open"].branches["main"])
    (model / README).write_text("secret")
    with pytest.raises(DeitctlError, match="me/open exists and is public; nothing was pushed"):
        push(str(model), "me/open", private=True)
    assert hub.repositories["me/open"].branches["main"] == before


def test_a_missing_branch_is_created_and_main_stays(hub: Hub, model: Path) -> None:
    result = push(str(model), "me/mine", revision="trial")
    branches = hub.repositories["me/mine"].branches
    assert (result.revision, set(branches["trial"]), branches["main"]) == (
        "trial",
        names(result),
        {},
    )


def onnx_file(path: Path, **metadata: str) -> Path:
    """Write a network that gives back what it is given, with such metadata."""
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    )
    helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    return path


def test_an_exported_file_is_pushed_alone_and_loading_it_says_how(hub: Hub, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", format="onnx")
    (tmp_path / "other.onnx").write_bytes(b"")
    push(str(file), "me/files")
    assert hub.repositories["me/files"].branches["main"] == {"m.onnx": file.read_bytes()}
    with pytest.raises(
        DeitctlError, match=r"takes a repository with config.json.*hf download me/files FILE.onnx"
    ):
        load_model("hf-hub:me/files", reporter=SilentReporter())


def test_a_path_that_is_no_model_of_ours_is_refused_before_any_request(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    foreign, broken, young = tmp_path / "foreign", tmp_path / "broken", tmp_path / "young"
    for folder in (foreign, broken):
        shutil.copytree(model, folder)
    (foreign / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "deitctl"})
    )
    (broken / "model.safetensors").write_bytes(b"short")
    young.mkdir()
    (young / "run.toml").write_text("")
    model.rename(tmp_path / "m.rejected")
    for path, says in {
        foreign: "foreign was not written by deitctl.*--to timm",
        broken: "broken is no model folder that can be read",
        young: "young is a run without weights yet",
        tmp_path / "m.rejected": "has failed its verification",
        tmp_path: "is no export of deitctl",
        tmp_path / "gone": "There is nothing at",
        onnx_file(tmp_path / "theirs.onnx", producer="x"): "theirs.onnx is no export of deitctl's",
        foreign / "config.json": "config.json is no export of deitctl's",
    }.items():
        with pytest.raises(ExportError, match=says) as refused:
            push(str(path), "me/mine")
        assert "\n" not in str(refused.value)
    assert not any("/api/" in r for r in hub.requests)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "../x", "me/a b", "me/mine.git", ""])
def test_a_name_that_no_repository_has_is_refused(name: str, model: Path) -> None:
    with pytest.raises(ConfigError, match="they are OWNER/NAME"):
        push(str(model), name, dry_run=True)


@pytest.mark.parametrize(
    ("token", "broken", "says"),
    [
        ("", "", "There is no token of the hub here. Log in: hf auth login; or set HF_TOKEN."),
        (READS, "", "The token that is here may not write to me/mine."),
        (
            "hf_thatNobodyKnows",
            "",
            "The hub does not accept the token that is here. Log in again: hf auth login.",
        ),
        (WRITES, "/commit/", "The hub refuses me/mine: the disk is full."),
        (WRITES, "/lfs/", "The hub refuses me/mine: the disk is full."),
        (WRITES, "/repos/create", "The hub refuses me/mine: the disk is full."),
    ],
    ids=str,
)
def test_a_refusal_is_one_line_without_the_token(
    token, broken, says, hub, model, monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.broken = broken
    with pytest.raises(DeitctlError) as refused:
        push(str(model), "me/mine")
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)
    assert not token or token not in str(refused.value)
    assert not any(r.branches["main"] for r in hub.repositories.values())


def test_without_a_hub_it_reports_it(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DeitctlError,
        match=r"Nothing can be pushed: no connection to http://127.0.0.1:9\. --dry-run",
    ):
        push(str(model), "me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DeitctlError, match="HF_HUB_OFFLINE is set"):
        push(str(model), "me/mine")


def test_a_path_without_a_model_is_named_before_a_token_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ExportError, match="There is nothing at"):
        push(tmp_path / "nothing", "someone/model")
