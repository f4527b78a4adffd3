"""Configurations, records and caches that are anything but: docs/security.md, "Configurations" and "Caches"."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.distillation import targets
from deitctl.distillation.target_cache import DAMAGED, open_cache
from deitctl.distillation.targets import TargetCodec
from deitctl.errors import ConfigError, DeitctlError, TeacherError
from deitctl.paths import read_json, read_regular
from deitctl.recipes import DIGITS
from deitctl.settings import from_dict, override, read_toml, to_dict, write_toml
from deitctl.training.configure import check

RUN = TrainConfig(model="deit_tiny", data="digits", recipe=DIGITS)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "a = " + "{a=" * 50_000,
        ".".join("a" * 20_000) + " = 1",
        "a = 1\na = 2",
        'a = "\\ud800"',
        "\0",
        "a",
        "model = " + "9" * 5000,
        "a = 1e999999",
        "[" * 9,
        "= 1",
        "a = 1979-99-99",
        "model = 'x'\n" * 2,
    ],
    ids=lambda t: t[:20].encode("unicode_escape").decode(),
)
def test_a_toml_that_is_none_or_no_run_is_one_line(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        from_dict(TrainConfig, read_toml(path), str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_toml_that_is_a_pipe_a_folder_or_endless_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name, why in (
        ("pipe", "a pipe"),
        ("zero", "a device"),
        ("loop", "Too many levels"),
        ("", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=f"Cannot read .*{why}"):
            read_toml(tmp_path / f"{name}.toml" if name else tmp_path)
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ConfigError, match="it has 1,000,000,000 bytes"):
        read_toml(tmp_path / "huge.toml")


WRONG = [
    ("recipe.epochs", 10**30),
    ("recipe.epochs", True),
    ("recipe.epochs", []),
    ("recipe.epochs", {"a": 1}),
    ("recipe.epochs", 1.5),
    ("recipe.batch_size", 10**9),
    ("recipe.img_size", 10**6),
    ("recipe.optim.lr", float("inf")),
    ("recipe.optim.lr", float("nan")),
    ("recipe.optim.lr", 10**400),
    ("recipe.optim.lr", "0x1"),
    ("recipe.augment.repeated_aug", 10**12),
    ("recipe.augment.crop_scale", [0.1]),
    ("recipe.augment.crop_scale", {"a": 1, "b": 2}),
    ("recipe.augment.crop_scale", [[[[]]], 1]),
    ("model", ["x"]),
    ("model", {"a": "b"}),
    ("model", 7),
    ("data", None),
    ("distill", "x"),
    ("distill", [1]),
    ("recipe", "x"),
    ("recipe.freeze", "__class__"),
    ("recipe.freeze", []),
    ("recipe.pretrained", 7),
    ("seed", "\ud800"),
    ("seed", "9" * 5000),
    ("recipe.augment.hflip", 2),
    ("recipe.augment.rand_augment", "os.system"),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda v: ascii(v)[:30])
def test_a_setting_of_another_kind_or_size_is_one_short_line(key, value):
    with pytest.raises(ConfigError) as caught:
        check(override(RUN, {key: value}))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    values = to_dict(RUN)
    *outer, last = key.split(".")
    inner = values
    for name in outer:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(ConfigError):
        check(from_dict(TrainConfig, values, "run.toml"))


@pytest.mark.parametrize(
    "key", ["__class__", "__class__.__init__", "recipe.__dict__", "", ".", "recipe.", "a" * 10**6]
)
def test_a_setting_that_is_none_of_ours_is_not_set(key):
    with pytest.raises(ConfigError, match="There is no setting"):
        override(RUN, {key: "1"})


def test_a_name_from_a_configuration_is_kept_as_text(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(write_toml(replace(RUN, model="../../x\n\x1b[2J", data='"; rm -rf ~')))
    assert from_dict(TrainConfig, read_toml(path), "run.toml").model == "../../x\n\x1b[2J"


def test_json_of_another_shape_is_refused_by_depth_and_size(tmp_path):
    path = tmp_path / "x.json"
    for text in (
        "[" * 100_000,
        "[" * 100 + "]" * 100,
        "{",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
        "9" * 5000,
    ):
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match="."):
            read_json(path)
    path.write_bytes(b"[" * 50 + b"]" * 50)
    assert read_json(path)
    with pytest.raises(OSError, match="more than 9"):
        read_regular(path, 9)


HARD, SOFT, FULL = TargetCodec("hard", 5), TargetCodec("soft", 9, 3), TargetCodec("soft", 5, 5)
STAMP = {"teacher": "t", "num_classes": 5}


@pytest.fixture
def cache(tmp_path):
    def make(codec: TargetCodec = HARD, data: bytes | None = None, stamp: object = STAMP):
        root = tmp_path / "cache"
        root.mkdir(exist_ok=True)
        (root / "cache.json").write_text(json.dumps(stamp))
        if data is not None:
            (root / "view-00000.bin").write_bytes(data)
        return open_cache(root, STAMP, codec, 4)

    return make


@pytest.mark.parametrize(
    "stamp",
    [
        [],
        3,
        None,
        "x",
        {},
        {"teacher": {"a": {}}},
        {"teacher": "x" * 10**6},
        {"teacher": [[[1]]], "x": 1e999},
    ],
    ids=lambda s: str(s)[:20],
)
def test_a_malformed_stamp_is_refused_in_one_short_line(stamp, cache):
    with pytest.raises(TeacherError) as caught:
        cache(stamp=stamp)
    assert len(str(caught.value)) < 600
    assert len(str(caught.value).splitlines()) == 1


def test_a_stamp_that_is_a_pipe_or_nested_too_deeply_is_refused(tmp_path):
    os.mkfifo(tmp_path / "cache.json")
    with pytest.raises(TeacherError, match="cannot be read"):
        open_cache(tmp_path, STAMP, HARD, 4)
    (tmp_path / "cache.json").unlink()
    (tmp_path / "cache.json").write_text("[" * 100_000)
    with pytest.raises(TeacherError, match="nested too deeply"):
        open_cache(tmp_path, STAMP, HARD, 4)


def test_labels_beyond_the_number_of_classes_are_missing_targets(cache):
    labels = np.array([6, 65534, 0], np.uint16)
    records = np.stack([targets._compute_hard_checksums(labels), labels], axis=1)
    opened = cache(HARD, records.tobytes() + struct.pack("<2H", DAMAGED, 1))
    assert opened.missing_indices(0).tolist() == [0, 1, 2]
    assert opened.damaged_indices(1) == {3}


def record(body: list[int]) -> bytes:
    """A soft record with a fitting checksum."""
    row = np.array([body], dtype=np.uint16)
    return np.concatenate([SOFT._compute_checksums(row)[:, None], row], axis=1).tobytes()


def test_crafted_soft_records_are_missing_targets(cache):
    half = int(np.float16(0.5).view(np.uint16))
    bad = [
        [9, 1, 2, half, 0, 0],
        [0, 1, 2, 0x7E00, 0, 0],
        [0, 1, 2, 0x7C00, 0, 0],
        [0, 1, 2, half | 0x8000, 0, 0],
    ]
    opened = cache(SOFT, b"".join(record(b) for b in bad))
    assert opened.missing_indices(0).tolist() == [0, 1, 2, 3]
    opened = cache(
        FULL,
        b"".join(
            record(b)
            for b in ([half, 0, 0, 0, 0x7C01], [half] * 5, [0xBC00] * 5, [half, 0, 0, 0, 0])
        ),
    )
    records, valid = opened.read([(0, i) for i in range(4)])
    assert valid.tolist() == [False, True, False, True]
    assert torch.allclose(FULL.decode(records[valid]).sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("size", [0, 2, 6, 9, 4096])
def test_a_view_of_another_size_keeps_its_complete_records(size, cache):
    record = HARD.encode(torch.eye(5)[:1]).tobytes()
    opened = cache(HARD, (record * 1024)[:size])
    assert len(opened.cached_indices(0)) == min(4, size // 4)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling", "device"])
def test_a_view_that_is_no_regular_file_is_neither_read_nor_written(kind, cache, tmp_path):
    opened, path, precious = cache(), tmp_path / "cache" / "view-00000.bin", tmp_path / "precious"
    precious.write_bytes(b"precious")
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(precious),
        "dangling": lambda: path.symlink_to(tmp_path / "new"),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(DeitctlError, match=r"view-00000\.bin is a"):
        opened.write([(0, 0)], HARD.encode(torch.eye(5)[:1]))
    with pytest.raises(DeitctlError, match=r"view-00000\.bin is a"):
        opened.read([(0, 0)])
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "a\0b"):
        with pytest.raises(DeitctlError, match="."):
            open_cache(root, STAMP, HARD, 4)


def test_settings_survive_what_is_refused():
    assert asdict(override(RUN, {"seed": "3"}))["seed"] == 3
