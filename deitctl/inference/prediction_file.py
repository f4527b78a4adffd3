"""Predictions in a JSON Lines file, which the same command continues after a kill."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter
from deitctl.inference.classifier import Classifier, Prediction, ScoredLabel
from deitctl.lock import locked
from deitctl.paths import DiskError, open_no_follow

SUFFIXES = (".jsonl", ".ndjson")
NUM_COMPARED = 16
"""Records that are computed again, which shows whether the file is this model's."""
TOLERANCES = {"auto": 0.03, "fp32": 0.03}
"""Of a score's logarithm, by precision. DeiT-tiny on 32 images: 4e-6 between batches of 1 and 16, 0.09 between fp32
and bf16, 1.9 between inputs of 208 and 224 pixels."""
LOW_PRECISION_TOLERANCE = 0.25
MIN_SCORE = 1e-9
"""Lower scores are rounding, and count as this."""


@dataclass
class PredictionFile:
    """The records of a file, and the records that it still lacks."""

    path: Path
    option: str
    """Names the file on the command line."""
    counts: Counter[str] = field(default_factory=Counter)
    """Records of each input."""
    sizes: set[int] = field(default_factory=set)
    """Numbers of classes in the predictions."""
    first: list[Mapping[str, Any]] = field(default_factory=list)
    """The first records with predictions, `NUM_COMPARED` at most."""
    num_errors: int = 0
    """Records of inputs that could not be read."""
    num_bytes: int = 0
    """Of the whole lines; what follows is half a record."""
    file: BinaryIO | None = None

    def read(self) -> None:
        """Read the records; raise `DataError` if the file holds anything else."""
        with os.fdopen(open_no_follow(self.path, os.O_RDONLY), "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # the last one: its writer was killed
                record = _parse_record(line, f"{self.path}, line {number},")
                self.num_bytes += len(line)
                self.counts[record["input"]] += 1
                if record["error"] is not None:
                    self.num_errors += 1
                    continue
                self.sizes.add(len(record["predictions"]))
                if len(self.first) < NUM_COMPARED:
                    self.first.append(record)

    def require_inputs(self, names: Iterable[str], reporter: Reporter) -> None:
        """Refuse a file none of whose records is of these inputs; note records of other inputs."""
        others = self.counts.keys() - set(names)
        if not others:
            return
        example = next(name for name in self.counts if name in others)
        if len(others) == len(self.counts):
            raise ConfigError(
                f"{self.path} has records of other inputs, {example!r} for one.",
                "Name the inputs as they were named for that file, or name another file.",
            )
        reporter.note(
            f"{self.path} has {len(others):,} inputs that are not named now, {example!r} for one; "
            "their records stay."
        )

    def require_model(
        self, classifier: Classifier, *, topk: int, precision: str, reporter: Reporter
    ) -> None:
        """Compute the first records again, and refuse the file unless they agree.

        Scores depend on all that matters but thresholds: weights, head, temperature, preprocessing, classes.

        Raises:
            ConfigError: the records are another model's, or of other settings.
        """
        num_classes = classifier.model_config.num_classes
        if others := self.sizes - {min(topk, num_classes)}:
            raise ConfigError(
                f"{self.path} has predictions of {min(others)} classes, not {min(topk, num_classes)}.",
                f"Use --topk {min(others)} and the model of that file, or name another file.",
            )
        names = [record["input"] for record in self.first]
        predictions = classifier.stream(names, topk=num_classes, batch_size=NUM_COMPARED)
        tolerance = TOLERANCES.get(precision, LOW_PRECISION_TOLERANCE)
        num_compared = 0
        for record, prediction in zip(self.first, predictions, strict=True):
            if prediction.error is None:
                num_compared += 1
                _require_equal(self.path, record, prediction, tolerance)
        if self.first and not num_compared:
            reporter.warn(
                f"Whether {self.path} is of this model could not be verified: none of its first "
                f"{len(names)} images can be read any more."
            )

    def predict_remaining(
        self, names: Iterable[str], classifier: Classifier, *, topk: int, batch_size: int
    ) -> Iterator[Prediction]:
        """Yield the predictions that the file lacks, in the order of `names`."""
        remaining = list_remaining(names, self.counts, batch_size)
        images = (name for name, _ in remaining)
        predictions = classifier.stream(images, topk=topk, batch_size=batch_size)
        for (_, is_written), prediction in zip(remaining, predictions, strict=True):
            if not is_written:
                yield prediction

    def start(self) -> None:
        """Cut half a record off, and create a file that is missing."""
        with self._report_disk_errors():
            # A link could lead to any file of the user's, which would be cut or added to.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self.file = os.fdopen(open_no_follow(self.path, flags), "ab")
            self.file.truncate(self.num_bytes)

    def append(self, line: str) -> None:
        """Add a record; the system has it when this returns, so that a kill does not lose it."""
        assert self.file is not None
        with self._report_disk_errors():
            self.file.write(line.encode())
            self.file.flush()

    def close(self) -> None:
        """Close the file, if it was started."""
        if self.file is not None:
            with suppress(OSError):  # of a full disk, which `append` has reported
                self.file.close()

    @contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError.from_os_error(self.path, error, self.option) from error


@contextmanager
def open_prediction_file(path: Path, *, resume: bool) -> Iterator[PredictionFile]:
    """Lock a file of records, and read what it holds.

    Args:
        path: ends in .jsonl.
        resume: continue a file that exists; else it is refused.

    Raises:
        ConfigError: another suffix, or the file exists.
        DataError: the file holds something else than records.
        Busy: another process writes it.
        DiskError: it cannot be read or written.
    """
    records = PredictionFile(path, "--resume" if resume else "--output")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is no name of a file of records: they end in .jsonl.")
    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        with records._report_disk_errors():
            # The file of the lock stays: if it were removed, two writers could lock two files of this name.
            stack.enter_context(locked(lock, what=str(path)))
        stack.callback(records.close)
        if os.path.lexists(path):
            if not resume:
                raise ConfigError(
                    f"{path} exists.",
                    f"Continue it with --resume {shlex.quote(str(path))}, or name another file.",
                )
            with records._report_disk_errors():
                records.read()
        yield records


def list_remaining(
    names: Iterable[str], counts: Mapping[str, int], batch_size: int
) -> list[tuple[str, bool]]:
    """Return the inputs of each batch that has one without a record, and whether they have one.

    Whole batches, because the last bit of a score can depend on the others of its batch: the file
    becomes that of an uninterrupted prediction.
    """
    left, inputs = Counter(counts), []
    for name in names:
        inputs.append((name, left[name] > 0))
        left[name] -= 1
    batches = (inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size))
    return [item for batch in batches if not all(done for _, done in batch) for item in batch]


def _parse_record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        is_record = (
            isinstance(record["input"], str)
            and isinstance(record["error"], str | None)
            and all(
                isinstance(scored["index"], int) and 0 <= scored["score"] <= 1
                for scored in (*record["predictions"], *(record.get("labels") or ()))
            )
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        is_record = False
    if not is_record:
        raise DataError(
            f"{where} is no record of `deitctl predict`.", "Remove it, or name another file."
        )
    return dict(record)


def _require_equal(
    path: Path, record: Mapping[str, Any], prediction: Prediction, tolerance: float
) -> None:
    classes = {scored.index: scored for scored in prediction.predictions}
    for written in record["predictions"]:
        now, label = classes.get(written["index"]), written.get("label")
        if now is None or now.label != label:
            gives = "which is no class of this model"
        elif abs(_log(written["score"]) - _log(now.score)) <= tolerance:
            continue
        else:
            gives = f"and this model gives {now.score:.4g}"
        raise ConfigError(
            f"{path} was written by another model or with other settings: {record['input']} has "
            f"{written['score']:.4g} for {label!r} there, {gives}.",
            "Use the model and settings of that file, or name another file.",
        )
    _require_equal_labels(path, record, prediction, tolerance)


def _require_equal_labels(
    path: Path, record: Mapping[str, Any], prediction: Prediction, tolerance: float
) -> None:
    """Raise `ConfigError` if a record has other labels; those are free that are close to their threshold."""
    written = record.get("labels")
    if written is None and prediction.labels is None:
        return
    indices = {scored["index"] for scored in written or ()}
    now = {scored.index for scored in prediction.labels or ()}
    close = {
        scored.index
        for scored in prediction.predictions
        if isinstance(scored, ScoredLabel)
        and abs(_log(scored.score) - _log(scored.threshold)) <= tolerance
    }
    if (written is None) != (prediction.labels is None) or (indices ^ now) - close:
        raise ConfigError(
            f"{path} was written with another --task or other thresholds: {record['input']} has "
            f"{len(indices)} labels there, and this model gives it {len(now)}.",
            "Use the model and settings of that file, or name another file.",
        )


def _log(score: float) -> float:
    return math.log(max(score, MIN_SCORE))
