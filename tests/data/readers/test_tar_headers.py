"""Members are where tarfile sees them; what is cut or damaged is noticed, whatever a header claims."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.open_file import OpenFile
from deitctl.data.readers.tar_headers import DamagedTar, Entry, Window, iterate_entries
from tests.data.readers.tars import write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = {tarfile.REGTYPE: "file", tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "symbolic link"}


class Bytes:
    """A file in memory."""

    path, identity = "memory", ()

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.num_reads = data, len(data), 0

    def read(self, offset: int, size: int) -> bytes:
        self.num_reads += 1
        return self.data[offset : offset + size]

    def prefetch(self, ranges: object) -> None:
        pass


def entries(data: bytes) -> list[Entry]:
    return list(iterate_entries(Window(Bytes(data)), 0, len(data)))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60)
members = st.lists(
    st.tuples(
        st.lists(names, min_size=1, max_size=6).map("/".join),
        st.sampled_from(list(KINDS)),
        st.integers(0, 1500),
    ),
    min_size=1,
    max_size=8,
)


def make_tar(listed: list[tuple[str, bytes, int]], tar_format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        for name, kind, size in listed:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "" if kind == tarfile.REGTYPE else name[::-1]
            info.size = size if kind == tarfile.REGTYPE else 0
            try:
                archive.addfile(info, io.BytesIO(b"x" * info.size))
            except ValueError:  # too long for ustar
                continue
    return file.getvalue()


@given(members, st.sampled_from(FORMATS))
def test_members_are_those_of_tarfile(listed, tar_format):
    data = make_tar(listed, tar_format)
    if not data.strip(b"\0"):
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [
            (m.name, m.offset_data, m.size, KINDS[m.type], m.linkname) for m in archive.getmembers()
        ]
    # tarfile removes slashes at the end, which only folders have
    found = [(e.name.rstrip("/"), *e[1:4], e.target) for e in entries(data)]
    assert found == expected


@given(members, st.sampled_from(FORMATS), st.integers(0, 100_000), st.integers(0, 255))
def test_a_changed_byte_never_hangs_nor_leads_outside(listed, tar_format, place, value):
    data = bytearray(make_tar(listed, tar_format))
    data[place % len(data)] = value
    try:
        found = entries(bytes(data))
    except DamagedTar as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(e.offset >= 0 and e.offset + e.size <= len(data) for e in found)


@given(members, st.sampled_from(FORMATS), st.integers(0, 100_000))
def test_a_tar_cut_inside_a_member_is_damaged(listed, tar_format, place):
    data = make_tar(listed, tar_format)
    if not data.strip(b"\0"):
        return
    last = entries(data)[-1]
    end = -(-(last.offset + last.size) // 512) * 512
    cut = place % end
    for cut_data in (data[:cut], data[: end - 512], data[:end]):  # between members, too
        with pytest.raises(DamagedTar):
            entries(cut_data)


FORTY = make_tar([(f"{n}.jpg", tarfile.REGTYPE, 600) for n in range(40)], FORMATS[0])


def test_a_tar_that_goes_on_behind_its_end_or_has_no_more_than_zeros_is_damaged():
    with pytest.raises(
        DamagedTar, match=r"members follow behind its end at byte 61,440 \(tars are"
    ):
        entries(FORTY + FORTY)
    with pytest.raises(DamagedTar, match=r"its last 30,208 bytes are zeros"):
        entries(FORTY[:40_960] + bytes(len(FORTY) - 40_960))


@pytest.mark.parametrize("record", [512, 10_240, 2**16, 2**20])
def test_a_tar_of_records_of_any_size_is_whole(record):
    end = 40 * 3 * 512
    assert len(entries(FORTY[:end] + bytes(-(-(end + 1024) // record) * record - end))) == 40


def test_members_close_together_are_read_together_and_large_ones_skipped():
    small = Bytes(make_tar([(f"{n}.jpg", tarfile.REGTYPE, 900) for n in range(300)], FORMATS[0]))
    assert len(list(iterate_entries(Window(small), 0, small.size))) == 300
    assert small.num_reads < 20
    large = Bytes(make_tar([(f"{n}.jpg", tarfile.REGTYPE, 200_000) for n in range(9)], FORMATS[0]))
    window = Window(large)
    assert len(list(iterate_entries(window, 0, large.size))) == 9
    assert large.num_reads <= 11  # the last is of its end


def test_a_claim_of_ten_gigabytes_is_no_read(tmp_path):
    data = bytearray(make_tar([("a.jpg", tarfile.REGTYPE, 5)], tarfile.GNU_FORMAT))
    data[124:136] = b"%011o\0" % (10 * 2**30)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(DamagedTar, match=r"cut short: 'a.jpg' ends 10,737,408,[0-9]+ bytes behind"):
        entries(bytes(data))


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_name_of_a_gigabyte_is_damage(kind):
    header = bytearray(make_tar([("a.jpg", tarfile.REGTYPE, 0)], tarfile.GNU_FORMAT)[:512])
    header[124:136], header[156:157] = b"%011o\0" % 2**30, kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DamagedTar, match=r"a name of 1,073,741,824 bytes"):
        entries(bytes(header) + bytes(4096))


def test_a_tar_in_a_tar_is_read_in_place(tmp_path):
    inner = write_tar(tmp_path / "inner.tar", {"a.jpg": b"image"})
    outer = write_tar(tmp_path / "outer.tar", {"n1.tar": inner.read_bytes()})
    file = OpenFile(str(outer))
    (nested,) = iterate_entries(Window(file), 0, file.size)
    (member,) = iterate_entries(Window(file), nested.offset, nested.offset + nested.size)
    assert file.read(member.offset, member.size) == b"image"


def test_headers_with_signed_checksums_are_read():
    header = bytearray(make_tar([("ä.jpg", tarfile.REGTYPE, 0)], tarfile.GNU_FORMAT))
    header[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:512])
    header[148:156] = b"%06o\0 " % signed
    assert [entry.name for entry in entries(bytes(header))] == ["ä.jpg"]


def test_sparse_files_of_gnu_and_pax_are_passed_by(tmp_path: Path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"x" * 5000)
    (tmp_path / "b.jpg").write_bytes(b"y" * 700)
    for own in ("gnu", "pax"):
        path = tmp_path / f"{own}.tar"
        subprocess.run(
            [
                "tar",
                "-C",
                str(tmp_path),
                f"--format={own}",
                "-S",
                "-cf",
                str(path),
                "a.jpg",
                "b.jpg",
            ],
            check=True,
        )
        file_ = OpenFile(str(path))
        found = list(iterate_entries(Window(file_), 0, file_.size))
        assert [(entry.name, entry.kind) for entry in found] == [
            ("a.jpg", "sparse"),
            ("b.jpg", "file"),
        ]
        assert file_.read(found[1].offset, found[1].size) == b"y" * 700
