"""Run folders out of an archive or a repository: docs/security.md, "Configurations and caches"."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.api import _draw_figures
from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.run_data import read_run_data
from deitctl.errors import DataError, DeitctlError, Interrupted, Signalled
from deitctl.training.incident import read_incident, write_incident
from deitctl.training.launch import resume, run_training, train_or_find
from deitctl.training.monitor import NON_FINITE, Incident
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import RECORD_CHECKSUM
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
PRECIOUS = "precious\n" * 200


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of this module, once they have been made."""
    return {}


@pytest.fixture
def stopped(
    kept: dict[str, Path], little_config: Make, little: Pair, tmp_path_factory, monkeypatch
) -> Path:
    """A copy of a run that was stopped after the first of two epochs."""
    if "stopped" not in kept:
        root = tmp_path_factory.mktemp("stopped") / "run"
        with monkeypatch.context() as patch:

            def stop(self: Trainer) -> None:
                raise Signalled(15)

            patch.setattr(Trainer, "fill_target_cache", stop)  # the last thing that an epoch does
            with pytest.raises(Interrupted):
                run_training(begin(little_config, root), datasets=little)
        kept["stopped"] = root
    return shutil.copytree(kept["stopped"], Path("run"))


def begin(little_config: Make, root: Path) -> TrainConfig:
    # timm's smallest model
    config = little_config("x", output_dir=str(root), model="test_vit")
    return replace(config, recipe=replace(config.recipe, epochs=2, pretrained=False))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Files of the user's, which a link in a run names."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("precious", "model.safetensors", "state.json", "record.json", "curves.png"):
        (folder / name).write_text(PRECIOUS)
    return folder


def is_untouched(home: Path) -> bool:
    contents = {path.name: path.read_text() for path in home.iterdir()}
    return len(contents) == 5 and set(contents.values()) == {PRECIOUS}


IN_PLACE = ["lock", "metrics.jsonl"]
FOLDERS = ["checkpoint", "checkpoint.new", "checkpoint.old", "figures", "incidents"]
REPLACED = [
    "launch_id",
    "result.json",
    "model.safetensors",
    "config.json",
    "checkpoint/model.safetensors",
    "checkpoint/state.json",
]


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)


@pytest.mark.parametrize("name", [*IN_PLACE, *FOLDERS])
def test_a_link_in_the_place_of_what_a_run_writes_into_is_refused(name, stopped, home, little):
    target = home / "precious" if name in IN_PLACE else home
    replace_by(stopped / name, lambda path: path.symlink_to(target))
    with pytest.raises(DeitctlError, match=rf"run/{name} is a symbolic link") as error:
        resume(stopped, datasets=little)
    assert len(str(error.value).splitlines()) == 1
    assert is_untouched(home)


def test_links_in_the_place_of_files_that_are_replaced_are_replaced(stopped, home, little):
    """By name, whatever they name: the link goes, and its target stays."""
    for name in ("launch_id", "result.json", "config.json", "model.safetensors"):
        replace_by(stopped / name, lambda path: path.symlink_to(home / "precious"))
    # none that can be guessed beforehand
    for number in range(os.getpid(), os.getpid() + 50):
        (stopped / f".model.safetensors.{number}").symlink_to(home / "precious")
    resume(stopped, datasets=little)
    assert is_untouched(home)
    assert not (stopped / "result.json").is_symlink()
    assert not (stopped / "model.safetensors").is_symlink()


def test_links_in_a_checkpoint_are_read_and_never_written(stopped, home, little, kept):
    for name in ("model.safetensors", "state.json"):
        file = stopped / "checkpoint" / name
        file.unlink()
        file.symlink_to(kept["stopped"] / "checkpoint" / name)
    before = (kept["stopped"] / "checkpoint" / "model.safetensors").read_bytes()
    resume(stopped, datasets=little)
    assert (kept["stopped"] / "checkpoint" / "model.safetensors").read_bytes() == before
    assert not (stopped / "checkpoint" / "model.safetensors").is_symlink()


def test_a_run_that_is_a_link_of_the_users_goes_on(stopped, little, tmp_path):
    shutil.move("run", tmp_path / "disk")
    Path("run").symlink_to("disk")
    assert resume(Path("run"), datasets=little).epochs == 2
    assert Path("run").is_symlink()
    assert (tmp_path / "disk" / "result.json").is_file()


def test_a_hard_link_of_the_log_is_refused_with_the_way_to_part_them(stopped, home, little):
    (stopped / "metrics.jsonl").unlink()
    os.link(home / "precious", stopped / "metrics.jsonl")
    with pytest.raises(DeitctlError, match=r"metrics\.jsonl is one of several names .* cp "):
        resume(stopped, datasets=little)
    assert is_untouched(home)


def test_a_hard_link_of_the_lock_is_not_written(stopped, home, little):
    (home / "precious").write_text("12345")  # as a lock has it
    (stopped / "lock").unlink()
    os.link(home / "precious", stopped / "lock")
    resume(stopped, datasets=little)
    assert (home / "precious").read_text() == "12345"


@pytest.mark.parametrize("name", [*IN_PLACE, *FOLDERS, *REPLACED, "split.csv", "run.toml"])
@pytest.mark.parametrize("kind", ["pipe", "file or folder"])
def test_another_kind_of_file_is_one_line_or_replaced_and_nothing_waits(
    kind, name, stopped, little
):
    path = stopped / name
    is_folder = path.is_dir()
    make: Callable[[Path], object] = os.mkfifo
    if kind != "pipe":
        make = Path.touch if is_folder else Path.mkdir
    replace_by(path, make)
    try:
        resume(stopped, datasets=little)
    except DeitctlError as error:
        assert len(str(error).splitlines()) == 1
        assert name.split("/")[0] in str(error) or "run" in str(error)


def test_incidents_are_written_through_no_link(stopped, home):
    incident = Incident(
        kind=NON_FINITE,
        step=7,
        lr=1.0,
        loss=1.0,
        grad_norm=1.0,
        recent_mean=1.0,
        keys=[],
        recent=[],
    )
    run = Run(stopped)
    (stopped / "incidents").mkdir()
    link = stopped / "incidents" / "step-0000007"
    link.symlink_to(home)
    with pytest.raises(DeitctlError, match=r"incidents/step-0000007 is a symbolic link"):
        write_incident(run, incident, [], [], {})
    assert is_untouched(home)
    link.unlink()
    # what a link in the checkpoint names would be copied to where the run goes
    (stopped / "checkpoint" / "ema.safetensors").unlink()
    (stopped / "checkpoint" / "ema.safetensors").symlink_to(home / "precious")
    (stopped / "checkpoint" / "more").symlink_to(home / "precious")
    record = write_incident(run, incident, [], [], {})
    copied = sorted(path.name for path in (record.parent / "checkpoint").iterdir())
    assert copied == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert read_incident(record.parent)["step"] == 7


def test_a_run_has_the_modes_that_the_umask_leaves(little_config, little):
    before = os.umask(0o077)
    try:
        root = run_training(begin(little_config, Path("private")), datasets=little).run
        _draw_figures(root)
    finally:
        os.umask(before)
    files = {str(p.relative_to(root)): stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*")}
    assert {"figures/curves.png", "checkpoint/state.json", "lock", "split.csv"} <= files.keys()
    assert {name: oct(mode) for name, mode in files.items() if mode & 0o077} == {}


@pytest.mark.parametrize("changes", [{"step": 1}, {"epoch": 2}, {"step": 6, "epoch": 0}])
def test_a_position_that_contradicts_the_losses_is_one_line(changes, stopped, little):
    """A sum of losses that is missing was found after the epoch, as KeyError."""
    file = stopped / "checkpoint" / "state.json"
    record = json.loads(file.read_text()) | changes
    del record[RECORD_CHECKSUM]
    file.write_text(json.dumps(record))
    with pytest.raises(DeitctlError) as error:
        resume(stopped, datasets=little)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"weights_fingerprint": 3, "finetuned": "no"}', "{", "\xff"]
)
def test_a_teachers_record_of_any_shape_is_passed_over(text, stopped, little):
    (stopped / "teacher.json").write_bytes(text.encode("latin-1"))
    assert resume(stopped, datasets=little).epochs == 2


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"run": "x", "seconds": 1, "best": {"top1": 1e999}}',
        '{"run": "x", "seconds": 1, "best": {"top1": 5}, "teacher": {"name": "t"}}',
        '{"run": "x", "seconds": 1, "best": {"top1": 5}, "heads": {"cls": "5"}}',
        '{"run": 3, "seconds": 1, "best": {"top1": 5}}',
    ],
)
def test_a_result_that_no_training_wrote_is_not_compared(
    text, stopped, little, little_config, reporter
):
    (stopped / "result.json").write_text(text)
    with pytest.raises(DeitctlError, match=r"run/result\.json is not what a training writes\."):
        train_or_find(begin(little_config, stopped), little, reporter)


def test_a_split_with_numbers_of_any_size_is_read_or_one_line(stopped):
    (rows := stopped / "split.csv").write_text(
        f"path,label,split,part,bytes,digest\na,b,train,all,{'9' * 100},{'f' * 100}\n"
    )
    assert read_run_data(stopped).rows.num_bytes == [int("9" * 100)]
    rows.write_text(f"path,label,split,part,bytes,digest\na,b,train,all,{'9' * 5000},0\n")
    with pytest.raises(DataError, match=r"split\.csv cannot be read") as error:
        read_run_data(stopped)
    assert len(str(error.value).splitlines()) == 1
