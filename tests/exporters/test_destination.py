"""An export gets its name when it is verified, and no link leads it elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deitctl.errors import ExportError
from deitctl.exporters.destination import choose_path, remove, write_draft
from deitctl.exporters.formats import FORMATS
from deitctl.paths import DiskError


@pytest.fixture
def yours(tmp_path) -> Path:
    """A folder of the user's, to which links lead."""
    folder = tmp_path / "yours"
    folder.mkdir()
    (folder / "model.safetensors").write_text("mine")
    return folder


def is_untouched(yours: Path) -> bool:
    return {p.name: p.read_text() for p in yours.iterdir()} == {"model.safetensors": "mine"}


def write_folder(path: Path) -> None:
    with write_draft(path) as draft:
        draft.mkdir()
        (draft / "model.safetensors").write_text("new")


def test_drafts_have_names_that_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(3):
        with write_draft(tmp_path / "m.onnx") as draft:
            assert draft.name == "m.onnx"  # some runtimes go by it
            assert str(os.getpid()) not in draft.parent.name
            names.add(draft.parent)
            draft.write_text("x")
    assert len(names) == 3
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_an_output_that_is_a_link_is_replaced_and_what_it_names_stays(tmp_path, yours):
    (tmp_path / "file.onnx").symlink_to(yours / "model.safetensors")
    with write_draft(tmp_path / "file.onnx") as draft:
        draft.write_text("new")
    (tmp_path / "folder").symlink_to(yours)
    write_folder(tmp_path / "folder")
    assert is_untouched(yours)
    assert not (tmp_path / "file.onnx").is_symlink()
    assert (tmp_path / "file.onnx").read_text() == "new"
    assert (tmp_path / "folder" / "model.safetensors").read_text() == "new"


def _reject(draft: Path) -> None:
    draft.mkdir()
    (draft / "model.safetensors").write_text("wrong")
    raise ExportError("it disagrees")


def test_a_rejected_export_replaces_a_link(tmp_path, yours):
    (tmp_path / "m.rejected").symlink_to(yours)
    with pytest.raises(ExportError, match="kept as"), write_draft(tmp_path / "m") as draft:
        _reject(draft)
    assert is_untouched(yours)
    assert (tmp_path / "m.rejected" / "model.safetensors").read_text() == "wrong"


def test_a_link_is_removed_and_not_what_it_names(tmp_path, yours):
    for target in (yours, yours / "model.safetensors", tmp_path / "nothing"):
        (tmp_path / "link").symlink_to(target)
        remove(tmp_path / "link")
        assert not (tmp_path / "link").is_symlink()
    assert is_untouched(yours)


def test_the_export_folder_of_a_run_may_not_be_a_link(tmp_path, yours):
    run = tmp_path / "run"
    run.mkdir()
    (run / "export").symlink_to(yours)
    with pytest.raises(DiskError, match="export is a symbolic link"):
        choose_path(str(run), "", FORMATS["onnx"])
    assert choose_path(str(run), str(tmp_path / "x.onnx"), FORMATS["onnx"]) == tmp_path / "x.onnx"


def test_a_full_disk_leaves_no_draft(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("old")

    def fill(draft: Path) -> None:
        draft.mkdir()
        (draft / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"), write_draft(tmp_path / "m") as draft:
        fill(draft)
    with (
        pytest.raises(DiskError, match=r"Cannot write \S+/m/x: "),
        write_draft(tmp_path / "m") as draft,
    ):
        raise DiskError.from_os_error(draft / "x", OSError(28, "No space left on device"))
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m" / "old").read_text() == "old"
