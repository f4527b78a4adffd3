"""The main process alone looks at the data, each file once, and the others have what it opened."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl import distributed
from deitctl.data import open_once as module
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.fingerprint import RunFingerprints, fingerprint_dataset, fingerprint_split
from deitctl.data.open import open_dataset
from deitctl.data.open_once import open_once
from deitctl.data.run_data import write_split
from deitctl.data.training_data import Source, open_for_training
from deitctl.distributed import SINGLE_PROCESS, World, process_group
from deitctl.errors import DataError, DeitctlError, StoreLost
from deitctl.events import SilentReporter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")
SILENT = SilentReporter()


def run_together(num_processes: int, work: Callable[[World], Any]) -> list[Any]:
    """Return what a function returns in each of several processes, or the error that it raises."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()

    def start(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        distributed._open_store.cache_clear()
        try:
            with process_group(torch.device("cpu")) as world:
                try:
                    result = work(world)
                except DeitctlError as error:
                    result = error
                results.put((rank, result))
                world.barrier()
        except BaseException as error:
            results.put((rank, repr(error)))
        os._exit(0)

    processes = [fork.Process(target=start, args=(rank,)) for rank in range(num_processes)]
    for process in processes:
        process.start()
    by_rank = dict(results.get() for _ in processes)
    for process in processes:
        process.join(30)
    return [by_rank[rank] for rank in range(num_processes)]


class Looks:
    """How often this process lists folders below one, and opens or stats files."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"{folder}{os.sep}"
        self.counts: Counter[tuple[str, str]] = Counter()
        stat = os.stat

        def count_stat(path: Any, **options: Any) -> os.stat_result:
            self.add("stat", path)
            return stat(path, **options)

        os.stat = count_stat  # in a process that is forked for it
        sys.addaudithook(lambda event, args: self.add(event, args[0] if args else None))

    def add(self, event: str, path: Any) -> None:
        is_look = event in ("open", "stat", "os.scandir", "os.listdir")
        if is_look and f"{path}{os.sep}".startswith(self.prefix):
            self.counts[event, str(path)] += 1

    def of_images(self, event: str) -> Counter[int]:
        """How many images were looked at how often."""
        return Counter(
            count
            for (kind, path), count in self.counts.items()
            if (kind, path[-4:]) == (event, ".jpg")
        )


def make_photos(folder: Path) -> Path:
    """160 JPEGs of two classes, none of the size of another's."""
    draw = np.random.default_rng(0)
    for number in range(160):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (32 + number // 8, 32 + number % 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def test_the_main_process_looks_at_each_image_once_and_the_others_at_none(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos")
    alone = open_for_training(Source(str(folder)), reporter=SILENT)
    expected = [fingerprint_split(*alone), *(fingerprint_dataset(part, SILENT) for part in alone)]

    def start(world: World) -> Any:
        looks = Looks(folder)
        source = Source(str(folder), has_teacher=True)
        train, val = open_for_training(source, reporter=SILENT, world=world)
        if world.is_main:
            write_split(tmp_path, train, val)
        fingerprints = RunFingerprints(train, val, SILENT, world)
        fingerprints.share()
        values = [fingerprint_split(train, val), fingerprints.train, fingerprints.val]
        counts = looks.of_images("open"), looks.of_images("stat"), sum(looks.counts.values())
        return *counts, values, train.read(0).tobytes()

    results = run_together(3, start)
    assert all(values == expected for *_, values, _ in results)
    assert all(pixels == alone[0].read(0).tobytes() for *_, pixels in results)
    opens, stats, *_ = results[0]
    # Beside the one read of each image, the first bytes of 64 (is it an image?) and of 4 (its bits).
    assert opens.total() == 160
    assert sum(opens.elements()) == 160 + 64 + 4
    assert stats == {2: 160}  # its size, and before it is opened whether it is a file
    assert [num_looks for _, _, num_looks, *_ in results[1:]] == [0, 0]


def test_the_processes_of_a_host_have_large_arrays_in_one_memory() -> None:
    numbers = np.arange(1_000_000)

    def start(world: World) -> Any:
        def open_numbers() -> dict[str, Any]:
            return {"numbers": numbers, "again": numbers, "few": np.arange(3)}

        received = open_once(open_numbers, world, lambda _: [])
        assert received["numbers"] is received["again"]
        received["few"][0] = 7  # of this process alone
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        inodes = {line[4] for line in maps if "deitctl-data" in line[-2:][0]}
        return inodes, int(received["numbers"].sum()), received["few"].tolist()

    (_, *main), (first, *one), (second, *two) = run_together(3, start)
    assert main == one == two == [int(numbers.sum()), [7, 1, 2]]
    assert len(first) == 1
    assert first == second


def test_what_the_main_process_finds_wrong_ends_all_and_one_prints_it(tmp_path: Path) -> None:
    def start(world: World) -> Any:
        assert open_for_training(Source(str(tmp_path / "none")), reporter=SILENT, world=world)

    errors = run_together(3, start)
    assert {type(error) for error in errors} == {DataError}
    assert len({str(error) for error in errors}) == 1
    assert [error.is_reported for error in errors] == [False, True, True]


def make_tar(folder: Path, images: Path) -> Path:
    tar = folder / "images.tar"
    with tarfile.open(tar, "w") as file:
        file.add(images, "")
    return tar


def on_a_host_of_its_own(rank: int, world: World) -> None:
    if world.rank == rank:
        module._identify_host = lambda: ("node2", "", "")


def list_parts(data: Any) -> list[ImageDataset]:
    return list(data.list_parts().values())


def test_a_copy_on_another_host_is_the_same_data_and_a_replaced_file_is_not(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tar = make_tar(tmp_path, image_folder({"a": 3, "b": 3}))

    def start(world: World) -> Any:
        on_a_host_of_its_own(2, world)
        data = open_once(lambda: open_dataset(str(tar), SILENT), world, list_parts)
        world.barrier()
        if world.is_main:
            shutil.copy(tar, tmp_path / "copy")
            os.utime(tmp_path / "copy", (1, 1))
            os.replace(tmp_path / "copy", tar)
        world.barrier()
        return len(list_parts(data)[0].read_bytes(0)) > 100

    _, same_host, other_host = run_together(3, start)
    assert other_host is True
    assert "was replaced while in use" in str(same_host)


def test_a_host_with_other_bytes_is_named(
    image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder({"a": 3, "b": 3})

    def start(world: World) -> Any:
        on_a_host_of_its_own(1, world)
        if world.rank == 1:
            FileDataset.digest = lambda *_: 1  # type: ignore[method-assign]
        return open_once(lambda: open_dataset(str(folder), SILENT), world, list_parts)

    errors = run_together(2, start)
    assert all(isinstance(error, DataError) for error in errors), errors
    assert "node2 has other bytes than" in str(errors[0])
    assert str(folder / "a") in str(errors[0])
    assert [error.is_reported for error in errors] == [False, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_store_that_is_lost_to_one_host_ends_all(
    image_folder: Callable[..., Path], rank: int
) -> None:
    folder = image_folder({"a": 1, "b": 1})

    def lose(*_: object) -> int:
        raise StoreLost("s3://x does not answer.", "Wait.")

    def start(world: World) -> Any:
        on_a_host_of_its_own(1, world)
        if world.rank == rank:
            FileDataset.digest = lose  # type: ignore[method-assign]
        return open_once(lambda: open_dataset(str(folder), SILENT), world, list_parts)

    errors = run_together(2, start)
    assert [type(error) for error in errors] == [StoreLost, StoreLost], errors
    assert [error.is_reported for error in errors] == [False, True]


def test_one_process_opens_by_itself() -> None:
    marker = object()
    assert open_once(lambda: marker, SINGLE_PROCESS, lambda _: []) is marker
