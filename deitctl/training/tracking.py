"""The trackers of a run, fed from its log for as long as it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from deitctl.paths import DiskError
from deitctl.settings import flatten, to_dict
from deitctl.trackers.feed import open_feed, parse_trackers
from deitctl.trackers.tracker import TrackedRun
from deitctl.training.extensions import Extensions

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer


@contextmanager
def track(trainer: Trainer, extensions: Extensions) -> Iterator[None]:
    """Hand over to the run's trackers what it logs in a block, and at its end the figures.

    A tracker that has less than the run's log gets the rest first: of a run that was killed, or that
    had no tracker so far.

    Raises:
        DeitctlError: a tracker cannot be opened.
    """
    run, config = trainer.run, trainer.config
    names = parse_trackers(config.log) if run.writes else ()
    tracked = TrackedRun(run.root, run.root.name, settings=flatten(to_dict(config)))
    with open_feed(names, tracked, trainer.reporter) as feed:
        feed.replay(chain(run.records("step"), run.records("epoch")))
        run.on_record = feed.log
        yield
        feed.log_images(_draw_figures(trainer, extensions), trainer.state.progress.step)


def _draw_figures(trainer: Trainer, extensions: Extensions) -> Sequence[Path]:
    if extensions.draw_figures is None or not trainer.run.writes:
        return ()
    try:
        return extensions.draw_figures(trainer.run.root)
    except DiskError as error:
        trainer.reporter.warn(f"{error.message} The run is finished, without its curves.")
        return ()
