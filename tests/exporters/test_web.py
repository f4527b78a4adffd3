from __future__ import annotations

import base64
import hashlib
import io
import tarfile

import pytest

from deitctl.errors import DataError, ExportError
from deitctl.exporters import web
from deitctl.exporters.web import (
    ARCHIVE,
    BINARY,
    PARTS,
    SCRIPT,
    VARIABLE,
    provide_runtime,
    read_runtime,
)
from deitctl.home import cache_root


def sha512(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


@pytest.fixture(scope="module")
def synthetic_images() -> bytes:
    """An archive laid out as npm's, with a text for each part."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in (*PARTS.values(), "package/README.md"):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return file.getvalue()


@pytest.fixture
def pinned(synthetic_images, monkeypatch):
    """The made-up archive is the one that is asked for; the registry is not there."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(web, "INTEGRITY", sha512(synthetic_images))

    def unreachable(url, **_):
        raise DataError(f"{url} cannot be fetched: no network.")

    monkeypatch.setattr(web, "fetch", unreachable)
    return synthetic_images


WANTED = {SCRIPT: PARTS[SCRIPT].encode(), BINARY: PARTS[BINARY].encode()}


@pytest.mark.parametrize("way", ["option", "variable", "registry", "by hand"])
def test_the_archive_is_taken_from_wherever_it_is_and_kept(
    way, pinned, reporter, tmp_path, monkeypatch
):
    downloaded = tmp_path / "downloaded.tgz"
    downloaded.write_bytes(pinned)
    if way == "variable":
        monkeypatch.setenv(VARIABLE, str(downloaded))
    elif way == "registry":
        monkeypatch.setattr(web, "fetch", lambda url, **_: pinned if url == web.ADDRESS else b"")
    elif way == "by hand":
        cache_root().mkdir()
        (cache_root() / ARCHIVE).write_bytes(pinned)
    provide_runtime(str(downloaded) if way == "option" else "", reporter)
    assert read_runtime() == WANTED
    downloaded.unlink()
    monkeypatch.delenv(VARIABLE, raising=False)
    provide_runtime("", reporter)
    assert [p.name for p in cache_root().iterdir()] == [ARCHIVE]


def test_without_network_one_line_says_what_to_fetch_and_where_to_put_it(pinned, reporter):
    with pytest.raises(ExportError) as refused:
        provide_runtime("", reporter)
    said = str(refused.value)
    assert "\n" not in said
    assert web.ADDRESS in said
    assert str(cache_root() / ARCHIVE) in said
    assert "--runtime" in said
    assert VARIABLE in said


@pytest.mark.parametrize("way", ["option", "registry", "cache"])
def test_another_archive_is_refused_and_not_kept(way, pinned, reporter, tmp_path, monkeypatch):
    other = tmp_path / "other.tgz"
    other.write_bytes(pinned + b" ")
    if way == "registry":
        monkeypatch.setattr(web, "fetch", lambda url, **_: pinned + b" ")
    elif way == "cache":
        cache_root().mkdir()
        (cache_root() / ARCHIVE).write_bytes(pinned[:-1])
    with pytest.raises(ExportError, match="its sha512 differs"):
        provide_runtime(str(other) if way == "option" else "", reporter)
    if way != "cache":
        assert not (cache_root() / ARCHIVE).exists()


@pytest.mark.parametrize("name", ["gone.tgz", ".", "a\0b"])
def test_an_archive_that_cannot_be_read_is_one_error(name, pinned, reporter, tmp_path):
    with pytest.raises(ExportError, match="cannot be read"):
        provide_runtime(str(tmp_path / name), reporter)


def test_a_cached_archive_that_was_changed_after_it_was_provided_is_not_unpacked(
    pinned, reporter, tmp_path
):
    (tmp_path / "given.tgz").write_bytes(pinned)
    provide_runtime(str(tmp_path / "given.tgz"), reporter)
    (cache_root() / ARCHIVE).write_bytes(pinned + b" ")
    with pytest.raises(ExportError, match="its sha512 differs"):
        read_runtime()
