"""Builds the report of an evaluation on images of several labels each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deitctl import __version__
from deitctl.data.eval_transform import eval_transform
from deitctl.data.range_survey import scale_for
from deitctl.evaluation.multilabel_bootstrap import MultilabelComparison
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.evaluation.results import EvalResults
from deitctl.events import Reporter, track
from deitctl.report.contents import Curves, Facts
from deitctl.report.labels_contents import HardImage, LabelsContents, LabelsSection
from deitctl.report.thumbnails import encode_thumbnail

MAX_EXAMPLES = 24
MAX_LABELS = 6
"""Labels of a kind that are listed below an image."""


def build_labels_contents(
    results: EvalResults,
    *,
    created: str,
    command: str,
    facts: Facts,
    facts_of: Mapping[str, Facts],
    curves: Curves | None,
    reporter: Reporter,
) -> LabelsContents:
    """Gather what a report of several labels an image shows."""
    several = [r for r in results.evaluations if isinstance(r, MultilabelResult)]
    limit = max(6, MAX_EXAMPLES // len(several))
    title = f"{several[0].name} on {results.data}"
    return LabelsContents(
        title=title if len(several) == 1 else f"{len(several)} evaluations on {results.data}",
        created=created,
        version=__version__,
        command=command,
        facts=facts,
        sections=[
            LabelsSection(
                result=result,
                facts=facts_of[result.name],
                hard_images=build_hard_images(result, limit, reporter),
            )
            for result in several
        ],
        comparisons=[c for c in results.comparisons if isinstance(c, MultilabelComparison)],
        curves=curves,
    )


def build_hard_images(
    result: MultilabelResult, limit: int, reporter: Reporter
) -> Sequence[HardImage]:
    """Return at most `limit` images, those of the highest loss first."""
    subject = result.subject
    assert subject is not None
    preprocessing = subject.eval_model.preprocessing
    dataset = scale_for(subject.dataset, preprocessing.value_range)
    rows = np.argsort(-result.losses, kind="stable")[:limit]
    return [
        _build_image(
            result, row, encode_thumbnail(eval_transform(dataset.read(index), preprocessing))
        )
        for row, index in track(
            [(int(row), int(result.indices[row])) for row in rows],
            reporter,
            f"hardest images ({result.name})",
            len(rows),
        )
    ]


def _build_image(result: MultilabelResult, row: int, thumbnail: bytes) -> HardImage:
    subject = result.subject
    assert subject is not None
    labels, preds, probs = result.labels[row], result.preds[row], result.probs[row]

    def list_classes(mask: np.ndarray) -> list[tuple[str, float]]:
        order = np.flatnonzero(mask)
        order = order[np.argsort(-probs[order], kind="stable")][:MAX_LABELS]
        return [(subject.class_titles[n], float(probs[n])) for n in order.tolist()]

    return HardImage(
        name=subject.dataset.name(int(result.indices[row])),
        thumbnail=thumbnail,
        loss=float(result.losses[row]),
        missed=list_classes(labels & ~preds),
        wrong=list_classes(preds & ~labels),
        hits=list_classes(labels & preds),
    )
