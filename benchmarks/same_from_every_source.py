"""The same images as folder, shards, class tars, parquet, arrow and table: are the final weights the same?

    python benchmarks/same_from_every_source.py FOLDER [--images 2000] [--val 200] [--keep DIR] [--sources folder wds]

FOLDER has train/ and val/ of class folders. So many images of it, evenly from every class, are written in each form, by
the libraries of those forms (webdataset, tarfile, pyarrow, datasets) and by `deitctl pack`. Then the same short run
trains on each: with 0 and 2 loader processes, in 1 and 2 processes (torchrun), and once more ended by SIGKILL behind
its first checkpoint and resumed. A row has the first digits of the SHA-256 of each run's weights; those of the same
number of processes must be equal (two sum their gradients in another order than one). At last a teacher of two cached
views distills from every source: all must use the one cache that the first of them filled. Last figures:
docs/results/data.md.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EPOCHS = 2
SHAPE = ("model.depth=2", "model.embed_dim=48", "model.num_heads=2")
SETTINGS = (
    *("--no-pretrained", "--img-size", "32", "--epochs", str(EPOCHS), "--batch-size", "100"),
    *("--device", "cpu", "--precision", "fp32", "--quiet", "--format", "json"),
    *(word for setting in SHAPE for word in ("--set", setting)),
)
PER_SHARD = 250
"""Images."""
Sample = tuple[str, str, int, Path]
"""Class, file name, label and file of an image."""


def choose_images(folder: Path, count: int, into: Path) -> None:
    """Copy the first images of every class of a folder, `count` in all."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    share = -(-count // len(classes))
    for number, class_folder in enumerate(classes):
        wanted = min(share, count - number * share)
        for file in sorted(class_folder.iterdir())[:wanted]:
            target = into / class_folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def list_samples(folder: Path) -> list[Sample]:
    """Return the images of class folders, in the order in which a folder is read."""
    classes = sorted(path.name for path in folder.iterdir())
    return [
        (name, file.name, label, file)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
    ]


def write_wds(samples: list[Sample], out: Path, split: str) -> None:
    """Write WebDataset shards with the library of that name."""
    import webdataset

    out.mkdir(parents=True, exist_ok=True)
    pattern = str(out / f"{split}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=PER_SHARD, verbose=0) as writer:
        for number, (name, file_name, label, file) in enumerate(samples):
            writer.write(
                {
                    "__key__": f"{number:08}",
                    "jpg": file.read_bytes(),
                    "cls": label,
                    "json": {"filename": f"{name}/{file_name}", "label": label},
                }
            )


def write_class_tars(samples: list[Sample], out: Path, split: str) -> None:
    """Write one tar a class, as ImageNet-21k is downloaded."""
    (out / split).mkdir(parents=True)
    for class_name in sorted({name for name, *_ in samples}):
        with tarfile.open(out / split / f"{class_name}.tar", "w") as archive:
            for name, file_name, _, file in samples:
                if name == class_name:
                    archive.add(file, file_name)


def write_parquet(samples: list[Sample], out: Path, split: str) -> None:
    """Write Parquet files in the hub's form."""
    import pyarrow
    import pyarrow.parquet

    classes = sorted({name for name, *_ in samples})
    features = {
        "image": {"_type": "Image"},
        "label": {"names": classes, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (out / "data").mkdir(parents=True, exist_ok=True)
    parts = [samples[at : at + 1000] for at in range(0, len(samples), 1000)]
    for number, part in enumerate(parts):
        images = [{"bytes": file.read_bytes(), "path": file.name} for *_, file in part]
        table = pyarrow.table({"image": images, "label": [label for _, _, label, _ in part]})
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(metadata),
            out / "data" / f"{split}-{number:05}-of-{len(parts):05}.parquet",
            row_group_size=100,
        )


def write_arrow(samples: list[Sample], out: Path, split: str) -> None:
    """Write what `datasets.save_to_disk` writes."""
    import datasets

    datasets.disable_progress_bars()
    classes = sorted({name for name, *_ in samples})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for *_, file in samples],
        "label": [label for _, _, label, _ in samples],
    }
    datasets.Dataset.from_dict(columns, features).save_to_disk(str(out / split))
    (out / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "val"]}))


def write_tar(samples: list[Sample], out: Path, split: str) -> None:
    """Add the class folders of a split to one tar."""
    with tarfile.open(out, "a") as archive:
        for name, file_name, _, file in samples:
            archive.add(file, f"{split}/{name}/{file_name}")


def write_table(samples: list[Sample], out: Path, split: str) -> None:
    """Add rows of path, label and split to a table."""
    is_new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(("path", "label", "split"))
        writer.writerows((path, name, split) for name, _, _, path in samples)


Writer = Callable[[list[Sample], Path, str], None]
WRITERS: dict[str, tuple[str, Writer]] = {
    "wds": ("wds", write_wds),
    "class tars": ("class-tars", write_class_tars),
    "hub parquet": ("parquet", write_parquet),
    "arrow": ("arrow", write_arrow),
    "tar": ("one.tar", write_tar),
    "table": ("table.csv", write_table),
}


def write_sources(root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the images in every form; yield the name and the place of each."""
    yield "folder", folder
    for title, (name, write) in WRITERS.items():
        for split in ("train", "val"):
            write(list_samples(folder / split), root / name, split)
        yield title, root / name
    for title, options in (("pack", ()), ("pack parquet", ("--to", "parquet"))):
        out = root / title.replace(" ", "-")
        run("pack", str(folder), str(out), "--shard-size", "5MB", "--quiet", *options)
        yield title, out


def run(
    *words: str, processes: int = 1, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    with start(*words, processes=processes, cache=cache) as process:
        out, err = process.communicate()
    if process.returncode:
        raise SystemExit(
            f"deitctl {' '.join(words)}\nended with {process.returncode}: {err[-2000:]}"
        )
    return subprocess.CompletedProcess(words, 0, out, err)


def start(*words: str, processes: int = 1, cache: Path | None = None) -> subprocess.Popen[str]:
    """Start the command line."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else ()), "-m", "deitctl", *words],
        env=os.environ
        | {"OMP_NUM_THREADS": "1"}
        | ({"DEITCTL_CACHE": str(cache)} if cache else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def hash_weights(run_folder: Path) -> str:
    """Return the first digits of the weights' SHA-256."""
    with (run_folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def train(data: Path, out: Path, workers: int, processes: int, cache: Path) -> str:
    """Train, and return the hash of the weights."""
    words = ("train", str(data), "--output", str(out), "--workers", str(workers), *SETTINGS)
    run(*words, processes=processes, cache=cache)
    return hash_weights(out)


def train_killed(data: Path, out: Path, cache: Path) -> str:
    """Train, end it by SIGKILL behind its first checkpoint, resume it; return the hash of the weights."""
    words = ("train", str(data), "--output", str(out), "--workers", "2", *SETTINGS)
    process = start(*words, "--save-every", "5", cache=cache)
    checkpoint = out / "checkpoint" / "state.json"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    if process.poll() is not None:
        raise SystemExit(f"{data}: it ended before its first checkpoint: {process.stderr.read()}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (out / "result.json").exists():
        raise SystemExit(f"{data}: it was done before it could be killed")
    run("train", "--resume", str(out), "--quiet", "--format", "json", cache=cache)
    return hash_weights(out)


def distill(data: Path, out: Path, cache: Path) -> tuple[str, int]:
    """Distill with cached views; return the hash of the weights, and how many caches of targets there are now."""
    words = ("distill", str(data), "--teacher", str(cache / "teacher"), "--views", "2")
    run(
        *words,
        "--output",
        str(out),
        "--allow-weak-teacher",
        "--workers",
        "0",
        *SETTINGS,
        cache=cache,
    )
    return hash_weights(out), len(list((cache / "teacher_targets").iterdir()))


def main() -> None:
    """Train on every source in every way, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--sources", nargs="*")
    parser.add_argument(
        "--keep", type=Path, help="folder for the data and the runs, which stay there"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        folder, cache = root / "folder", root / "cache"
        choose_images(options.folder / "train", options.images, folder / "train")
        choose_images(options.folder / "val", options.val, folder / "val")
        ways: dict[str, Callable[[Path, Path], str]] = {
            "0 loaders": lambda data, out: train(data, out, 0, 1, cache),
            "2 loaders": lambda data, out: train(data, out, 2, 1, cache),
            "2 processes": lambda data, out: train(data, out, 0, 2, cache),
            "killed": lambda data, out: train_killed(data, out, cache),
        }
        print(
            f"{'source':<14}" + "".join(f"{way:<18}" for way in ways) + "distilled, teacher caches"
        )
        hashes: dict[str, set[str]] = {"1 process": set(), "2 processes": set(), "distilled": set()}
        for number, (title, data) in enumerate(write_sources(root, folder)):
            if options.sources and title not in options.sources:
                continue
            row = []
            for way, train_so in ways.items():
                value = train_so(data, root / "runs" / f"{number}-{way.replace(' ', '-')}")
                hashes["2 processes" if way == "2 processes" else "1 process"].add(value)
                row.append(value)
            if not (cache / "teacher").exists():
                shutil.copytree(root / "runs" / f"{number}-0-loaders", cache / "teacher")
            value, num_caches = distill(data, root / "runs" / f"{number}-distilled", cache)
            hashes["distilled"].add(f"{value}, {num_caches} caches")
            print(
                f"{title:<14}"
                + "".join(f"{value:<18}" for value in row)
                + f"{value}, {num_caches:,}",
                flush=True,
            )
        equal = all(len(values) == 1 for values in hashes.values())
        print("all equal" if equal else f"DIFFERENT: {hashes}")
        sys.exit(not equal)


if __name__ == "__main__":
    main()
