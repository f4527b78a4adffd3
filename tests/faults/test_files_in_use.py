"""Files that a command uses and somebody cuts or writes over: no bus error, one line, and the state is saved."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data import index
from deitctl.data.readers.folder import open_folder
from deitctl.errors import DataChanged
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import save_tensors
from deitctl.packing.pack import pack
from deitctl.recipes import DIGITS
from deitctl.training.launch import run_training
from deitctl.training.run_dir import Run


def make_data(kind: str, folder: Path) -> Path:
    if kind == "shards":
        packed = folder.with_name("packed")
        pack(str(folder), str(packed), workers=0)
        return packed / "all-000000.tar"
    path = folder.with_suffix(f".{kind}")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=".")
    return path


CHANGES = {
    "cut": lambda path: os.truncate(path, 300),
    "written over": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


class ChangesTheData(SilentReporter):
    """Changes a file when the first epoch is over."""

    def __init__(self, change: Callable[[Path], object], path: Path) -> None:
        self.change, self.path = change, path

    def note(self, text: str) -> None:
        if text.startswith("epoch 1/"):
            self.change(self.path)


@pytest.mark.parametrize(
    ("kind", "change", "workers"),
    [("shards", "cut", 0), ("shards", "written over", 1), ("tar", "cut", 0)],
)
def test_training_saves_and_says_that_its_data_were_changed(
    kind, change, workers, image_folder, tmp_path
):
    file = make_data(kind, image_folder({"a": 10, "b": 10}))
    recipe = replace(DIGITS, img_size=16, epochs=9, batch_size=8)
    config = TrainConfig(
        model="test_vit",
        data=str(file if kind == "tar" else file.parent),
        recipe=recipe,
        precision="fp32",
        workers=workers,
        save_every="1h",
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(DataChanged, match=r"\.tar was changed while in use\.") as stopped:
        run_training(config, reporter=ChangesTheData(CHANGES[change], file))
    assert "deitctl train --resume" in stopped.value.hint
    assert Run(tmp_path / "run", writes=False).checkpoint.is_dir()


READER = """
import os, sys
from pathlib import Path
from deitctl.data import index
from deitctl.data.readers.folder import open_folder
from deitctl.data.readers.packed_shards import INDEX, open_packed
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import load_tensors
index.MIN_IMAGES = index.MIN_AGE_NS = 1
folder, packed, weights = map(Path, sys.argv[1:])
indexed, state = open_folder(folder, SilentReporter()), load_tensors(weights)
(opened,) = open_packed(packed).values()
assert type(indexed.labels).__name__ == "StoredArray"
for path in (index.get_index_path(folder), packed / INDEX, weights):
    os.truncate(path, 0)
names = [dataset.name(i) for dataset in (indexed, opened) for i in range(len(dataset.labels))]
print(len(names), sum(int(dataset.labels.sum()) for dataset in (indexed, opened)), float(state["w"].sum()))
"""


def test_what_was_read_survives_files_that_are_cut_to_nothing(
    image_folder, tmp_path, monkeypatch, noise
):
    """The index of names, the index of shards, and weights: in a process that a bus error would end."""
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    monkeypatch.setattr(index, "MIN_AGE_NS", 1)
    folder = image_folder({"a": 10, "b": 10})
    packed, weights = make_data("shards", folder).parent, tmp_path / "w.safetensors"
    values = noise(300, 300)
    save_tensors(weights, {"w": values})
    open_folder(folder, SilentReporter())
    process = subprocess.run(
        [sys.executable, "-c", READER, folder, packed, weights],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    num_names, num_labels, total = process.stdout.split()
    assert (int(num_names), int(num_labels)) == (40, 20)
    assert float(total) == pytest.approx(float(values.sum()), abs=1e-2)
