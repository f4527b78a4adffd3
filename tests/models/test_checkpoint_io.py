"""Weights are written atomically and never unpickled as code."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deitctl.errors import DeitctlError, ModelError
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import (
    CHECKSUM,
    compute_checksum,
    load_model_config,
    load_tensors,
    read_metadata,
    read_tensor_shapes,
    require_finite,
    save_model,
    save_tensors,
)
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes, write_json


@pytest.fixture
def tensors(noise):
    return {
        "a.weight": noise(3, 4),
        "b": torch.arange(5),
        "half": noise(2).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
    }


def test_tensors_survive_bit_by_bit(tmp_path, tensors):
    save_tensors(tmp_path / "deep" / "x.safetensors", tensors)
    loaded = load_tensors(tmp_path / "deep" / "x.safetensors")
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype is v.dtype for k, v in tensors.items())
    assert read_tensor_shapes(tmp_path / "deep" / "x.safetensors")["a.weight"] == (3, 4)


def test_channels_last_and_sliced_tensors_are_saved_by_value(tmp_path, noise):
    values = {
        "c": noise(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "s": noise(4, 4)[:, 1:3],
    }
    save_tensors(tmp_path / "x.safetensors", values)
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in values.items())


def test_writing_leaves_nothing_beside_the_file(tmp_path, tensors):
    for _ in range(2):
        save_tensors(tmp_path / "x.safetensors", tensors)
        write_bytes(tmp_path / "y", b"abc")
        write_json(tmp_path / "z.json", {"ä": 1})
    assert sorted(os.listdir(tmp_path)) == ["x.safetensors", "y", "z.json"]
    assert json.loads((tmp_path / "z.json").read_text(encoding="utf-8")) == {"ä": 1}


def test_files_have_the_mode_that_the_umask_leaves(tmp_path, tensors):
    old = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x.safetensors", tensors)
        write_bytes(tmp_path / "y", b"")
    finally:
        os.umask(old)
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("x.safetensors", "y")] == [0o640, 0o640]


@pytest.mark.parametrize(
    "writer", [lambda p: write_bytes(p, b"new"), lambda p: save_tensors(p, {"x": torch.ones(2)})]
)
def test_a_failed_write_leaves_the_old_file_and_no_other(writer, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DeitctlError,
        match=r"Cannot write .*x\.safetensors: No space left on device\. Free some space",
    ):
        writer(path)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_a_disk_error(tmp_path, tensors):
    (tmp_path / "file").write_text("")
    for write in (lambda p: write_bytes(p, b""), lambda p: save_tensors(p, tensors)):
        with pytest.raises(DeitctlError, match="Cannot write"):
            write(tmp_path / "file" / "x")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/deitctl-was-here",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    marker = "/tmp/deitctl-was-here"
    for name, save in (
        ("new.pth", torch.save),
        ("old.pth", lambda v, p: p.write_bytes(pickle.dumps(v))),
    ):
        save({"model": Malicious()}, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name} (holds more than weights|is not a readable)"):
            load_tensors(tmp_path / name)
    assert not os.path.exists(marker)


class Settings:
    """Of somebody's own code, which reading would import."""


def test_a_checkpoint_with_an_unknown_object_is_refused_with_its_class(tmp_path, tensors):
    torch.save({"model": tensors, "args": Settings()}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"holds more than weights \(.*\.Settings\)") as error:
        load_tensors(tmp_path / "c.pth")
    assert "weights_only=False)['model']" in error.value.hint


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_of_training_checkpoints_are_removed(key, prefix, tmp_path, tensors):
    state = {prefix + k: v for k, v in tensors.items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "c.pth")
    assert set(load_tensors(tmp_path / "c.pth")) == set(tensors)


def test_prefixes_are_removed_from_safetensors(tmp_path, tensors):
    save_tensors(tmp_path / "x.safetensors", {f"module.{k}": v for k, v in tensors.items()})
    assert set(load_tensors(tmp_path / "x.safetensors")) == set(tensors)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.bin"])
@pytest.mark.parametrize(
    "data", [b"", b"not weights at all", b"\x80\x04]\x94.", b"\xff" * 64], ids=str
)
def test_what_is_no_checkpoint_is_refused(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=name):
        load_tensors(tmp_path / name)


def test_truncated_weights_are_refused(tmp_path, tensors):
    save_tensors(tmp_path / "x.safetensors", tensors)
    torch.save(tensors, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_tensors(tmp_path / name)
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        read_tensor_shapes(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"this is text, not an image", b"epoch,top1\n"])
def test_a_text_is_refused_with_what_is_expected(content, tmp_path):
    (tmp_path / "notes.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"notes\.pth is no file of weights\.") as error:
        load_tensors(tmp_path / "notes.pth")
    assert ".safetensors" in error.value.hint


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match="There is no weights file"):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="There is no weights file"):
        load_tensors(tmp_path)


@pytest.mark.parametrize("value", [[1, 2], {"a": 3}, torch.ones(2), {}])
def test_what_is_no_state_dict_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="is not a dictionary of tensors"):
        load_tensors(tmp_path / "x.pth")


LAYERS = {"classifier": ("head",), "first_conv": "patch_embed.proj", "fixed_input_size": True}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_nonfinite_weight_is_refused(bad):
    tensors = {
        "first": torch.ones(3),
        "second": torch.zeros(40, 50),
        "counts": torch.tensor([1, 2]),
    }
    require_finite(tensors, "here")
    tensors["second"][39, 49] = bad
    with pytest.raises(ModelError, match=r"here is unusable: 'second'"):
        require_finite(tensors, "here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_weights_whose_sum_overflows_are_accepted(dtype):
    largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert not largest.sum().isfinite()
    # has neither sums nor isfinite of its own
    require_finite({"small": torch.ones(4).to(torch.float8_e4m3fn)}, "here")
    with pytest.raises(ModelError, match="infinite or NaN"):
        require_finite({"small": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, "here")
    require_finite({"large": largest}, "here")


def test_model_folder_is_two_files(tmp_path, tensors):
    model_config = ModelConfig(architecture="x", num_classes=2, class_names=("a", "b"))
    save_model(tmp_path / "m", tensors, model_config, LAYERS)
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]
    assert load_model_config(tmp_path / "m") == model_config


@pytest.mark.parametrize(
    ("text", "what"), [("{", "not valid JSON"), ("[]", "is not a model's config"), ("{}", "is not")]
)
def test_a_broken_config_is_a_model_error(text, what, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=what):
        load_model_config(tmp_path)


def test_a_missing_config_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        load_model_config(tmp_path)


def test_a_config_that_is_not_text_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model_config(tmp_path)


METADATA = {
    "deitctl": '{"epoch": 3, "top1": 91.5}',
    "a": 'ä → 字 " \\ \n\t\u2028',
    "z": "",
    "format": "pt",
}


def test_metadata_in_any_order_gives_the_same_bytes(tmp_path, tensors):
    """The library itself writes them in an order of its own, another in every process or even call."""
    seen = set()
    for number, names in enumerate(itertools.permutations(METADATA)):
        path = tmp_path / f"{number}.safetensors"
        save_tensors(path, tensors, {name: METADATA[name] for name in names})
        seen.add(path.read_bytes())
    assert len(seen) == 1
    metadata = read_metadata(path)
    del metadata[CHECKSUM]
    assert metadata == METADATA
    loaded = load_file(path)
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    assert list(json.loads(header)["__metadata__"]) == sorted([*METADATA, CHECKSUM])


def test_a_model_folder_with_metadata_loads_in_timm(tmp_path):
    model = timm.create_model("test_vit", num_classes=3).eval()
    model_config = timm_models.read_model_config(model, "test_vit", 3)
    save_model(tmp_path / "m", model.state_dict(), model_config, describe_layers(model), METADATA)
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert read_metadata(tmp_path / "m" / "model.safetensors").items() >= METADATA.items()


def test_a_missing_or_damaged_file_has_no_metadata(tmp_path):
    (tmp_path / "x").write_bytes(b"nothing")
    assert read_metadata(tmp_path / "x") == read_metadata(tmp_path / "absent") == {}


def test_a_checksum_is_of_names_types_shapes_bytes_and_metadata(noise):
    tensors = {"a": noise(2, 3), "b": torch.tensor(2.5), "none": torch.zeros(0)}
    first = compute_checksum(tensors, {"format": "pt"})
    assert first == compute_checksum(dict(reversed(tensors.items())), {"format": "pt"})
    assert first == compute_checksum(tensors, {CHECKSUM: first, "format": "pt"})
    others = [
        {**tensors, "a": noise(2, 3) + 1},
        {**tensors, "a": tensors["a"].view(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {"c": tensors["a"], "b": tensors["b"], "none": tensors["none"]},
        {"a": tensors["a"], "b": tensors["b"]},
    ]
    checksums = [compute_checksum(other, {"format": "pt"}) for other in others]
    assert len({first, compute_checksum(tensors, {}), *checksums}) == len(others) + 2


def test_no_flipped_bit_of_a_file_gives_other_tensors(tmp_path, noise):
    """Each bit of a file, header and all: it is refused in one line, or means what it did."""
    path, saved = tmp_path / "x.safetensors", {"a": noise(2, 2), "b": torch.tensor(7)}
    save_tensors(path, saved, {"epoch": "3"})
    data, damaged = path.read_bytes(), 0
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            loaded = load_tensors(path)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1
            damaged += "is damaged: its checksum does not match. Restore it" in str(error)
        else:
            assert loaded.keys() == saved.keys()
            assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    assert damaged > 8 * 24  # all bits of the tensors, and some of the header's


def test_a_file_of_another_tool_has_no_checksum_and_is_read(tmp_path, noise):
    save_file({"a": (value := noise(2))}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_tensors(tmp_path / "x.safetensors")["a"], value)


def test_a_file_that_another_tool_wrote_again_is_refused_with_the_way_on(tmp_path, tensors):
    """It kept the metadata of another file: of the same key, if that had a common name, it might as well."""
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors)
    metadata = read_metadata(path)
    assert CHECKSUM == "deitctl.crc32"
    half = {name: value * 0.5 for name, value in load_tensors(path).items()}
    save_file(half, path, metadata=metadata)
    with pytest.raises(ModelError, match="If another tool wrote it again") as caught:
        load_tensors(path)
    assert "without 'deitctl.crc32' in its metadata" in caught.value.hint
    del metadata[CHECKSUM]
    save_file(half, path, metadata=metadata | {"crc32": "00000000"})  # somebody else's
    assert load_tensors(path).keys() == half.keys()


def test_want_of_memory_and_an_error_of_the_disk_are_no_damage(tmp_path, tensors, monkeypatch):
    save_tensors(tmp_path / "x.safetensors", tensors)
    for error, expected, text in (
        (MemoryError("none left"), MemoryError, "none left"),
        (OSError(5, "Input/output error"), ModelError, r"cannot be read: Input/output error\."),
    ):
        monkeypatch.setattr("deitctl.models.checkpoint_io.safe_open", Mock(side_effect=error))
        with pytest.raises(expected, match=text):
            load_tensors(tmp_path / "x.safetensors")
