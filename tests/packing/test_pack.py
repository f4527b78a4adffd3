"""`deitctl pack`: the same data in shards, written atomically, and verified against their source."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

import deitctl
from deitctl.checks.check import SplitSize, check
from deitctl.cli.app import app
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.open import open_dataset
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import ConfigError, DataChanged, DataError, LoaderLost, Signalled
from deitctl.events import SilentReporter, Task
from deitctl.packing import samples as packing
from deitctl.packing.pack import pack
from deitctl.packing.verify import verify_pack

COUNTS = {"train/ant": 6, "train/bee": 5, "val/ant": 2, "val/bee": 1}


@pytest.fixture
def root(tmp_path, make_image) -> Path:
    """Photographs of 48 x 36 pixels, as JPEG."""
    seed = 0
    for folder, count in COUNTS.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(count):
            seed += 1
            make_image(48, 36, seed % 20).save(
                tmp_path / "photos" / folder / f"{number}.jpg", quality=98
            )
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path) -> str:
    return str(tmp_path / "x")


def read_all(folder: str | Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


def count_bytes(folder: str) -> int:
    return sum(map(len, read_all(folder).values()))


def read_shards(folder: str | Path) -> bytes:
    return b"".join(data for name, data in read_all(folder).items() if name.endswith(".tar"))


def flip(folder: str | Path, at: int = 3000) -> None:
    """Change a byte of the first image."""
    shard = min(Path(folder).glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)


def hidden(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_result_counts_copied_and_encoded_images(root, out):
    result = deitctl.pack(str(root), out)
    before = sum(f.stat().st_size for f in root.rglob("*.jpg"))
    assert result.splits == {
        "train": SplitSize(num_images=11, num_classes=2),
        "val": SplitSize(num_images=3, num_classes=2),
    }
    assert (result.num_copied, result.num_encoded, result.unreadable) == (14, 0, ())
    assert (result.source_bytes, result.bytes) == (before, count_bytes(out))
    small = pack(str(root), out, max_size=18)
    assert (small.num_copied, small.num_encoded, small.source_bytes) == (0, 14, before)
    assert small.bytes == count_bytes(out) < result.bytes


@pytest.mark.parametrize(
    "options", [{}, {"max_size": 18}, {"raw": True}], ids=["copy", "smaller", "raw"]
)
def test_the_same_input_gives_the_same_bytes_whatever_the_processes(options, root, tmp_path):
    written = []
    for number, workers in enumerate((0, 0, 2)):
        path = tmp_path / str(number)
        pack(str(root), str(path), workers=workers, **options)
        written.append(read_all(path))
    assert written[0] == written[1] == written[2]


def table_of(root: Path) -> str:
    path = root.parent / "table.csv"
    rows = [
        (f.relative_to(root.parent), f.parent.name, f.parent.parent.name)
        for f in sorted(root.rglob("*.jpg"))
    ]
    path.write_text("path,label,split\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def tar_of(root: Path) -> str:
    with tarfile.open(root.with_suffix(".tar"), "w") as archive:
        archive.add(root, arcname="around")
    return str(root.with_suffix(".tar"))


def pack_of(root: Path) -> str:
    pack(str(root), str(root.parent / "first"))
    return str(root.parent / "first")


@pytest.mark.parametrize("make", [str, tar_of, pack_of, table_of])
def test_all_kinds_of_data_can_be_packed_and_checked(make, root, out, reporter):
    data = make(root)
    pack(data, out)
    assert verify_pack(data, out).num_different == 0
    for ours, theirs in zip(
        *(open_for_training(Source(d), reporter=reporter) for d in (out, data)), strict=True
    ):
        assert fingerprint_dataset(ours, reporter) == fingerprint_dataset(theirs, reporter)


def test_folder_tar_and_pack_give_the_same_pack(root, out, tmp_path):
    written = []
    for data in (str(root), tar_of(root), pack_of(root)):
        pack(data, out)
        written.append(read_all(out))
    assert written[0] == written[1] == written[2]


def test_the_test_split_is_packed_too(image_folder, out, reporter):
    data = str(image_folder({"train/a": 2, "train/b": 2, "test/a": 1, "val/b": 3}))
    pack(data, out)
    assert verify_pack(data, out).num_different == 0
    parts = open_dataset(out, reporter).list_parts()
    assert {name: len(part.labels) for name, part in parts.items()} == {
        "train": 4,
        "val": 3,
        "test": 1,
    }


def test_a_folder_is_called_what_it_is_called_from(root, out, monkeypatch):
    pack(str(root), out)
    expected = read_all(out)
    for home, name in ((root, "."), (root.parent, "photos"), (root.parent, "./photos/")):
        monkeypatch.chdir(home)
        pack(name, out)
        assert read_all(out) == expected
    pack("photos/train", "train")
    assert verify_pack(str(root / "train"), "train").num_different == 0


def test_the_built_in_digits_can_be_packed(out, reporter, digit_datasets):
    assert pack("digits", out).num_encoded == 1797
    assert verify_pack("digits", out).num_different == 0
    train, _ = open_for_training(Source(out), reporter=reporter)
    assert all(
        train.read(i).tobytes() == digit_datasets[0].read(i).tobytes() for i in range(0, 1442, 100)
    )


def test_smaller_images_and_pixels_are_other_data(root, tmp_path, reporter):
    """So that a teacher's targets for them are cached apart."""
    prints = set()
    for name, options in (
        ("a", {}),
        ("b", {"max_size": 18}),
        ("c", {"raw": True}),
        ("d", {"max_size": 1000}),
    ):
        pack(str(root), str(tmp_path / name), **options)
        train, _ = open_for_training(Source(str(tmp_path / name)), reporter=reporter)
        prints.add(fingerprint_dataset(train, reporter))
    assert len(prints) == 3  # of 1000 pixels none was more


def other_bytes(root: Path, out: Path) -> None:
    (root / "train" / "ant" / "1.jpg").write_bytes((root / "train" / "ant" / "2.jpg").read_bytes())


def flipped(root: Path, out: Path) -> None:
    flip(out)


CHANGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "other bytes": (other_bytes, r"train/ant/1\.jpg is not what was packed"),
    "removed": (
        lambda root, _: (root / "val/bee/0.jpg").unlink(),
        "Split val has other classes",
    ),
    "added": (
        lambda root, _: shutil.copy(root / "val/bee/0.jpg", root / "val/ant/9.jpg"),
        r"val/ant/9\.jpg is only in the data",
    ),
    "renamed": (
        lambda root, _: (root / "train/ant/0.jpg").rename(root / "train/ant/9.jpg"),
        r"x/train-000000.tar:ant/0.jpg is only in the shards",
    ),
    "renamed class": (
        lambda root, _: (root / "train/ant").rename(root / "train/ape"),
        "Split train has other classes",
    ),
    "without a split": (
        lambda root, _: shutil.rmtree(root / "val"),
        "Split val is only in the shards",
    ),
    "link to nowhere": (
        lambda root, _: (
            (root / "val/bee/0.jpg").unlink(),
            (root / "val/bee/0.jpg").symlink_to("none"),
        ),
        r"val/bee/0\.jpg cannot be read",
    ),
    "damaged shard file": (flipped, r"x/train-000000\.tar has not the bytes that were packed"),
    "damaged shard": (
        flipped,
        r"x/train-000000.tar:ant/0.jpg is damaged: its bytes do not match their checksum",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "options", [{}, {"max_size": 30}, {"raw": True}], ids=["copy", "smaller", "raw"]
)
def test_verification_reports_differences(name, options, root, out):
    change, message = CHANGES[name]
    pack(str(root), out, **options)
    assert (verify_pack(str(root), out).num_different, verify_pack(str(root), out).num_images) == (
        0,
        14,
    )
    change(root, Path(out))
    verification = verify_pack(str(root), out)
    assert verification.num_different >= 1
    assert any(re.search(message, example) for example in verification.examples), (
        verification.examples
    )


def test_verification_reports_another_label(root, out):
    data = table_of(root)
    pack(data, out)
    text = Path(data).read_text()
    Path(data).write_text(text.replace("photos/train/ant/3.jpg,ant", "photos/train/ant/3.jpg,bee"))
    verification = verify_pack(data, out)
    assert verification.examples == (
        f"{out}/train-000000.tar:photos/train/ant/3.jpg is of class 'ant', and of 'bee' in the data.",
    )


def test_verification_reports_another_order(root, out):
    data = table_of(root)
    pack(data, out)
    first, *rows = Path(data).read_text().splitlines(keepends=True)
    Path(data).write_text(first + "".join(reversed(rows)))
    assert verify_pack(data, out).examples == (
        "Split train has another order.",
        "Split val has another order.",
    )


def test_unreadable_images_keep_their_indices_and_are_reported(root, out, reporter):
    (root / "train/ant/2.jpg").unlink()
    (root / "train/ant/2.jpg").symlink_to("nowhere")
    (root / "train/bee/1.jpg").write_bytes((root / "train/bee/1.jpg").read_bytes()[:300])
    result = pack(str(root), out)
    assert len(result.unreadable) == 1  # copying looks into no image
    result = pack(str(root), out, max_size=18)
    assert ["ant/2.jpg" in result.unreadable[0], "bee/1.jpg" in result.unreadable[1]] == [
        True,
        True,
    ]
    assert (result.num_copied, result.num_encoded) == (2, 12)
    assert verify_pack(str(root), out).num_different == 0
    train, _ = open_for_training(Source(out), reporter=reporter)
    for index, what in ((2, r"2\.jpg is empty"), (7, r"1\.jpg cannot be decoded")):
        with pytest.raises(DataError, match=what):
            train.read(index)
    assert train.read(8).size == (24, 18)


def test_check_finds_the_issues_of_a_folder_in_its_pack(root, out):
    """But for extensions: a pack may store another format."""
    (root / "train/bee/1.jpg").write_bytes((root / "train/bee/1.jpg").read_bytes()[:300])
    (root / "train/bee/0.jpg").rename(root / "train/bee/0.png")
    pack(str(root), out)
    folder, packed = ({i.code: i.count for i in check(d).issues} for d in (str(root), out))
    assert folder.pop("wrong_extension") == 1
    assert packed == folder
    flip(out)
    assert {i.code: i.count for i in check(out).issues}["unreadable"] == 1


def test_a_training_on_a_pack_is_that_on_its_folder(root, out, tmp_path, reporter):
    pack(str(root), out)
    weights = set()
    for name, data in (("a", str(root)), ("b", out)):
        deitctl.train(
            data,
            model="test_vit",
            recipe="small",
            pretrained=False,
            output=tmp_path / name,
            seed=1,
            epochs=1,
            batch_size=4,
            img_size=32,
            workers=0,
            precision="fp32",
        )
        weights.add((tmp_path / name / "model.safetensors").read_bytes())
    assert len(weights) == 1


def test_what_pack_did_not_write_is_not_overwritten(root, out, tmp_path):
    (tmp_path / "notes").write_text("dear diary")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("notes", "folder", "link"):
        with pytest.raises(DataError, match="exists and is not a folder that `deitctl pack` wrote"):
            pack(str(root), str(tmp_path / name))
    assert (tmp_path / "notes").read_text() == "dear diary"


def test_a_file_beside_shards_is_named_and_not_overwritten_unless_it_is_the_systems(root, out):
    pack(str(root), out, workers=0)
    Path(out, ".DS_Store").touch()
    pack(str(root), out, workers=0)
    Path(out, "notes.txt").write_text("dear diary")
    with pytest.raises(DataError, match=r"x holds notes\.txt, which `deitctl pack` did not write"):
        pack(str(root), out, workers=0)
    assert Path(out, "notes.txt").read_text() == "dear diary"


def test_a_card_that_somebody_wrote_is_not_overwritten(root, out):
    pack(str(root / "train"), out, workers=0)
    pack(str(root / "train"), out, workers=0)
    card = Path(out, "README.md")
    card.write_text(card.read_text() + "# Ants and bees\n")
    with pytest.raises(DataError, match=r"x holds README\.md, which `deitctl pack` did not write"):
        pack(str(root / "train"), out, workers=0)


def test_shards_are_not_written_into_their_own_data(root):
    with pytest.raises(DataError, match=r"inner is in .*photos, which is packed"):
        pack(str(root), str(root / "inner"), workers=0)


def test_shards_of_one_image_each_are_warned_of(root, out, reporter):
    pack(str(root), out, shard_size="1KB", workers=0, reporter=reporter)
    assert [w for w in reporter.warnings if w.startswith("14 of 14 shards hold one image")]


@pytest.mark.parametrize(("raw", "count"), [(False, 0), (True, 1)])
def test_images_that_timm_passes_over_are_counted(raw, count, root, out, reporter):
    pack(str(root), out, raw=raw, workers=0, reporter=reporter)
    lines = [note for note in reporter.notes if "timm's reader of shards" in note]
    assert len(lines) == count
    assert all(line.startswith("14 image(s) are stored as .ppm") for line in lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.tar", "shards are a folder"), ("s3://bucket/x", "is in a store, and .* writes to a disk")],
)
def test_files_and_stores_are_no_place_for_shards(name, message, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        pack(str(root), name)


def test_data_is_not_packed_into_itself(root, out):
    pack(str(root), out)
    before = read_all(out)
    for data in (out, str(Path(out, "train-000000.tar"))):
        with pytest.raises(DataError, match="cannot be packed into itself"):
            pack(data, out, max_size=18)
    assert read_all(out) == before


@pytest.mark.parametrize("to", ["wds", "parquet"])
def test_a_name_that_leads_into_the_folder_does_not_replace_it(to, root, out, tmp_path):
    """Of the shards of one split, those of the others would be lost."""
    pack(str(root), out, to=to, workers=0)
    before = read_all(out)
    (tmp_path / "links").mkdir()
    files = [file for file in Path(out).rglob("train-*") if file.suffix in (".tar", ".parquet")]
    for file in files:
        (tmp_path / "links" / file.name).symlink_to(file)
    names = [str(tmp_path / "links")]
    if to == "wds":
        (tmp_path / "list.txt").write_text(f"{files[0]}\n")
        names += [f"{out}/train-*.tar", f"{out}/train-{{000000..000000}}.tar"]
        names += [str(tmp_path / "list.txt")]
    for data in names:
        with pytest.raises(DataError, match="cannot be packed into itself"):
            pack(data, out, workers=0)
    assert read_all(out) == before


class At(SilentReporter):
    """Does something when some images are packed."""

    def __init__(self, num_images: int, action: Callable[[], None]) -> None:
        self.left, self.action = num_images, action

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        self.label = label
        yield self

    def advance(self, amount: int = 1, **_: object) -> None:
        if self.label == "pack":
            self.left -= amount
            if self.left == 0:
                self.action()

    def skip(self, amount: int) -> None:
        pass


def stop() -> None:
    raise Signalled(signal.SIGTERM)


def test_an_interrupted_pack_leaves_the_old_folder(root, out, tmp_path):
    pack(str(root), out)
    before = read_all(out)
    for workers in (0, 2):
        with pytest.raises(Signalled):
            pack(str(root), out, max_size=18, workers=workers, reporter=At(5, stop))
    assert read_all(out) == before
    assert hidden(tmp_path) == []
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_processes_too(signum, make_image, out, tmp_path):
    """Each of them writes more than its pipe holds, and nobody reads it."""
    make_image(300, 300).save(tmp_path / "large.png")
    (tmp_path / "many.csv").write_text("path,label\n" + "large.png,a\n" * 10_000)
    command = [
        sys.executable,
        "-m",
        "deitctl",
        "pack",
        str(tmp_path / "many.csv"),
        out,
        "--raw",
        "--workers",
        "2",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(count_bytes(str(tmp_path / name)) > 5_000_000 for name in hidden(tmp_path)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signum)
        output = process.communicate(timeout=30)  # until the last of them has closed its streams
    assert (process.returncode, output) == {
        signal.SIGTERM: (143, ("", "interrupted\n")),
        signal.SIGKILL: (-9, ("", "")),
    }[signum]
    assert len(hidden(tmp_path)) == (signum == signal.SIGKILL)
    assert not Path(out).exists()


def test_a_killed_process_is_an_error(make_image, out, tmp_path):
    make_image(300, 300).save(tmp_path / "large.png")
    (tmp_path / "many.csv").write_text("path,label\n" + "large.png,a\n" * 10_000)

    killing = At(20, lambda: multiprocessing.active_children()[0].kill())
    with pytest.raises(LoaderLost, match=r"A loader process was ended by SIGKILL, .*--workers 0"):
        pack(str(tmp_path / "many.csv"), out, raw=True, workers=2, reporter=killing)
    assert multiprocessing.active_children() == []
    assert hidden(tmp_path) == []


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys, resource; {before}; from deitctl.cli.app import main; "
    code += "sys.argv = ['deitctl', *sys.argv[1:]]; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(root, out, tmp_path):
    done = run(
        "pack", str(root), out, before="resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        f"error: Cannot write {out}: File too large. Name another OUT."
    ]
    assert "Traceback" not in done.stderr
    assert not Path(out).exists()
    assert hidden(tmp_path) == []


def test_the_command_line_prints_json_and_exits_with_codes(root, out):
    def call(*arguments: str):
        return CliRunner().invoke(app, ["pack", str(root), out, *arguments, "--format", "json"])

    done = call()
    assert (done.exit_code, json.loads(done.stdout)["num_copied"]) == (0, 14)
    good = call("--verify")
    assert (good.exit_code, json.loads(good.stdout)["num_different"]) == (0, 0)
    (root / "train/ant/2.jpg").write_bytes(b"no image")
    bad = call("--verify")
    assert json.loads(bad.stdout)["examples"] == [f"{root}/train/ant/2.jpg is not what was packed."]
    assert str(bad.exception) == (
        f"{out} differs from {root} in 1 place(s), the first: "
        f"{root}/train/ant/2.jpg is not what was packed. Pack it again."
    )
    some = call("--max-size", "18")
    assert (some.exit_code, json.loads(some.stdout)["unreadable"]) == (
        3,
        [f"{root}/train/ant/2.jpg is a text file, not an image."],
    )


def test_the_table_ends_with_a_summary(root, out):
    done = CliRunner().invoke(
        app, ["pack", str(root), out, "--max-size", "18", "--format", "table"]
    )
    assert "0 copied, 14 encoded anew; " in done.stdout.splitlines()[-1]
    checked = CliRunner().invoke(app, ["pack", str(root), out, "--verify", "--format", "table"])
    assert "14 images compared, 0 difference(s); " in checked.stdout


@pytest.mark.parametrize(
    "options", [{}, {"max_size": 30}, {"raw": True}], ids=["copy", "smaller", "raw"]
)
def test_verification_reports_other_images_with_valid_digests(options, root, out, monkeypatch):
    encode_images = packing.encode_images

    def repeat_first(*arguments):
        images = list(encode_images(*arguments))
        yield from (image._replace(data=images[0].data) for image in images)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "encode_images", repeat_first)
        pack(str(root), out, **options)
    # of fourteen, of which the first is right
    assert verify_pack(str(root), out).num_different >= 12


def test_a_shard_overwritten_in_place_is_an_error_at_the_next_image(root, out, reporter):
    pack(str(root), out)
    train, _ = open_for_training(Source(out), reporter=reporter)
    train.read(0)
    shard = Path(out, "train-000000.tar")
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    os.utime(shard, ns=(1, 1))
    with pytest.raises(DataChanged, match="changed while in use"):
        train.read(1)
