"""A file is judged by its content: read, or refused for what it is with the way on, in one line."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.weight_files import PICKLE, SAFETENSORS, ZIP, identify_weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22883348\n"
SHARDS = json.dumps({"metadata": {}, "weight_map": {"a": "1-of-2", "b": "2-of-2"}}).encode()
REFUSED = {
    "nothing": (b"", "is empty"),
    "a pointer": (LFS, "is a Git LFS pointer.*git lfs pull"),
    "a page": (b"\n<!doctype html><html><body>Sign in", "is an HTML page"),
    "an error of a bucket": (b"<?xml version='1.0'?><Error/>", "is an XML text"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
    "Flax": (b"\x81\xa6params\x82\xa7Dense_0" + bytes(32), "is a MessagePack file"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch" + bytes(32), "is an ONNX file.*eval` can run"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(32), "is a GGUF file"),
    "gzip": (gzip.compress(b"weights"), "is compressed by gzip.*gunzip"),
    "an image": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(32), "is a JPEG image"),
    "shards": (SHARDS, "is the index of weights in 2 files"),
    "a config": (b'{"architecture": "deit_tiny_patch16_224"}', "is a JSON text"),
    "a plain pickle": (
        pickle.dumps({"a": [1, 2]}),
        "is a Python pickle, and not one of torch.save",
    ),
}


@pytest.mark.parametrize("suffix", ["", ".pth", ".safetensors", ".pth.tar", ".bin"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_no_weights_is_refused_for_what_it_is_whatever_its_name(
    kind, suffix, tmp_path
):
    content, reason = REFUSED[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as error:
        load_tensors(path)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.hint


@pytest.mark.parametrize(
    "name", ["weights", "w.pth.tar", "w.ckpt", "w.bin", "w.pt", "w.safetensors"]
)
def test_weights_are_read_whatever_their_name(name, tmp_path, noise):
    state, path = {"a": noise(2, 3)}, tmp_path / name
    for kind, write in (
        (SAFETENSORS, lambda: save_file(state, path)),
        (ZIP, lambda: torch.save({"model": state}, path)),
        (PICKLE, lambda: torch.save(state, path, _use_new_zipfile_serialization=False)),
    ):
        write()
        assert identify_weights(path) == kind
        assert torch.equal(load_tensors(path)["a"], state["a"])


@pytest.mark.parametrize("length", [0x4B50, 0x4380, 0x447B], ids=["PK", "pickle", "JSON"])
def test_the_length_of_a_safetensors_header_does_not_make_it_another_file(length, tmp_path, noise):
    save_file({"a": noise(2, 3)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].ljust(length)
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header + data[end:])
    assert identify_weights(tmp_path / "x") == SAFETENSORS


@pytest.mark.parametrize("content", [b"\x08", b"\xde", b"{", b"PK", b"\x80", b"\x80\x02"])
def test_a_file_of_one_or_two_bytes_is_no_crash(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_tensors(tmp_path / "x")
    assert "index out of range" not in error.value.message


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


def test_archives_are_refused_by_what_is_in_them(tmp_path):
    path = tmp_path / "x.pth"
    np.savez(tmp_path / "x.npz", kernel=np.ones(3))
    (tmp_path / "x.npz").rename(path)
    with pytest.raises(ModelError, match=r"is a NumPy archive \(.npz\).*--model vit_base"):
        load_tensors(path)
    for names, reason in (
        (["m/config.json", "m/model.safetensors"], r"is a ZIP archive of 2 files \(m/config.json"),
        (["m/code/__torch__.py", "m/constants.pkl", "m/data.pkl"], "is a TorchScript program"),
        (["x/archive_format", "x/models/model.json"], "is a torch.export program"),
        (["config.json", "model.weights.h5"], "is a Keras model"),
    ):
        write_zip(path, *names)
        with pytest.raises(ModelError, match=reason):
            load_tensors(path)


def test_a_tar_of_torch_before_0_1_10_is_told_from_any_other(tmp_path):
    for names, reason in (
        (
            ["sys_info", "pickle", "storages", "tensors"],
            "as torch.save wrote it before torch 0.1.10",
        ),
        (["model/config.json"], "is a tar archive. Unpack it"),
    ):
        with tarfile.open(tmp_path / "x.pth.tar", "w") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(ModelError, match=reason):
            load_tensors(tmp_path / "x.pth.tar")
