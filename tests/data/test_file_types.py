"""A file is named for what it is by its first bytes, whatever they are, and with a way on."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from deitctl.data import file_types
from deitctl.data.file_types import (
    AVIF,
    EMPTY,
    EXTENSIONS,
    HEIC,
    KIND_OF_EXTENSION,
    READ,
    SIDE_FILES,
    describe_unread,
    explain,
    explain_file,
    get_extensions,
    identify,
    is_image_start,
    may_be_image,
)
from deitctl.data.magic import MAGIC


def encode(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (20, 16)).save(file, kind)
    return file.getvalue()


def box(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I4s4sI", 16 + 4 * len(compatible), b"ftyp", brand, 0) + b"".join(
        compatible
    )


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("a.txt", "a")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (box(b"heic", b"mif1", b"heic"), HEIC),
        (box(b"heix", b"mif1"), HEIC),
        (box(b"mif1", b"miaf", b"heic"), HEIC),
        (box(b"hevc", b"msf1"), HEIC),
        (box(b"avif", b"mif1"), "an AVIF image"),
        (box(b"mif1", b"avif"), "an AVIF image"),
        (box(b"avis"), "an AVIF image"),
        (box(b"mif1", b"jpeg"), "a HEIF image of another codec than HEVC"),
        (box(b"crx ", b"isom"), "a camera raw file"),
        (box(b"qt  "), "a QuickTime video"),
        (box(b"isom", b"mp41"), "an MP4 video"),
        (b"\xff\x0a\x00\x10", "a JPEG XL image"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\4CgBI", "a PNG image as iPhone apps have it (CgBI)"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\xff\xd8\xff\xf7", "a JPEG-LS image"),
        (bytes(128) + b"DICM\x02\0\0\0UL", "a DICOM file"),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "a DICOM file"),
        (struct.pack("<i", 348) + bytes(340) + b"n+1\0", "a NIfTI volume"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\n\n%PDF-1.4\n\x80\xff\0", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript drawing"),
        (b"8BPS\0\x01", "a Photoshop document"),
        (b"IIRO\x08\0\0\0", "a camera raw file"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a camera raw file"),
        (b"FUJIFILMCCD-RAW 0201", "a camera raw file"),
        (encode("ICO"), "a Windows icon"),
        (encode("PCX"), "a PCX image"),
        (encode("TGA"), "a TGA image"),
        (array(), "a NumPy array"),
        (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
        (pickle.dumps({"a": np.zeros(3)}, protocol=4), "a Python pickle"),
        (archive(), "a ZIP archive"),
        (gzip.compress(b"a" * 99), "a GZIP archive"),
        (bz2.compress(b"a"), "a BZIP2 archive"),
        (lzma.compress(b"a"), "an XZ archive"),
        (tar(), "a tar archive"),
        (b"\x1aE\xdf\xa3\x01", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a sound file"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "an AppleDouble file, metadata of macOS"),
        (b"\x7fELF\2\1", "a program"),
        (bytes(512), "a file of zeros"),
        (b"", EMPTY),
        (b"\x03\x11\x00\x05" * 9, ""),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_file_is_named_by_its_first_bytes(data, kind):
    assert identify(data) == kind
    assert is_image_start(data) == (kind in (HEIC, AVIF))
    if kind:
        assert explain(kind).startswith(kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("JPEG", "a JPEG image"),
        ("PNG", "a PNG image"),
        ("WEBP", "a WebP image"),
        ("BMP", "a BMP image"),
        ("GIF", "a GIF image"),
        ("TIFF", "a TIFF image"),
        ("PPM", "a PPM image"),
        ("JPEG2000", "a JPEG 2000 image"),
        ("AVIF", "an AVIF image"),
    ],
)
def test_every_format_that_is_read_begins_as_an_image(kind, name):
    data = encode(kind)
    assert (identify(data), is_image_start(data)) == (name, True)
    # cut within its header it is damaged, and not another file
    assert "damaged or cut short" in explain(name)


def test_a_heic_image_begins_as_one_where_it_is_read(monkeypatch):
    data = box(b"heic", b"mif1")
    assert is_image_start(data)
    assert ".heic" in get_extensions()
    monkeypatch.setattr(file_types, "can_read_heic", lambda: False)
    assert not is_image_start(data)
    assert get_extensions() == EXTENSIONS
    assert explain_file(data) == "a HEIC image; pip install 'deitctl[heif]' reads it"


def test_without_avif_in_pillow_the_way_on_is_another_pillow(monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    assert explain_file(box(b"avif")).endswith("; pip install --force-reinstall pillow")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=1200),
        st.tuples(st.sampled_from(MAGIC), st.binary(max_size=300)).map(
            lambda drawn: bytes(drawn[0][0]) + drawn[0][1] + drawn[1]
        ),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(st.sampled_from([b"II*\0", b"MM\0*", b"II+\0"]), st.binary(max_size=300)).map(
            b"".join
        ),
    )
)
def test_any_bytes_have_a_name_that_can_be_explained_or_none(data):
    kind = identify(data, len(data) + 1)
    assert kind == "" or kind in explain(kind)
    # only the beginning is looked at
    assert identify(data[:1024] + b"x" * 5000) == identify((data + b"x" * 5000)[:1024])
    assert isinstance(explain_file(data), str)


def test_every_name_has_one_entry_and_its_extensions_are_known():
    for kind in {*(name for _, _, name in MAGIC), *KIND_OF_EXTENSION.values()}:
        assert explain(kind)
    assert len({kind.name for kind in READ}) == 9
    assert not SIDE_FILES & (KIND_OF_EXTENSION.keys() | EXTENSIONS)


def test_unread_files_are_counted_in_a_sentence_with_the_way_on(monkeypatch):
    monkeypatch.setattr(file_types, "can_read_heic", lambda: False)
    assert describe_unread({".heic": 6}) == (
        "6 files are not read: 6 .heic (pip install 'deitctl[heif]' reads them)."
    )
    assert describe_unread({".jpg": 1}) == "1 file is not read: 1 .jpg beside the class folders."
    assert describe_unread({".jxl": 1, ".xyz": 1200, ".txt": 9, "a DICOM file": 2}) == (
        "1,203 files are not read: 1,200 .xyz, 2 without an extension, each a DICOM file (export them "
        "as PNG with a window applied, by pydicom for example), 1 .jxl (convert it to PNG or JPEG)."
    )


def test_many_kinds_of_files_are_named_by_the_first_of_them():
    counts = {f".{n:04}": 1 for n in range(3000)} | {".xyz": 2}
    assert describe_unread(counts) == (
        "3,002 files are not read: 2 .xyz, 1 .0000, 1 .0001, 1 .0002, 1 .0003, and 2,996 other kinds."
    )


@pytest.mark.parametrize("name", ["scan", "scan.0001", "cat.jpg_large", "a.b c", "a."])
def test_a_name_without_a_known_extension_may_be_an_image(name):
    assert may_be_image(name)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.heic", "a.txt", "a.zip", "a.dcm", "a.jxl"])
def test_a_name_with_a_known_extension_says_what_it_is(name):
    assert not may_be_image(name)


def test_labels_and_notes_beside_images_deserve_no_word():
    assert describe_unread({".txt": 5, ".csv": 1, ".json": 1, ".jpg": 0}) == ""
    assert describe_unread({}) == ""
