"""MLflow: a run of the experiment MLFLOW_EXPERIMENT_NAME, or `deitctl`, at MLFLOW_TRACKING_URI."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from deitctl.trackers.tracker import PROJECT, Point, TrackedRun

RUN_TAG = "deitctl.run_id"
MAX_PARAM = 500
"""Characters of a setting's value that MLflow takes."""
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
SERIES = {"step": "train/loss", "epoch": "val/loss"}
"""A number that every record of a kind has."""


class MlflowTracker:
    """A run that a resume finds by a tag, and goes on with after the last step that it has."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin or go on with the run."""
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        # A new local store is announced table by table.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.client, self._metric = MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self.place = f"experiment {name} at {self.client.tracking_uri}"
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        former = self.client.search_runs([number], f"tags.`{RUN_TAG}` = '{run.run_id}'")
        if former:
            self.run_id = former[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.run_id, "mlflow.runName": run.name}
            self.run_id = self.client.create_run(number, tags=tags).info.run_id
            values = [Param(key, str(value)[:MAX_PARAM]) for key, value in run.settings.items()]
            for start in range(0, len(values), 100):  # as many as a request takes
                self.client.log_batch(self.run_id, params=values[start : start + 100])
        self.steps_before = self._find_last_steps() if former else {}

    def _find_last_steps(self) -> Mapping[str, int]:
        steps = {
            kind: [metric.step for metric in self.client.get_metric_history(self.run_id, series)]
            for kind, series in SERIES.items()
        }
        return {kind: max(numbers) for kind, numbers in steps.items() if numbers}

    def log(self, point: Point) -> None:
        """Add a record's numbers, in one request."""
        now = int(time.time() * 1000)
        metrics = [self._metric(k, v, now, point.step) for k, v in point.values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Add an image to the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), str(Path(name).parent))

    def finish(self, status: str) -> None:
        """Set the run's status."""
        self.client.set_terminated(self.run_id, STATUS[status])
