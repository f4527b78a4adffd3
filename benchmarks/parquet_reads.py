"""Images' bytes a second from Parquet and Arrow, read by deitctl, pyarrow and `datasets`, in random order.

One process, one thread, seconds of this process's CPU; nothing is decoded. Run in an empty folder:

    python benchmarks/parquet_reads.py [--images 4000] [--kib 30] [--rows 100]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deitctl.data.open import open_dataset
from deitctl.events import SilentReporter


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 4000), ("kib", 30), ("rows", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, caching_in(folder):
        write(Path(folder), options.images, options.kib * 1024, options.rows)
        order = np.random.default_rng(0).permutation(options.images).tolist()
        print(f"{options.images:,} images of {options.kib} KiB, row groups of {options.rows}\n")
        print("| | images/s |\n|---|---|")
        for name, read in list_readers(Path(folder)):
            few = order[:: 1 if "single" not in name else 40]
            read(few[0])
            start = time.process_time()
            total = sum(len(read(index)) for index in few)
            seconds = time.process_time() - start
            assert total == len(few) * options.kib * 1024
            print(f"| {name} | {len(few) / seconds:,.0f} |")


@contextmanager
def caching_in(folder: str) -> Iterator[None]:
    """Let deitctl's cache be in a folder."""
    os.environ["DEITCTL_CACHE"] = f"{folder}/cache"
    yield


def write(folder: Path, count: int, size: int, rows: int) -> None:
    """Write the same images as Parquet and, as `datasets` does, as an Arrow stream."""
    images = [{"bytes": os.urandom(size), "path": f"{n}.jpg"} for n in range(count)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = pa.table({"image": images, "label": [n % 2 for n in range(count)]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, folder / "t.parquet", row_group_size=rows)
    with pa.ipc.new_stream(str(folder / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def list_readers(folder: Path) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    """Yield what reads an image by its number."""
    for kind in ("parquet", "arrow"):
        dataset = open_dataset(str(folder / f"t.{kind}"), SilentReporter()).unsplit
        assert dataset is not None
        if kind == "parquet":
            yield (
                "deitctl, Parquet, first epoch (row groups are decoded into the cache)",
                dataset.read_bytes,
            )
        yield (
            f"deitctl, {kind.capitalize()}" + ", next epochs" * (kind == "parquet"),
            dataset.read_bytes,
        )
    file = pq.ParquetFile(folder / "t.parquet")
    rows = file.metadata.row_group(0).num_rows

    def read_row(index: int) -> bytes:
        group = file.read_row_group(index // rows, columns=["image.bytes"], use_threads=False)
        data: bytes = group.column(0)[index % rows].as_py()["bytes"]
        return data

    yield "pyarrow, Parquet, a row group for a single row", read_row
    try:
        import datasets
    except ImportError:
        return
    saved = datasets.Dataset.from_file(str(folder / "t.arrow"))
    saved = saved.cast_column("image", datasets.Image(decode=False))
    yield "datasets, Arrow, mapped", lambda index: saved[index]["image"]["bytes"]


if __name__ == "__main__":
    main()
