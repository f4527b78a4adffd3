"""Trackers get every record of a run's log once, in order, and never end a training."""

from __future__ import annotations

import csv
import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deitctl.errors import ConfigError, Interrupted
from deitctl.events import SilentReporter
from deitctl.trackers import feed as package
from deitctl.trackers.feed import TrackerFeed, open_feed, parse_trackers
from deitctl.trackers.tracker import Point, TrackedRun, Tracker, make_point

PER_EPOCH = 20
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the trackers' packages


class Warnings(SilentReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)


def make_log(num_epochs: int) -> list[dict[str, Any]]:
    """The log of a run: every tenth step and each epoch."""
    records: list[dict[str, Any]] = []
    for epoch in range(1, num_epochs + 1):
        first = (epoch - 1) * PER_EPOCH
        for step in (first, first + 10, first + 19):
            losses = {"loss": 2 / (step + 1), "task_loss": 2 / (step + 1)}
            records.append({"kind": "step", "step": step, "epoch": epoch, "lr": 1e-3, **losses})
        scores = {"top1": 10.0 * epoch, "top5": None, "val_loss": 1 / epoch, "weights": "ema"}
        own = {"seconds": 1.5, "heads": {"cls": 1.0, "dist": 2.0}, "train": {"loss": 0.5}}
        step = epoch * PER_EPOCH
        records.append({"kind": "epoch", "step": step, "epoch": epoch, **scores, **own})
    return records


def steps_of(log: list[dict[str, Any]], kind: str) -> list[int]:
    return [make_point(record).step for record in log if record["kind"] == kind]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    """A run folder, and stores of the trackers beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to begin
    root = tmp_path / "run"
    root.mkdir()
    return TrackedRun(root, "run", settings={"seed": 0, "recipe.optim.lr": 1e-3})


def track(
    run: TrackedRun,
    name: str,
    log: list[dict[str, Any]],
    *,
    before: int = 0,
    stop: Exception | None = None,
) -> None:
    """Hand over a log of which an earlier session wrote `before` records; `stop` ends the training."""
    reporter = Warnings()
    with open_feed([name], run, reporter) as feed:
        feed.replay(log[:before])
        for record in log[before:]:
            feed.log(record)
        if stop is not None:
            raise stop
    assert not reporter.messages


def read_csv(run: TrackedRun) -> dict[str, list[int]]:
    with (run.root / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {kind: [int(r["step"]) for r in rows if r["kind"] == kind] for kind in ("step", "epoch")}


def read_tensorboard(run: TrackedRun) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.root / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    series = {"step": "train/loss", "epoch": "val/loss"}
    return {kind: [e.step for e in events.Scalars(name)] for kind, name in series.items()}


def read_mlflow(run: TrackedRun) -> dict[str, list[int]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("deitctl")
    (found,) = client.search_runs([experiment.experiment_id])
    series = {"step": "train/loss", "epoch": "val/loss"}
    return {
        kind: [m.step for m in client.get_metric_history(found.info.run_id, name)]
        for kind, name in series.items()
    }


def read_wandb(run: TrackedRun) -> dict[str, list[int]]:
    from wandb.proto.wandb_internal_pb2 import Record

    steps: dict[str, list[int]] = {"step": [], "epoch": []}
    for path in sorted(run.root.glob("wandb/offline-run-*/*.wandb")):
        for data in scan_log(path.read_bytes()):
            items = Record.FromString(data).history.item
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
            for kind, series in (("step", "train/loss"), ("epoch", "val/loss")):
                if series in values:
                    steps[kind].append(int(json.loads(values["_step"])))
    return steps


def scan_log(data: bytes) -> Iterator[bytes]:
    """Yield the records of W&B's file, which is a log of LevelDB's after seven bytes of its own."""
    at, parts, block = 7, b"", 1 << 15
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for a header: the next block
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_trackio(run: TrackedRun) -> dict[str, list[int]]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("deitctl")
    rows = SQLiteStorage.get_logs("deitctl", name)
    series = {"step": "train/loss", "epoch": "val/loss"}
    return {kind: [row["step"] for row in rows if name in row] for kind, name in series.items()}


READERS = {
    "csv": read_csv,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
    "trackio": read_trackio,
}


@pytest.fixture(scope="session", autouse=True)
def trackio_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trackio's store, which it looks up when it is imported, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_goes_on_without_doubled_or_missing_steps(
    name: str, run: TrackedRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "deitctl")
    monkeypatch.setattr(package, "STOP_PATIENCE", 60)  # of a busy machine
    log = make_log(3)
    # Stopped after seven records, of which a checkpoint has five; then the rest.
    with pytest.raises(Interrupted):
        track(run, name, log[:7], stop=Interrupted(2))
    if name == "wandb":
        time.sleep(1.1)  # it names an offline folder by the second
    track(run, name, log, before=5)
    expected = {kind: steps_of(log, kind) for kind in ("step", "epoch")}
    deadline = time.monotonic() + 20  # W&B's own process writes after the end
    while READERS[name](run) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert READERS[name](run) == expected
    assert capfd.readouterr().out == ""  # which is for a command's data


def test_a_tracker_that_is_added_later_gets_the_log_so_far(run: TrackedRun) -> None:
    log = make_log(2)
    track(run, "csv", log, before=len(log))
    assert read_csv(run) == {kind: steps_of(log, kind) for kind in ("step", "epoch")}


def test_a_step_counts_the_steps_done_and_its_numbers_are_grouped() -> None:
    step, epoch = make_log(1)[0], make_log(1)[-1]
    assert make_point(step) == Point(
        "step", 1, {"train/lr": 1e-3, "train/loss": 2.0, "train/task_loss": 2.0}
    )
    assert make_point(epoch) == Point(
        "epoch",
        PER_EPOCH,
        {
            **{"epoch": 1.0, "train_epoch/loss": 0.5, "run/seconds": 1.5},
            **{"val/top1": 10.0, "val/loss": 1.0, "val/heads/cls": 1.0, "val/heads/dist": 2.0},
        },
    )


def test_a_number_that_is_not_finite_is_left_out() -> None:
    record = {"kind": "step", "step": 0, "epoch": 1, "loss": float("nan"), "grad_norm": None}
    assert make_point(record).values == {}


def test_tensorboard_has_the_figures(run: TrackedRun, tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "curves.png")
    with open_feed(["tensorboard"], run, Warnings()) as feed:
        feed.log_images([tmp_path / "curves.png"], 5)
    events = EventAccumulator(str(run.root / "tensorboard"))
    events.Reload()
    (image,) = events.Images("report/curves")
    assert (image.step, image.width, image.height) == (5, 8, 4)


class Refuses:
    """A tracker whose server is gone."""

    place = "nowhere"
    steps_before: Mapping[str, int] = {}

    def log(self, point: Point) -> None:
        raise ConnectionError("connection refused")

    def log_image(self, name: str, path: Path, step: int) -> None:
        raise AssertionError("nothing is handed over after a failure")

    def finish(self, status: str) -> None:
        raise AssertionError("nothing is handed over after a failure")


class NeverAnswers(Refuses):
    """A tracker whose server does not answer."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def log(self, point: Point) -> None:
        self.is_over.wait(30)


@pytest.fixture
def use_tracker(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(tracker: Tracker) -> None:
        monkeypatch.setattr(package, "_open_tracker", lambda *_: tracker)

    return use


def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(
    run: TrackedRun, use_tracker: Any
) -> None:
    use_tracker(Refuses())
    reporter = Warnings()
    with open_feed(["mlflow"], run, reporter) as feed:
        for record in make_log(2):
            feed.log(record)
    (message,) = reporter.messages
    assert message.startswith("mlflow fails (connection refused): the run goes on without it.")


def test_a_tracker_that_does_not_answer_keeps_nothing_waiting_longer_than_its_patience(
    run: TrackedRun, use_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "PATIENCE", 0.2)
    tracker, reporter = NeverAnswers(), Warnings()
    use_tracker(tracker)
    with open_feed(["mlflow"], run, reporter) as feed:
        for record in make_log(2):
            feed.log(record)
    tracker.is_over.set()
    (message,) = reporter.messages
    assert message.startswith("mlflow fails (it does not answer)")


def test_a_tracker_that_is_far_behind_gets_no_later_records(
    run: TrackedRun, use_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_PENDING", 3)
    monkeypatch.setattr(package, "PATIENCE", 0.1)
    tracker, reporter = NeverAnswers(), Warnings()
    use_tracker(tracker)
    with open_feed(["mlflow"], run, reporter) as feed:
        for record in make_log(2):
            feed.log(record)
    tracker.is_over.set()
    (message,) = reporter.messages
    assert message.startswith("mlflow fails (it is 3 records behind)")


def test_a_tracker_that_cannot_begin_is_warned_of_and_keeps_nothing_waiting(
    run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tracker:
        raise OSError("no route to host")

    monkeypatch.setattr(package, "_open_tracker", fail)
    reporter = Warnings()
    with open_feed(["mlflow"], run, reporter) as feed:
        feed.log(make_log(1)[0])
    (message,) = reporter.messages
    assert message.startswith("mlflow fails (no route to host): the run goes on without it.")


def test_names_are_checked_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_trackers("csv, TensorBoard,csv") == ("csv", "tensorboard")
    assert parse_trackers("") == ()
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'"):
        parse_trackers("tensorbord")
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'deitctl\[wandb\]'"):
        parse_trackers("wandb")


def test_a_feed_without_trackers_does_nothing(run: TrackedRun) -> None:
    with open_feed([], run, Warnings()) as feed:
        assert isinstance(feed, TrackerFeed)
        feed.replay(make_log(1))
        feed.log(make_log(1)[0])
    assert not list(run.root.iterdir())
