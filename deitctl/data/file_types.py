"""What a file is by its first bytes, so that what is not read can be named, with the way on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

from PIL import features

from deitctl.data.magic import (
    APPLE_PNG,
    AVIF_BRANDS,
    CONTAINERS,
    DICOM_TYPES,
    HEVC_BRANDS,
    MAGIC,
    OTHER_HEIF_BRANDS,
    RAW,
    TGA_DEPTHS,
    TIFF_STARTS,
)
from deitctl.data.text_types import identify_text
from deitctl.data.tiff_tags import read_tags

START_BYTES = 1024
"""Of a file, which tell what it is. A PDF may have its mark anywhere in them."""
_COMMON = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_RARE = (".jpe", ".jif", ".mpo", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx")
EXTENSIONS = frozenset(_COMMON + _RARE)
"""Of files that are always read."""
HEIC_EXTENSIONS = frozenset((".heic", ".heif", ".hif"))
ARRAY_EXTENSION = ".npy"
"""Of images of bands alone: beside RGB images, arrays are something else."""
HEIC = "a HEIC image"
AVIF = "an AVIF image"
TIFF = "a TIFF image"
ZEROS = "a file of zeros"
EMPTY = "empty"
DEAD_LINK = "a link that leads nowhere"
DAMAGED = "that is damaged or cut short"
"""What `explain` says of an image whose format is read."""
INSTALL_HEIF = "pip install 'deitctl[heif]'"
_EXPORT = "export {} as PNG or JPEG"
_CONVERT = "convert {} to PNG or JPEG"
_DEVELOP = "develop {} to JPEG or PNG, by darktable for example"
_UNPACK = "unpack {}"
_FRAMES = "extract the frames of {} by ffmpeg"
_AGAIN = "copy or download {} again"
_ARRAY = "save each image of {} as PNG"


class _Type(NamedTuple):
    name: str
    """With its article, as it follows `FILE is`."""
    way_on: str
    """What to do about it; `{}` stands for it or them."""
    is_image: bool = False


READ = tuple(
    _Type(name, _AGAIN, True)
    for name in (
        *("a JPEG image", "a PNG image", "a WebP image", "a BMP image", "a GIF image"),
        *(TIFF, "a PPM image", "a JPEG 2000 image", AVIF),
    )
)
"""Of `deitctl.data.decode.FORMATS`, in their order. One that is not read is damaged."""
_KINDS = (
    *READ,
    _Type(HEIC, INSTALL_HEIF + " reads {}", True),
    _Type("a HEIF image of another codec than HEVC", _CONVERT, True),
    _Type(APPLE_PNG, "convert {} by pngcrush -revert-iphone-optimizations", True),
    _Type(RAW, _DEVELOP, True),
    *(
        _Type(name, _CONVERT, True)
        for name in (
            *("a JPEG XL image", "a JPEG-LS image", "a JPEG XR image", "an OpenEXR image"),
            *("a Radiance HDR image", "a FITS image", "a BPG image", "a QOI image", "a PAM image"),
            *("a DjVu document", "a PCX image", "an SGI image", "a Windows icon", "a macOS icon"),
            *("a DDS texture", "a KTX texture", "a DPX image", "a TGA image"),
        )
    ),
    *(
        _Type(name, _EXPORT, True)
        for name in (
            *("a Photoshop document", "a GIMP document", "a PostScript drawing", "a PDF"),
            *("an SVG drawing", "a Windows metafile", "a microscope image (CZI)"),
        )
    ),
    _Type("a DICOM file", "export {} as PNG with a window applied, by pydicom for example", True),
    *(
        _Type(name, "save the slices of {} as PNG", True)
        for name in ("a NIfTI volume", "an NRRD volume")
    ),
    *(
        _Type(name, _ARRAY)
        for name in (
            *("a NumPy array", "an HDF5 file", "a MATLAB file", "a Python pickle"),
            *("a Parquet table", "a database (SQLite)"),
        )
    ),
    *(
        _Type(name, _UNPACK)
        for name in (
            *("a ZIP archive", "a GZIP archive", "a BZIP2 archive", "an XZ archive"),
            *("a Zstandard archive", "a 7z archive", "a RAR archive", "a tar archive"),
        )
    ),
    *(_Type(name, _FRAMES) for name in ("a video", "an MP4 video", "a QuickTime video")),
    _Type("a sound file", ""),
    _Type("a program", ""),
    _Type("an AppleDouble file, metadata of macOS", "remove {}"),
    _Type("a Git LFS pointer", "`git lfs pull` fetches what {} stands for"),
    _Type("a git-annex pointer", "`git annex get` fetches what {} stands for"),
    _Type("an HTML page", "perhaps a saved error or login page: download the image again"),
    _Type("a text file with an image in Base64", "decode {}: base64 -d"),
    _Type("a text file with a path, as a link becomes in some copies", "copy what {} leads to"),
    *(_Type(name, "") for name in ("an XML file", "a JSON file", "a text file")),
    _Type(DEAD_LINK, ""),
    _Type(ZEROS, _AGAIN),
    _Type(EMPTY, ""),
)
_BY_NAME = {kind.name: kind for kind in _KINDS}
_READ_NAMES = frozenset(kind.name for kind in READ)


def identify(start: bytes, size: int | None = None) -> str:
    """Return what a file is: `a HEIC image`, `a PDF`, `empty`; empty for what is not known.

    Args:
        start: its first `START_BYTES`, or all of it.
        size: of the file in bytes; None: `start` is all of it.
    """
    start = bytes(start[:START_BYTES])
    if not start:
        return EMPTY if not size else ""
    for offset, magic, name in MAGIC:
        if start.startswith(magic, offset):
            return name
    return (
        _identify_container(start)
        or _identify_tiff(start)
        or _identify_other(start)
        or identify_text(start)
    )


def _identify_container(start: bytes) -> str:
    """Name an ISO media or RIFF file."""
    if start.startswith((b"RIFF", b"RIFX")):
        form = start[8:12]
        return {b"WEBP": "a WebP image", b"WAVE": "a sound file"}.get(form, "a video")
    if start[4:8] != b"ftyp":
        return ""
    major, size = start[8:12], int.from_bytes(start[:4], "big")
    # The major brand may be that of the container alone, those after it name what is inside.
    brands = [major, *(start[at : at + 4] for at in range(16, min(size, len(start)), 4))]
    kinds = {brand for brand in brands if brand not in CONTAINERS}
    if major in AVIF_BRANDS or (major in CONTAINERS and kinds & AVIF_BRANDS):
        return AVIF
    if major in HEVC_BRANDS or (major in CONTAINERS and kinds & HEVC_BRANDS):
        return HEIC
    if major in OTHER_HEIF_BRANDS or (major in CONTAINERS and kinds & OTHER_HEIF_BRANDS):
        return "a HEIF image of another codec than HEVC"
    if major in CONTAINERS:
        return HEIC
    named = {b"crx ": RAW, b"qt  ": "a QuickTime video", b"M4A ": "a sound file"}
    return named.get(major, "an MP4 video")


def _identify_tiff(start: bytes) -> str:
    """Name a TIFF, or a camera's raw file, which is one as well."""
    if not start.startswith(TIFF_STARTS):
        return ""
    return RAW if is_raw(start) else TIFF


def _identify_other(start: bytes) -> str:
    """Name what takes more than a few bytes at a place."""
    if start.startswith(b"BM") and (len(start) < 14 or start[6:10] == bytes(4)):
        return "a BMP image"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
        return "a PPM image"
    if start[:4] in (b"\0\0\1\0", b"\0\0\2\0") and start[4:5] != b"\0" == start[5:6]:
        return "a Windows icon"
    has_sides = start[12:14] != bytes(2) != start[14:16]
    if start[:1] == b"\0" and start[3:8] == bytes(5) and has_sides and start[16:17] in TGA_DEPTHS:
        return "a TGA image"
    if start.startswith(b"MZ") and b"\0" in start[:64]:
        return "a program"
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and b"\0" in start[:16]:
        return "a Python pickle"
    # A data set of DICOM without the preamble: group 2 or 8, and a type of value.
    if start[:2] in (b"\2\0", b"\x08\0") and start[4:6] in DICOM_TYPES:
        return "a DICOM file"
    if b"%PDF-" in start:
        return "a PDF"
    if not start.strip(b"\0"):
        return ZEROS
    return ""


def is_image_start(start: bytes) -> bool:
    """Return whether a file begins as an image that is read, whatever its name."""
    kind = identify(start)
    return kind in _READ_NAMES or (kind == HEIC and can_read_heic())


def is_image_kind(kind: str) -> bool:
    """Return whether what `identify` returned shows something, read or not."""
    return kind in _BY_NAME and _BY_NAME[kind].is_image


def explain(kind: str) -> str:
    """Return what `identify` returned as the end of a sentence, with the way on: `a PDF; export it ...`."""
    kind_of_file = _BY_NAME[kind]
    if kind == AVIF and not features.check("avif"):
        return f"{kind}, which this Pillow cannot read; pip install --force-reinstall pillow"
    if kind in _READ_NAMES or (kind == HEIC and can_read_heic()):
        return f"{kind} {DAMAGED}; {_AGAIN.format('it')}"
    noun = kind if kind_of_file.is_image or kind == EMPTY else f"{kind}, not an image"
    return f"{noun}; {kind_of_file.way_on.format('it')}" if kind_of_file.way_on else noun


def explain_file(data: bytes) -> str:
    """Return what a file is that is not read, and the way on, as the end of a sentence; empty for the unknown.

    Args:
        data: all of the file; of a TIFF the directory may be at its end.
    """
    kind = RAW if is_raw(data) else identify(data, len(data))
    if kind == TIFF and (described := read_tags(data).describe()):
        return f"{described}; save what it shows as PNG of 8 bits, or read its bands by --in-chans"
    return explain(kind) if kind else ""


def is_raw(data: bytes) -> bool:
    """Return whether a file is a camera's raw file in the form of a TIFF, which all of it shows."""
    return data.startswith(TIFF_STARTS) and (data[8:10] == b"CR" or read_tags(data).is_raw)


@lru_cache(maxsize=1)
def can_read_heic() -> bool:
    """Return whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


_reads_arrays = ContextVar("reads_arrays", default=False)


@contextmanager
def reading_arrays(reads_arrays: bool = True) -> Iterator[None]:
    """Let files that end in `ARRAY_EXTENSION` be images in this block, as they are for models of bands."""
    token = _reads_arrays.set(reads_arrays)
    try:
        yield
    finally:
        _reads_arrays.reset(token)


def get_extensions() -> frozenset[str]:
    """Return the lower-case extensions of files that are read here and now."""
    extensions = EXTENSIONS | HEIC_EXTENSIONS if can_read_heic() else EXTENSIONS
    return extensions | {ARRAY_EXTENSION} if _reads_arrays.get() else extensions


_RAW_EXTENSIONS = ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr"
KIND_OF_EXTENSION = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    ".avif": AVIF,
    ".jxl": "a JPEG XL image",
    ".jls": "a JPEG-LS image",
    ".jxr": "a JPEG XR image",
    **dict.fromkeys(_RAW_EXTENSIONS.split(), RAW),
    **dict.fromkeys((".dcm", ".dicom"), "a DICOM file"),
    **dict.fromkeys((".nii",), "a NIfTI volume"),
    ".nrrd": "an NRRD volume",
    ".psd": "a Photoshop document",
    ".xcf": "a GIMP document",
    ".pdf": "a PDF",
    ".svg": "an SVG drawing",
    **dict.fromkeys((".eps", ".ps"), "a PostScript drawing"),
    ".exr": "an OpenEXR image",
    ".hdr": "a Radiance HDR image",
    **dict.fromkeys((".fits", ".fit"), "a FITS image"),
    ".tga": "a TGA image",
    **dict.fromkeys((".ico", ".cur"), "a Windows icon"),
    ".icns": "a macOS icon",
    ".dds": "a DDS texture",
    ".pcx": "a PCX image",
    ".qoi": "a QOI image",
    ".bpg": "a BPG image",
    ".czi": "a microscope image (CZI)",
    **dict.fromkeys((".npy", ".npz"), "a NumPy array"),
    **dict.fromkeys((".h5", ".hdf5"), "an HDF5 file"),
    ".mat": "a MATLAB file",
    **dict.fromkeys((".pkl", ".pickle"), "a Python pickle"),
    ".zip": "a ZIP archive",
    ".gz": "a GZIP archive",
    ".bz2": "a BZIP2 archive",
    ".xz": "an XZ archive",
    ".7z": "a 7z archive",
    ".rar": "a RAR archive",
    ".tar": "a tar archive",
    **dict.fromkeys((".mp4", ".m4v", ".3gp"), "an MP4 video"),
    ".mov": "a QuickTime video",
    **dict.fromkeys((".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"), "a video"),
}
"""By extension, for counts of files that are not opened."""
_SIDE_FILES = (
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .ini .cfg .toml .log .lst .names "
    ".html .htm .css .js .py .ipynb .sh .bat .m .doc .docx .xls .xlsx .db .sqlite .parquet "
    ".url .lnk .webloc .aae .xmp .thm .pp3 .dop .md5 .sha1 .sha256 .dvc .lock"
)
SIDE_FILES = frozenset(_SIDE_FILES.split())
"""Extensions of files that people and programs put beside images: labels, notes, settings."""


_KNOWN = EXTENSIONS | KIND_OF_EXTENSION.keys() | SIDE_FILES


def may_be_image(name: str) -> bool:
    """Return whether a file's name says nothing about what it is, so that its first bytes have to.

    It has no extension, or one of no known type: `scan`, `scan.0001`, `cat.jpg_large`.
    """
    return os.path.splitext(name)[1].lower() not in _KNOWN


MAX_NAMED = 5
"""Extensions that a sentence names."""


def describe_unread(counts: Mapping[str, int]) -> str:
    """Return a sentence about files that are passed over, empty where none of them may be an image.

    Args:
        counts: files by lower-case extension, those without one also by what `identify` says. An
            extension that is read counts images beside the class folders.
    """
    unread = {end: n for end, n in counts.items() if n and end not in SIDE_FILES}
    if not unread:
        return ""
    total = sum(unread.values())
    ordered = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    parts = [_describe_extension(*item) for item in ordered[:MAX_NAMED]]
    if num_more := len(ordered[MAX_NAMED:]):
        parts.append(f"and {num_more:,} other kind{'s' if num_more > 1 else ''}")
    verb = "file is" if total == 1 else "files are"
    return f"{total:,} {verb} not read: {', '.join(parts)}."


def _describe_extension(extension: str, count: int) -> str:
    kind = KIND_OF_EXTENSION.get(extension)
    if extension in _BY_NAME:
        kind, each = extension, "" if count == 1 else "each "
        label = f"{count:,} without an extension, {each}{kind}"
    else:
        label = f"{count:,} {extension or 'without an extension'}"
    if extension in get_extensions():
        return f"{label} beside the class folders"
    way_on = _BY_NAME[kind].way_on if kind else ""
    return f"{label} ({way_on.format('it' if count == 1 else 'them')})" if way_on else label
