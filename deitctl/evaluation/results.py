"""The results of several models or protocols on the same images."""

from __future__ import annotations

from dataclasses import dataclass

from deitctl.device import Device
from deitctl.evaluation.bootstrap import PairedComparison
from deitctl.evaluation.multilabel_bootstrap import MultilabelComparison
from deitctl.evaluation.multilabel_result import Result
from deitctl.records import hidden


@dataclass(frozen=True, kw_only=True)
class EvalResults:
    """Several models or protocols on the same images."""

    data: str
    """Data set, as it was named."""
    evaluations: list[Result]
    """One result per model and protocol, all of one kind of labels."""
    comparisons: list[PairedComparison | MultilabelComparison]
    """The first against each of the others, image by image."""
    device: Device = hidden(repr=False)
    """Where the models are."""
