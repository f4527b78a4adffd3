"""What trainers store beside weights is read as nothing at all; whatever else is refused with its class."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickletools
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from deitctl.errors import ModelError
from deitctl.models.pickles import DICTIONARIES, OBJECTS, StandIn, load_pickle

SETTINGS = argparse.Namespace(
    lr=5e-4,
    output=pathlib.PurePosixPath("out"),
    started=datetime.datetime(2026, 11, 30),
    nested=types.SimpleNamespace(best=np.float64(72.2), counts=collections.defaultdict(list)),
    array=np.arange(3),
)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_settings_of_a_trainer_become_stand_ins_and_weights_stay(new, tmp_path, noise):
    path, value = tmp_path / "x.pth", noise(2, 3)
    stored = {"model": {"a": value}, "args": SETTINGS, "best": np.float32(3)}
    torch.save(stored, path, _use_new_zipfile_serialization=new)
    loaded = load_pickle(path)
    assert torch.equal(loaded["model"]["a"], value)
    args = loaded["args"]
    assert isinstance(args, StandIn)
    assert not isinstance(args, argparse.Namespace)
    assert args.state["lr"] == 5e-4
    others = (args.state["output"], args.state["array"], args.state["nested"], loaded["best"])
    assert all(isinstance(x, StandIn) for x in others)
    # The list is for this read alone: other code's torch.load is as strict as before.
    with pytest.raises(Exception, match="argparse.Namespace"):
        torch.load(path, weights_only=True)


def test_files_are_read_in_several_threads_at_once(tmp_path, noise):
    torch.save({"model": {"a": noise(2)}, "args": SETTINGS}, tmp_path / "x")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(load_pickle, [tmp_path / "x"] * 80))
    assert all(isinstance(loaded["args"], StandIn) for loaded in read)


def test_no_stand_in_has_the_power_of_what_it_stands_for():
    """Whatever a pickle passes to one of them, it makes an empty object and nothing else."""
    from deitctl.models.pickles import _make_stand_ins

    stand_ins = _make_stand_ins()
    assert len(stand_ins) == len(OBJECTS) + len(DICTIONARIES)
    for stand_in, name in stand_ins:
        made = stand_in("os", "system", 10**9)
        assert type(made).__module__.startswith(("deitctl", "collections")), name
        assert made == {} if name in DICTIONARIES else vars(made) == {}
        assert not name.startswith(("os.", "posix", "sys.", "subprocess", "builtins.eval"))
        assert name not in ("builtins.getattr", "builtins.exec", "builtins.__import__")


def rename_global(path, old: str, new: str) -> None:
    """Let a pickle name another class, as a file of a library that is not installed does."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(old.encode(), new.encode()))
    assert any(new.replace("\n", " ") in str(arg) for arg in list_globals(members_of(path)))


def members_of(path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))


def list_globals(data: bytes) -> list[object]:
    return [arg for op, arg, _ in pickletools.genops(io.BytesIO(data)) if op.name == "GLOBAL"]


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.dictconfig\nDictConfig",
        "mmengine.logging.history_buffer\nHistoryBuffer",
        "pathlib._local\nPosixPath",
    ],
)
def test_objects_of_libraries_that_are_not_installed_are_read(name, tmp_path, noise):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": noise(2)}, "cfg": argparse.Namespace(lr=1)}, path)
    rename_global(path, "argparse\nNamespace", name)
    assert load_pickle(path)["model"]["a"].shape == (2,)


@pytest.mark.parametrize("name", ["yacs.config\nCfgNode", "easydict\nEasyDict"])
def test_dictionaries_of_other_libraries_become_plain_ones(name, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"cfg": collections.defaultdict(dict, lr=1)}, path)
    rename_global(path, "collections\ndefaultdict", name)
    assert dict(load_pickle(path)["cfg"]) == {"lr": 1}


class Settings:
    """Somebody's own."""


def test_any_other_class_is_refused_by_its_name(tmp_path):
    torch.save({"model": {}, "cfg": Settings()}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"holds more than weights \(.*test_pickles\.Settings\)"):
        load_pickle(tmp_path / "x.pth")


def test_a_whole_model_is_told_from_other_objects(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(ModelError, match="holds a whole model .*Linear") as error:
        load_pickle(tmp_path / "x.pth")
    assert "state_dict()" in error.value.hint


def test_a_flipped_bit_in_an_archive_is_refused(tmp_path, noise):
    path = tmp_path / "x.pth"
    torch.save({"a": noise(2, 64)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(noise(2, 64).numpy().tobytes()) + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: the checksum of 'x/data/0' in it does not"):
        load_pickle(path)


def test_an_archive_that_was_saved_without_checksums_is_read(tmp_path, noise):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": noise(2)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load_pickle(tmp_path / "x.pth")["a"], noise(2))


def test_a_protocol_that_is_not_read_is_named(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(ModelError, match="pickle_protocol=2 is read"):
        load_pickle(tmp_path / "x.pth")
