"""Files that are none, tars, tables and folders that lie or loop: docs/security.md, "Data"."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.decode import read_bytes, read_image
from deitctl.data.open import open_dataset, open_for_evaluation
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.inference.inputs import expand, load_batches
from deitctl.models.model_config import Preprocessing
from deitctl.training.run_dir import create_run_folder


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 5), shade).save(buffer, "PNG")
    return buffer.getvalue()


def opened(path: Path):
    return open_dataset(str(path), SilentReporter())


def make_odd(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(
            {"zero": "/dev/zero", "random": "/dev/urandom", "loop": path, "stdin": "/dev/stdin"}[
                kind
            ]
        )


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "zero", "random", "loop"])
def test_what_is_no_file_is_neither_waited_for_nor_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_odd(kind, tmp_path / "x.png")
    begun = time.monotonic()
    for read in (read_bytes, read_image):
        with pytest.raises(
            DataError, match=r"x\.png cannot be read: (it is a pipe|Is a directory|Too many levels)"
        ):
            read(tmp_path / "x.png")
    assert time.monotonic() - begun < 1


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="Linux has /proc")
@pytest.mark.parametrize(
    "name", ["/proc/self/environ", "/proc/kcore", "/proc/self/mem", "/proc/kmsg"]
)
def test_a_file_of_the_kernel_is_no_image(name):
    if not Path(name).exists():
        pytest.skip("not on this machine")
    with pytest.raises(DataError):
        read_image(Path(name))


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(DataError, match="it has 17,179,869,184 bytes, more than 536,870,912"):
        read_bytes(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".tar", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop"])
def test_data_that_is_no_file_is_not_opened(suffix, kind, tmp_path):
    make_odd(kind, tmp_path / f"x{suffix}")
    with pytest.raises(DataError, match="is a pipe, a device or a socket|There is no dataset"):
        opened(tmp_path / f"x{suffix}")


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


def members(count: int = 2) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        (tarfile.TarInfo(f"{c}/{n}.png"), png(n + 100 * at))
        for at, c in enumerate(("ant", "bee"))
        for n in range(count)
    ]


def test_names_that_lead_out_of_a_tar_write_nothing_and_links_stay_in_it(tmp_path):
    hostile = [
        (tarfile.TarInfo("../../evil/x.png"), png()),
        (tarfile.TarInfo("/etc/ant/y.png"), png()),
        (tarfile.TarInfo("ant/../../z.png"), png()),
        link("bee/passwd.png", "/etc/passwd"),
        link("bee/hard.png", "ant/0.png", tarfile.LNKTYPE),
    ]
    dataset = opened(tar_of(tmp_path / "x.tar", *members(), *hostile)).unsplit
    names = [dataset.name(i).partition(":")[2] for i in range(len(dataset.labels))]
    own = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png", "bee/hard.png"]
    assert names == [*own, "etc/ant/y.png"]
    assert all(dataset.read(i).size == (6, 5) for i in range(len(names)))
    assert os.listdir(tmp_path) == ["x.tar"]


def patched(path: Path, name: bytes, **fields: bytes) -> Path:
    """Write over header fields of a member and mend its checksum."""
    data = bytearray(path.read_bytes())
    at = data.index(name + b"\0")
    place = {"size": (124, 12), "type": (156, 1)}
    for field, value in fields.items():
        start, length = place[field]
        data[at + start : at + start + length] = value.ljust(length, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    return path


def base_256(number: int) -> bytes:
    return (b"\x80" if number >= 0 else b"\xff") + (number % 2**88).to_bytes(11, "big")


@pytest.mark.parametrize("size", [2**40, 2**80, -512, -1024, -(2**40)])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
def test_a_size_that_lies_ends_in_one_line(size, kind, tmp_path):
    """Also round and round for ever, as tarfile itself goes with a negative one (CVE-2025-8194)."""
    path = patched(
        tar_of(tmp_path / "x.tar", *members()), b"ant/1.png", size=base_256(size), type=kind
    )
    done: list[object] = []

    def read() -> None:
        try:
            dataset = opened(path).unsplit
            for index in range(len(dataset.labels)):
                try:
                    dataset.read(index)
                except DataError as error:
                    done.append(str(error))
            done.append("read")
        except DataError as error:
            assert len(str(error).splitlines()) == 1
            done.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert done


def test_a_chain_of_long_names_ends(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        block = archive.tarinfo._create_gnu_long_header(
            "a/" + "x" * 300 + ".png", tarfile.GNUTYPE_LONGNAME, "utf-8", "strict"
        )
        archive.fileobj.write(block * 3000)
    with pytest.raises(DataError, match="is not a readable, uncompressed tar"):
        opened(tmp_path / "x.tar")


@pytest.mark.parametrize("cut", [1, 511, 513, 700, 1500])
def test_a_tar_cut_short_is_one_line(cut, tmp_path):
    path = tar_of(tmp_path / "x.tar", *members())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        DataError, match="x.tar is not a readable, uncompressed tar: it is (cut|no tar)"
    ):
        opened(path)


def test_links_that_loop_are_left_and_images_found(tmp_path):
    for shade, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png(shade))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "ant" / "self").symlink_to(tmp_path / "ant")
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    (tmp_path / "bee" / "round.png").symlink_to("round.png")
    dataset = opened(tmp_path).unsplit
    assert dataset.class_names == ("ant", "bee")
    assert sorted(Path(dataset.name(i)).name for i in range(len(dataset.labels))) == [
        "0.png",
        "0.png",
        "round.png",
    ]
    assert len(list(expand([str(tmp_path)], ()))) == 3


def test_a_folder_deeper_than_recursion_is_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("x.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    assert len(list(expand([str(tmp_path)], ()))) == 1
    os.makedirs("bee")
    Path("bee/x.png").write_bytes(png())
    assert opened(tmp_path).unsplit.class_names == ("bee", "d")
    # Python's own removal would recurse
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def table(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "path,label\n",
        "path\nx.png\n",
        "label,path\n,x.png\n",
        "path,label\n" + "x" * 200_000 + ",a\n",
        b"\xff\xfe\0\0" * 50,
        "path,label\nx.png\n",
        'path,label\n"x.png,a\n',
        "path,label,split\nx.png,a,../../etc\n",
        "path,label,split\nx.png,a,train\nx.png,a,\n",
        "\0\0\0\0",
    ],
    ids=range(12),
)
def test_a_table_that_is_none_is_one_short_line(text, tmp_path):
    def read() -> None:
        read_image(Path(opened(table(tmp_path / "x.csv", text)).unsplit.name(0)))

    with pytest.raises(DataError) as caught:
        read()
    assert len(str(caught.value).splitlines()) == 1


def test_a_million_columns_take_no_memory(tmp_path):
    """As dictionaries, 20,000 rows of 100,000 columns would be two billion entries."""
    columns = ",".join(f"c{n}" for n in range(100_000))
    (tmp_path / "x.png").write_bytes(png())
    path = table(tmp_path / "x.csv", f"path,label,{columns}\n" + "x.png,a\n" * 20_000)
    begun = time.monotonic()
    assert len(opened(path).unsplit.labels) == 20_000
    assert time.monotonic() - begun < 5


def test_paths_of_a_table_are_followed_as_written_and_a_nul_is_a_missing_image(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(png())
    path = table(
        tmp_path / "in" / "x.csv",
        b"path,label\n../out.png,a\n" + os.fsencode(tmp_path) + b"/out.png,b\na\0b.png,c\n",
    )
    dataset = opened(path).unsplit
    assert [dataset.read(i).size for i in range(len(dataset.labels))] == [(6, 5), (6, 5)]
    dataset = open_dataset(str(path), SilentReporter(), with_missing=True).unsplit
    assert dataset.num_bytes(2) == 0
    with pytest.raises(DataError, match="embedded null"):
        dataset.read(2)


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"PAR1\0\0\0\0" * 20], ids=range(4)
)
def test_a_parquet_that_is_none_is_one_line(data, tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError) as caught:
        opened(table(tmp_path / "x.parquet", data))
    assert len(str(caught.value).splitlines()) == 1


def test_a_parquet_of_other_types_is_read_as_far_as_it_goes(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"path": [1, 2], "label": [[1], [2]], "bomb": ["x" * 1000] * 2}
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png())
    parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet").unsplit.class_names == ("1", "2")


def test_a_class_that_is_no_text_is_refused_where_it_is_opened(tmp_path):
    for name in (b"\xff\xfe", b"bee"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b"/0.png")).write_bytes(png())
    for open_it in (
        lambda: open_for_training(Source(str(tmp_path)), reporter=SilentReporter()),
        lambda: open_for_evaluation(str(tmp_path), SilentReporter()),
    ):
        with pytest.raises(DataError, match="not UTF-8. Rename the class"):
            open_it()


def test_a_row_belongs_to_its_own_input_among_hostile_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for number, kind in enumerate(
        ["good", "pipe", "good", "zero", "loop", "good", "folder", "socket", "good"]
    ):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png(20 * number)) if kind == "good" else make_odd(kind, path)
        names.append(str(path))
    names[3:3] = ["a\0b", "", "\ud800.png", "x" * 5000, "http://[::1", "~root/x", "-"]
    for size in (1, 4, 32):
        found = [
            item for batch in load_batches(names, Preprocessing(img_size=8), size) for item in batch
        ]
        assert [item.name for item in found] == names
        shades = {item.name: int(np.max(item.pixels)) for item in found if item.pixels is not None}
        assert shades == {str(tmp_path / f"{n}.png"): 20 * n for n in (0, 2, 5, 8)}


@pytest.mark.parametrize(
    "stem",
    ["../../etc/passwd", "/etc", "..", "", "a/b\\c", "\x1b[2J\n", "con:aux|", "\ud800"],
    ids=ascii,
)
def test_a_run_named_by_others_stays_in_runs(stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create_run_folder(stem)
    assert folder.parent == Path("runs")
    assert (tmp_path / folder).resolve().parent == tmp_path / "runs"
    assert folder.name.isprintable()
