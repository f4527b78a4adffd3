"""Weights and configs that lie, inflate, run code or are absurd: docs/security.md, "Models"."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from deitctl.errors import ModelError
from deitctl.events import SilentReporter
from deitctl.inference.classifier import predict
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import (
    load_model_config,
    load_tensors,
    read_tensor_shapes,
    save_model,
    save_tensors,
)
from deitctl.models.factory import load_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import ModelConfig, to_timm_config

LAYERS = {"classifier": ("head",), "first_conv": "patch_embed.proj", "fixed_input_size": True}


def header(
    text: bytes | dict[str, Any], data: bytes = b"\0" * 64, length: int | None = None
) -> bytes:
    body = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "a header longer than the file": header({}, length=10**6),
    "a header of 2^63 bytes": header({}, length=2**63),
    "a header of gigabytes": header(b" " * 99, length=2**34),
    "offsets beyond the file": header({"a": entry([4096], [0, 16384])}),
    "offsets backwards": header({"a": entry([4], [16, 0])}),
    "tensors on each other": header(
        {"a": entry([4], [0, 16]), "b": entry([4], [8, 24])}, b"\0" * 24
    ),
    "a hole": header({"a": entry([4], [0, 16]), "b": entry([4], [32, 48])}, b"\0" * 48),
    "a shape that overflows": header({"a": entry([2**33, 2**33], [0, 64])}),
    "a negative side": header({"a": entry([-4], [0, 16])}),
    "a billion rows of nothing": header({"head.weight": entry([10**9, 0], [0, 0])}, b""),
    "a type that is none": header({"a": entry([4], [0, 16], "F99")}),
    "a name twice": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":3}'),
    "no object": header(b"[1,2]"),
    "deep nesting": header(b"[" * 100_000),
    "no text": header(b"\xff\xfe\x00\x01" * 9),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
def test_a_safetensors_file_that_lies_is_refused(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    for read in (load_tensors, read_tensor_shapes):
        if read is read_tensor_shapes and b"head.weight" in data:
            continue  # shapes alone take nothing
        with pytest.raises(
            ModelError, match=r"x\.safetensors is not a readable checkpoint"
        ) as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1


def test_a_header_of_a_hundred_megabytes_is_not_parsed(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10**8))
        file.truncate(10**8 + 8)
    begun = time.monotonic()
    with pytest.raises(ModelError, match="its header claims 100,000,000 bytes"):
        load_tensors(path)
    assert time.monotonic() - begun < 1


class Call:
    """Unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch WAS-HERE"),
        Call(eval, "open('WAS-HERE', 'w')"),
        Call(getattr, 3, "real"),
        Call(bytearray, 10**11),
    ],
    ids=["system", "eval", "getattr", "bytearray"],
)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_a_pickle_that_calls_is_refused_and_calls_nothing(value, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": value}}, "x.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(ModelError, match=r"x\.pth (holds more than weights|is not a)"):
        load_tensors(Path("x.pth"))
    assert not Path("WAS-HERE").exists()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_compressed_pickle_is_refused_before_it_inflates(tmp_path):
    plain = io.BytesIO(saved({"a": torch.zeros(10**6)}))
    with (
        zipfile.ZipFile(plain) as whole,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert (tmp_path / "x.pth").stat().st_size < 20_000
    with pytest.raises(ModelError, match="it is a compressed archive"):
        load_tensors(tmp_path / "x.pth")


def test_parts_that_lie_on_each_other_are_refused(tmp_path):
    """One megabyte that two thousand names of the directory stand for."""
    path, count = tmp_path / "x.pth", 2000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", b"\0" * 2**20)
        archive.filelist *= count  # type: ignore[misc]
    with pytest.raises(ModelError, match="claims to hold more bytes than it has"):
        load_tensors(path)


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.ones(2, device="meta"),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1).expand(10**9, 10**6),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_numbers_in_the_file_are_refused(kind, tmp_path):
    (tmp_path / "x.pth").write_bytes(saved({"head.weight": ODD[kind]()}))
    with pytest.raises(ModelError, match=r"x\.pth (is not a readable checkpoint|holds more)"):
        load_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "value", [{3: torch.ones(2)}, {"a": {("b",): torch.ones(2)}}, {("a",): torch.ones(2)}]
)
def test_names_that_are_no_names_are_refused(value, tmp_path):
    (tmp_path / "x.pth").write_bytes(saved(value))
    with pytest.raises(ModelError, match="is not a dictionary of tensors"):
        load_tensors(tmp_path / "x.pth")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, deit):
    """A sound model folder that no test may change."""
    model, tmp_path = deit(classes=3), tmp_path_factory.mktemp("sound")
    model_config = pin_img_size(
        model,
        ModelConfig(
            architecture="deit_tiny_patch16_224", num_classes=3, class_names=("a", "b", "c")
        ),
    )
    save_model(tmp_path / "m", model.state_dict(), model_config.at_size(32), describe_layers(model))
    return tmp_path / "m"


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of it, whose weights may be replaced and not written into."""
    (tmp_path / "m").mkdir()
    shutil.copy(sound / "config.json", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").symlink_to(sound / "model.safetensors")
    return tmp_path / "m"


def test_a_valid_folder_is_loaded(folder):
    assert load_model(str(folder), reporter=SilentReporter()).model_config.class_names == (
        "a",
        "b",
        "c",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(value, folder):
    state = load_tensors(folder / "model.safetensors")
    state["blocks.3.mlp.fc1.weight"][5, 7] = value
    save_tensors(folder / "model.safetensors", state)
    with pytest.raises(
        ModelError,
        match=r"'blocks\.3\.mlp\.fc1\.weight' has infinite or NaN values",
    ):
        load_model(str(folder), reporter=SilentReporter())


def test_a_score_that_is_not_finite_is_an_error_and_no_row(folder, tmp_path, make_image):
    state = load_tensors(folder / "model.safetensors")
    state["head.weight"] = torch.full_like(state["head.weight"], 3e38)
    save_tensors(folder / "model.safetensors", state)
    make_image().save(tmp_path / "x.png")
    [record] = predict([str(tmp_path / "x.png")], model=str(folder))
    assert record.predictions == ()
    assert "scores are not numbers" in str(record.error)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pos_embed", (1, 1, 192)),
        ("pos_embed", (1, 4, 192)),
        ("pos_embed", (5, 192)),
        ("pos_embed", (2, 5, 192)),
        ("cls_token", None),
        ("head.weight", (3,)),
        ("head.weight", (3, 7)),
        ("patch_embed.proj.weight", (192, 3)),
        ("blocks.99999.x", (1,)),
        ("blocks.x", (1,)),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(name, shape, folder):
    state = load_tensors(folder / "model.safetensors")
    state.pop(name, None)
    if shape is not None:
        state[name] = torch.ones(shape)
    save_tensors(folder / "model.safetensors", state)
    with pytest.raises(ModelError):
        load_model(str(folder), reporter=SilentReporter())


MODEL_CONFIG = to_timm_config(
    ModelConfig(architecture="deit_tiny_patch16_224", num_classes=2, class_names=("a", "b")),
    **LAYERS,
)
ABSURD: list[tuple[str, object]] = [
    ("num_classes", 10**9),
    ("num_classes", -1),
    ("num_classes", 1e999),
    ("num_classes", [2]),
    ("architecture", "hf-hub:evil/model"),
    ("architecture", "local-dir:/tmp/x"),
    ("architecture", "os.system"),
    ("architecture", {}),
    ("architecture", "a/../b"),
    ("architecture", "resnet18.no_such_tag"),
    ("architecture", "x" * 10**6),
    ("label_names", "ab"),
    ("label_names", [1, 2]),
    ("label_names", ["a"]),
    ("label_names", {"a": 1, "b": 2}),
    ("label_names", ["\ud800", "b"]),
    ("label_descriptions", [1, 2]),
    ("label_descriptions", 7),
    ("label_descriptions", {"a": ["x"]}),
    ("model_args", "x"),
    ("model_args", [1]),
    ("model_args", {"checkpoint_path": "/etc/passwd"}),
    ("model_args", {"embed_dim": 10**9}),
    ("model_args", {"pretrained_cfg": {"url": "http://evil/x.pth"}}),
    ("model_args", {"depths": [3] * 99}),
    ("model_args", {"num_classes": 10**9}),
    ("pretrained_cfg", [1]),
    ("pretrained_cfg", "x"),
    ("deitctl", []),
    ("deitctl", {"head": "os.system"}),
    ("pretrained_cfg.input_size", [3, 10**6, 10**6]),
    ("pretrained_cfg.input_size", []),
    ("pretrained_cfg.input_size", "x"),
    ("pretrained_cfg.crop_pct", 1e-9),
    ("pretrained_cfg.crop_pct", float("nan")),
    ("pretrained_cfg.crop_pct", -1),
    ("pretrained_cfg.crop_pct", "x"),
    ("pretrained_cfg.mean", [float("nan")] * 3),
    ("pretrained_cfg.mean", [0.5]),
    ("pretrained_cfg.mean", None),
    ("pretrained_cfg.std", [0, 0, 0]),
    ("pretrained_cfg.std", [-1, 1, 1]),
    ("pretrained_cfg.std", [float("inf")] * 3),
]


@pytest.mark.parametrize(
    ("key", "value"), ABSURD, ids=lambda v: str(v)[:40].encode("unicode_escape").decode()
)
def test_an_absurd_config_is_refused_in_one_short_line(key, value, folder):
    config = json.loads(json.dumps(MODEL_CONFIG))
    outer, _, inner = key.rpartition(".")
    (config[outer] if outer else config)[inner] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), reporter=SilentReporter())
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"architecture": ' + "[" * 200 + "]" * 200 + "}",
        "9" * 5000,
        "NaN",
        '"x"',
        "null",
    ],
)
def test_an_invalid_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError):
        load_model_config(tmp_path)


def test_a_config_that_is_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="no readable config"):
        load_model_config(tmp_path)


def timm_folder(tmp_path: Path, **changes: Any) -> Path:
    model = timm_models.create_model("test_resnet", num_classes=4)
    model_config = timm_models.read_model_config(model, "test_resnet", 4)
    save_model(tmp_path / "t", model.state_dict(), model_config, describe_layers(model))
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    (tmp_path / "t" / "config.json").write_text(json.dumps({**config, **changes}))
    return tmp_path / "t"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 900_000, "model_args": {}},
        {"architecture": "vit_giant_patch14_clip_224"},
        {"model_args": {"channels": [16_000] * 4}},
        {"model_args": {"nonsense": 3}},
        {"model_args": {"act_layer": "os.system"}},
        {"model_args": {"block": "os.system"}},
    ],
    ids=str,
)
def test_what_a_config_says_is_built_only_if_the_weights_have_it(changes, tmp_path):
    """A head of 900,000 classes, or a model of gigabytes, is compared with the weights before it is allocated."""
    begun = time.monotonic()
    with pytest.raises(ModelError):
        load_model(str(timm_folder(tmp_path, **changes)), reporter=SilentReporter())
    assert time.monotonic() - begun < 20


def test_files_and_addresses_in_a_config_are_not_followed(tmp_path):
    folder = timm_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {
        "file": "/etc/passwd",
        "url": "http://127.0.0.1:9/x.pth",
        "hf_hub_id": "evil/x",
        "custom_load": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(str(folder), reporter=SilentReporter()).model_config.num_classes == 4


@pytest.mark.parametrize(
    "ref",
    [
        "hf-hub:../x",
        "hf-hub:a/b/c",
        "hf-hub:",
        "hf-hub:/etc/passwd",
        "hf-hub:a/..",
        "hf-hub:a/b@main",
        "hf-hub:\ud800/b",
        "hf-hub:a/b\nc",
    ],
    ids=ascii,
)
def test_a_hub_name_that_is_no_name_is_refused(ref):
    with pytest.raises(ModelError):
        load_model(ref, reporter=SilentReporter())


@pytest.mark.parametrize(
    "ref",
    [
        "local-dir:/tmp",
        "timm/resnet18",
        "http://evil/x.pth",
        "resnet18.\x1b[2J",
        "a\0b",
        "",
        " ",
        "__import__('os')",
    ],
    ids=ascii,
)
def test_a_model_that_is_no_model_is_refused(ref):
    with pytest.raises(ModelError):
        load_model(ref, reporter=SilentReporter())


def test_an_old_pickle_without_torch_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(ModelError):
        load_tensors(tmp_path / "x.bin")
