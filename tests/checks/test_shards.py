"""Shards are compared with the checksums that `pack` recorded."""

from __future__ import annotations

import pytest

from deitctl.checks.check import check
from deitctl.checks.shards import check_shards
from deitctl.events import SilentReporter
from deitctl.packing.pack import pack


@pytest.mark.parametrize("form", ["wds", "parquet"])
def test_a_changed_or_missing_shard_is_named(form, image_folder, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "x"
    pack(str(image_folder({"ant": 2, "bee": 2})), str(out), to=form, workers=0)
    shard = next(path for path in out.rglob("*") if path.suffix in (".tar", ".parquet"))
    assert check_shards(str(out), SilentReporter()) == []
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for ref in (out, shard.parent, shard):
        (issue,) = check_shards(str(ref), SilentReporter())
        assert (issue.code, issue.severity, issue.count) == ("changed_shard", "error", 1)
        assert issue.examples == (str(shard),)
    assert "changed_shard" in {issue.code for issue in check(str(out), workers=0).issues}
    shard.unlink()
    (issue,) = check_shards(str(out), SilentReporter())
    assert issue.examples == (f"{shard}: No such file or directory",)


@pytest.mark.parametrize(
    "info", ["{}", "[]", '{"shards": [{"name": "/etc/hosts", "sha256": "0"}]}', '{"shards": 1}']
)
def test_a_manifest_of_others_names_no_shards(info, tmp_path):
    (tmp_path / "_info.json").write_text(info)
    assert check_shards(str(tmp_path), SilentReporter()) == []
