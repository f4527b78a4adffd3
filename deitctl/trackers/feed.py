"""Feeds a run's trackers from its log, without training waiting for them or failing with them."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deitctl.errors import ConfigError, Interrupted, Signalled, did_you_mean
from deitctl.events import Reporter
from deitctl.paths import read_json, write_json
from deitctl.threads import DaemonThreads
from deitctl.trackers.tracker import Point, TrackedRun, Tracker, make_point

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "csv")
ID_FILE = "trackers.json"
MAX_PENDING = 10_000
"""Records that a tracker may be behind: some days of a server that does not answer."""
PATIENCE, STOP_PATIENCE = 60.0, 5.0
"""Seconds that the end of a run, and its stop, wait for a tracker."""


def parse_trackers(text: str) -> tuple[str, ...]:
    """Return the trackers that `--log` names, by commas.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    names = tuple(dict.fromkeys(filter(None, (name.strip().lower() for name in text.split(",")))))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"There is no tracker {name!r}.",
                did_you_mean(name, TRACKERS) or f"There are: {', '.join(TRACKERS)}.",
            )
        if name != "csv" and find_spec(name) is None:
            raise ConfigError(
                f"--log {name} needs the package {name}, which is not installed.",
                f"Install it: pip install 'deitctl[{name}]', or leave --log {name} out.",
            )
    return names


class _Lane:
    """One tracker, and the thread that opens it and hands it what comes, in order."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        """Begin to open the tracker, which may wait for a server."""
        self.name = name
        self.failure: BaseException | None = None
        self.is_announced = False
        self._thread = DaemonThreads(1)
        self._pending: deque[Future[Any]] = deque()
        self._opening: Future[Tracker] = self._thread.submit(lambda open_: open_(), open_tracker)
        self._pending.append(self._opening)

    @property
    def place(self) -> str | None:
        """Where the tracker keeps the run; None until it is open."""
        if not self._opening.done() or self._opening.exception() is not None:
            return None
        return self._opening.result().place

    def submit(self, work: Callable[[Tracker], None]) -> None:
        """Let the thread do what is next, unless something failed before or it is far behind."""
        self.check()
        if self.failure is None and len(self._pending) >= MAX_PENDING:
            self.failure = TimeoutError(f"it is {MAX_PENDING:,} records behind")
        if self.failure is None:
            self._pending.append(self._thread.submit(lambda do: do(self._opening.result()), work))

    def check(self) -> None:
        """Take note of what is done and of the first failure, after which nothing more is handed over."""
        while self._pending and (self.failure is not None or self._pending[0].done()):
            future = self._pending.popleft()
            if self.failure is not None:
                future.cancel()
            elif not future.cancelled():
                self.failure = future.exception()

    def wait(self, deadline: float) -> None:
        """Wait for what was handed over, until a moment of the monotonic clock."""
        left = max(0.0, deadline - time.monotonic())
        unfinished = futures.wait(self._pending, left).not_done
        self.check()
        if unfinished and self.failure is None:
            self.failure = TimeoutError("it does not answer")


class TrackerFeed:
    """The trackers of a run; one that fails is warned of once, and the run goes on without it."""

    def __init__(self, lanes: Sequence[_Lane], reporter: Reporter) -> None:
        """Feed `lanes`; `reporter` gets their failures."""
        self.lanes, self.reporter = list(lanes), reporter

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand over a record of the run's log that is new."""
        self._submit(partial(_log_missing, points=[make_point(record)]))

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Hand over the run's log so far, what a tracker has already left out."""
        points = sorted(map(make_point, records), key=lambda p: (p.step, p.kind == "epoch"))
        self._submit(partial(_log_missing, points=points))

    def log_images(self, images: Iterable[Path], step: int) -> None:
        """Hand over figures, PNG files."""
        for path in images:
            self._submit(partial(_log_image, path=path, step=step))

    def finish(self, status: str, patience: float) -> None:
        """Hand over the status, and wait `patience` seconds at most for what is left."""
        self._submit(lambda tracker: tracker.finish(status))
        deadline = time.monotonic() + patience
        for lane in self.lanes:
            lane.wait(deadline)
        self._report()

    def _submit(self, work: Callable[[Tracker], None]) -> None:
        for lane in self.lanes:
            lane.submit(work)
        self._report()

    def _report(self) -> None:
        """Say once where each tracker keeps the run, or that it fails."""
        for lane in self.lanes:
            if not lane.is_announced and lane.place is not None:
                lane.is_announced = True
                self.reporter.note(f"Logging to {lane.name}: {lane.place}.")
        for lane in [lane for lane in self.lanes if lane.failure is not None]:
            self.lanes.remove(lane)
            self.reporter.warn(
                f"{lane.name} fails ({_describe(lane.failure)}): the run goes on without it. What it "
                "lacks is in metrics.jsonl, and is handed over when the run is resumed."
            )


def _log_missing(tracker: Tracker, points: Sequence[Point]) -> None:
    """Log the points that the tracker had not when it was opened: a resume takes the steps after its
    checkpoint again."""
    for point in points:
        if point.step > tracker.steps_before.get(point.kind, 0):
            tracker.log(point)


def _log_image(tracker: Tracker, path: Path, step: int) -> None:
    tracker.log_image(f"report/{path.stem}", path, step)


def _describe(error: BaseException | None) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]


@contextmanager
def open_feed(
    names: Sequence[str],
    run: TrackedRun,
    reporter: Reporter,
) -> Iterator[TrackerFeed]:
    """Open a run's trackers for a block; at its end they get the status `finished`, `stopped` where an
    interrupt ends it, or `failed`.

    Args:
        names: see `TRACKERS`; none: a feed that does nothing.
        run: `run_id` may be empty: that of the run's earlier session, or a new one.
        reporter: gets what a tracker has to say.
    """
    if names and not run.run_id:
        run = replace(run, run_id=_choose_id(run.root))
    feed = TrackerFeed([_Lane(name, partial(_open_tracker, name, run)) for name in names], reporter)
    try:
        yield feed
    except BaseException as error:
        is_interrupt = isinstance(error, KeyboardInterrupt | Signalled | Interrupted)
        feed.finish("stopped" if is_interrupt else "failed", STOP_PATIENCE)
        raise
    feed.finish("finished", PATIENCE)


def _choose_id(root: Path) -> str:
    """Return the id by which trackers know the run, which the first session chooses."""
    path = root / ID_FILE
    try:
        record = read_json(path)
        if isinstance(record, dict) and isinstance(record.get("run_id"), str) and record["run_id"]:
            return str(record["run_id"])
    except (OSError, ValueError):
        pass  # a new run, or one without trackers so far
    run_id = secrets.token_hex(4)
    write_json(path, {"run_id": run_id})
    return run_id


def _open_tracker(name: str, run: TrackedRun) -> Tracker:
    if name == "tensorboard":
        from deitctl.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(run)
    if name == "wandb":
        from deitctl.trackers.wandb import WandbTracker

        return WandbTracker(run)
    if name == "mlflow":
        from deitctl.trackers.mlflow import MlflowTracker

        return MlflowTracker(run)
    if name == "trackio":
        from deitctl.trackers.trackio import TrackioTracker

        return TrackioTracker(run)
    from deitctl.trackers.csv_file import CsvTracker

    return CsvTracker(run)
