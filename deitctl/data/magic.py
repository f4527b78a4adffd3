"""Bytes at the start of files of each kind, by which `identify` names them."""

from __future__ import annotations

APPLE_PNG = "a PNG image as iPhone apps have it (CgBI)"
RAW = "a camera raw file"

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    # offset, bytes, name; the first that fits
    (0, b"\xff\xd8\xff\xf7", "a JPEG-LS image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (12, b"CgBI", APPLE_PNG),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"GIF87a", "a GIF image"),
    (0, b"GIF89a", "a GIF image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (128, b"DICM", "a DICOM file"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"%!PS", "a PostScript drawing"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (0, b"%PDF", "a PDF"),
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"IIU\0", RAW),  # Panasonic
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"FOVb", RAW),  # Sigma
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"#?RGBE", "a Radiance HDR image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"qoif", "a QOI image"),
    (0, b"P7\n", "a PAM image"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"icns", "a macOS icon"),
    (0, b"\x0a\5\1", "a PCX image"),
    (0, b"\1\xda", "an SGI image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\xabKTX ", "a KTX texture"),
    (0, b"SDPX", "a DPX image"),
    (0, b"XPDS", "a DPX image"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (40, b" EMF", "a Windows metafile"),
    (0, b"ZISRAWFILE", "a microscope image (CZI)"),
    (344, b"n+1\0", "a NIfTI volume"),
    (344, b"ni1\0", "a NIfTI volume"),
    (4, b"n+2\0", "a NIfTI volume"),
    (0, b"NRRD0", "an NRRD volume"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (0, b"PAR1", "a Parquet table"),
    (0, b"SQLite format 3\0", "a database (SQLite)"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"PK\5\6", "a ZIP archive"),
    (0, b"\x1f\x8b", "a GZIP archive"),
    (0, b"BZh", "a BZIP2 archive"),
    (0, b"\xfd7zXZ\0", "an XZ archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\7", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
    (0, b"\0\0\1\xba", "a video"),
    (0, b"FLV\1", "a video"),
    (4, b"moov", "a QuickTime video"),
    (4, b"mdat", "a QuickTime video"),
    (0, b"OggS", "a sound file"),
    (0, b"ID3", "a sound file"),
    (0, b"fLaC", "a sound file"),
    (0, b"\x7fELF", "a program"),
    (0, b"\0\5\x16\7", "an AppleDouble file, metadata of macOS"),
    (0, b"\0\5\x16\0", "an AppleDouble file, metadata of macOS"),
)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEVC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
OTHER_HEIF_BRANDS = frozenset((b"jpeg", b"jpgs", b"j2ki", b"j2is", b"avci", b"avcs", b"unci"))
CONTAINERS = frozenset((b"mif1", b"mif2", b"msf1", b"miaf"))
"""Brands that say HEIF, and not what is in it."""
TGA_DEPTHS = (b"\x08", b"\x10", b"\x18", b"\x20")
DICOM_TYPES = frozenset((b"UL", b"UI", b"CS", b"DA", b"TM", b"OB", b"SH", b"LO"))
