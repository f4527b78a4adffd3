"""Writing of Parquet files in the form of Hugging Face's hub: columns image and label, classes in the schema.

`datasets` reads them, and shows images and class names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from deitctl.data.readers.parquet_file import named_errors
from deitctl.packing.manifest import Shard, flush, write_info
from deitctl.packing.samples import Sample, SampleSource, spell_in_utf8

NAMES = {"train": "train", "val": "validation", "test": "test", "": "data"}
"""What the files of a split are called. Of unsplit data `datasets` makes `train`."""
GROUP_IMAGES = 100
"""Images of a row group at most, as `datasets` writes them: reading one image reads its group."""
GROUP_BYTES = 2**25
"""Bytes of a row group above which another is begun."""


def write_parquet(folder: Path, source: SampleSource, shard_size: int) -> list[Shard]:
    """Write `data/train-00000-of-00004.parquet` and so on.

    Args:
        folder: empty.
        source: the images.
        shard_size: bytes above which another file is begun; one row group may be larger.

    Raises:
        DataError: pyarrow is not installed.
        OSError: the disk is full, for example.
    """
    with named_errors(folder):  # where pyarrow is missing
        (folder / "data").mkdir()
    splits = {}
    with closing(source.iterate_samples()) as samples:
        for name, part in source.datasets.items():
            images = islice(samples, len(part.labels))
            splits[NAMES[name]] = _write_split(folder, NAMES[name], images, shard_size, source)
    write_info(folder, splits, source)
    return [shard for shards in splits.values() for shard in shards]


def _write_split(
    folder: Path, name: str, samples: Iterable[Sample], shard_size: int, source: SampleSource
) -> list[Shard]:
    schema, shards = _make_schema(source), list[Shard]()
    writer: Any = None
    try:
        for group in _group_samples(samples):
            num_bytes = sum(len(sample.data) for sample in group)
            if writer is not None and shards[-1].bytes + num_bytes > shard_size:
                writer.close()
                writer = None
            if writer is None:
                shards.append(Shard(f"data/{name}-{len(shards):05}.parquet"))
                writer = _open_writer(folder / shards[-1].name, schema)
            writer.write_table(_make_table(group, schema), row_group_size=len(group))
            shards[-1].num_samples += len(group)
            shards[-1].bytes += num_bytes
    finally:
        if writer is not None:
            writer.close()
    for number, shard in enumerate(shards):
        path = folder / shard.name
        # How many there are is known at the end.
        shard.name = f"data/{name}-{number:05}-of-{len(shards):05}.parquet"
        path.rename(folder / shard.name)
        with (folder / shard.name).open("rb+") as file:
            shard.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            shard.bytes = file.tell()
            flush(file)
    return shards


def _group_samples(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield the samples of each row group."""
    group: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        if group and (len(group) == GROUP_IMAGES or num_bytes + len(sample.data) > GROUP_BYTES):
            yield group
            group, num_bytes = [], 0
        group.append(sample)
        num_bytes += len(sample.data)
    if group:
        yield group


def _make_schema(source: SampleSource) -> Any:
    """Return the schema of images and labels, with what `datasets` takes them for."""
    import pyarrow

    label: dict[str, Any] = {"names": source.class_names, "_type": "ClassLabel"}
    name, kind = "label", pyarrow.int64()
    if source.is_multilabel:
        label = {"feature": label, "_type": "Sequence"}
        name, kind = "labels", pyarrow.list_(pyarrow.int64())
    features = {"image": {"_type": "Image"}, name: label}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.schema(
        [("image", image), (name, kind)],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )


def _open_writer(path: Path, schema: Any) -> Any:
    import pyarrow.parquet

    # Images are compressed already, and none is twice.
    return pyarrow.parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, write_statistics=False
    )


def _make_table(samples: Sequence[Sample], schema: Any) -> Any:
    import pyarrow

    images = [{"bytes": sample.data, "path": spell_in_utf8(sample.name)} for sample in samples]
    labels = [sample.label for sample in samples]
    columns = [
        pyarrow.array(values, schema.field(at).type) for at, values in enumerate((images, labels))
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)
