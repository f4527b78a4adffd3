"""Writing of WebDataset shards: tars of samples, each of some members of the same key, and their index.

Letters: N images, S shards.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from array import array
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from deitctl.data.index import Listing
from deitctl.data.readers.packed_shards import INDEX, write_index
from deitctl.data.shard_files import Spans
from deitctl.packing.manifest import UNSPLIT, Shard, flush, write_info
from deitctl.packing.samples import Sample, SampleSource

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
"""Of a tar: two blocks of zeros."""
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
"""Of a member without name and size: mode 0644, owner 0, time 0, so that the same images give the same bytes."""
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


@dataclass
class WrittenImages:
    """Where the images of a split lie, see `Spans`."""

    shards: list[Shard] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    """Shard, offset and size of each image, [N,3]."""
    leads: array[int] = field(default_factory=lambda: array("I"))
    checksums: array[int] = field(default_factory=lambda: array("I"))
    digests: array[int] = field(default_factory=lambda: array("Q"))

    def make_spans(self) -> Spans:
        """Return the places as arrays."""
        places = np.frombuffer(self.places, np.int64).reshape(-1, 3)
        return Spans(
            places[:, 0].astype(np.int32),
            places[:, 1].copy(),
            places[:, 2].copy(),
            np.frombuffer(self.checksums, np.uint32),
            np.frombuffer(self.digests, np.uint64),
            np.frombuffer(self.leads, np.uint32),
        )


def write_webdataset(folder: Path, source: SampleSource, shard_size: int) -> list[Shard]:
    """Write shards, `train-000000.tar` and so on, their index, and what timm's reader wants to know.

    Args:
        folder: empty.
        source: the images.
        shard_size: bytes above which another shard is begun; one image may be larger.

    Raises:
        OSError: the disk is full, for example.
    """
    written = {}
    with closing(source.iterate_samples()) as samples:
        for name, part in source.datasets.items():
            images = islice(samples, len(part.labels))
            written[name] = _write_split(folder, name or UNSPLIT, images, shard_size)
    listings = {
        name: Listing(
            source.names[name],
            part.labels,
            part.class_names,
            # in the order of the data, whatever the order in the shards
            written[name].make_spans().take(np.argsort(source.orders[name])),
        )
        for name, part in source.datasets.items()
    }
    shards = {name: [(s.name, s.bytes) for s in part.shards] for name, part in written.items()}
    with (folder / INDEX).open("xb") as file:
        write_index(
            file,
            listings,
            shards,
            value_range=source.value_range,
            is_rgb=not source.encoding.copies_files,
        )
        flush(file)
    write_info(folder, {name or UNSPLIT: part.shards for name, part in written.items()}, source)
    return [shard for part in written.values() for shard in part.shards]


def _write_split(
    folder: Path, name: str, samples: Iterable[Sample], shard_size: int
) -> WrittenImages:
    """Write the shards of a split, whose names begin with its name; samples are consumed one by one."""
    written = WrittenImages()
    writer: _ShardWriter | None = None
    try:
        for sample in samples:
            head, lead = _encode_head(sample)
            size = lead + len(sample.data) + -len(sample.data) % BLOCK
            if writer is not None and writer.shard.bytes + size + len(END) > shard_size:
                writer.finish()
                writer = None
            if writer is None:
                writer = _ShardWriter(folder, Shard(f"{name}-{len(written.shards):06}.tar"))
                written.shards.append(writer.shard)
            written.places.extend(
                (len(written.shards) - 1, writer.shard.bytes + lead, len(sample.data))
            )
            written.leads.append(lead)
            written.checksums.append(zlib.crc32(sample.data, zlib.crc32(head)))
            written.digests.append(sample.digest)
            writer.write(head, sample.data, bytes(-len(sample.data) % BLOCK))
            writer.shard.num_samples += 1
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            writer.file.close()
    return written


class _ShardWriter:
    def __init__(self, folder: Path, shard: Shard) -> None:
        self.shard, self.digest = shard, hashlib.sha256()
        self.file = (folder / shard.name).open("xb")

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.file.write(piece)
            self.digest.update(piece)
            self.shard.bytes += len(piece)

    def finish(self) -> None:
        self.write(END)
        self.shard.sha256 = self.digest.hexdigest()
        flush(self.file)
        self.file.close()


def _encode_head(sample: Sample) -> tuple[bytes, int]:
    """Return what precedes an image: its label, its name, and its own header."""
    record: dict[str, object] = {"filename": sample.name}
    head = b""
    if isinstance(sample.label, int):
        head = _encode_member(f"{sample.key}.cls", b"%d" % sample.label)
    else:
        record["labels"] = sample.label
    # Escapes in place of what is no UTF-8: names of files may be any bytes.
    head += _encode_member(f"{sample.key}.json", json.dumps(record).encode())
    head += encode_header(f"{sample.key}.{sample.extension}", len(sample.data))
    return head, len(head)


def _encode_member(name: str, data: bytes) -> bytes:
    return encode_header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def encode_header(name: str, size: int) -> bytes:
    """Return the header of a tar's member, in a tenth of the time of `tarfile`.

    Args:
        name: in ASCII, of at most 100 characters.
        size: of its bytes, below 8 GiB.
    """
    fields = name.encode("ascii").ljust(100, b"\0"), b"%011o\0" % size
    header = b"".join(
        (
            fields[0],
            _HEADER[_NAME.stop : _SIZE.start],
            fields[1],
            _HEADER[_SIZE.stop : _CHECKSUM.start],
            b" " * 8,
            _HEADER[_CHECKSUM.stop :],
        )
    )
    checksum = b"%06o\0 " % sum(header)
    return header[: _CHECKSUM.start] + checksum + header[_CHECKSUM.stop :]
