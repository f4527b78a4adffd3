"""The tables that `deitctl eval` prints on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deitctl.cli.console import print_table

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from deitctl.evaluation.bootstrap import PairedComparison
    from deitctl.evaluation.intervals import Interval
    from deitctl.evaluation.multilabel_bootstrap import MultilabelComparison
    from deitctl.evaluation.multilabel_result import LabelScore, MultilabelResult, Result
    from deitctl.evaluation.result import EvalResult
    from deitctl.evaluation.results import EvalResults

MAX_CLASSES = 10
"""Classes that are listed of data with one label an image, those of lowest recall."""
MAX_LABELS = 30
"""Of data with several, those of lowest average precision."""
MIN_IMBALANCE = 2
"""Images of the largest class for each of the smallest, from which what counts them alike is shown."""


def print_results(results: EvalResults) -> None:
    """Print metrics, comparisons and classes."""
    _print_metrics(results)
    _print_comparisons(results)
    for result in results.evaluations:
        suffix = f" ({result.name})" if len(results.evaluations) > 1 else ""
        if _has_several_labels(result):
            _print_labels(result, suffix)
        else:
            _print_classes(result, suffix)


def choose_best(results: EvalResults) -> str:
    """Return the model with the highest top-1, or mAP of several labels an image."""

    def score(result: Result) -> float:
        return result.get_score("map" if _has_several_labels(result) else "top1")

    return max(results.evaluations, key=score).model


def _has_several_labels(result: Result) -> TypeIs[MultilabelResult]:
    # By a key, because importing the class would take torch.
    return hasattr(result, "map")


def _print_metrics(results: EvalResults) -> None:
    first = results.evaluations[0]
    columns = [
        dict(_list_label_metrics(r) if _has_several_labels(r) else _list_metrics(r))
        for r in results.evaluations
    ]
    names = list(dict.fromkeys(name for column in columns for name in column))
    # Of the model with most training images among them: what holds for it is no more than true.
    most = max(results.evaluations, key=lambda result: result.num_train_images or 0)
    title = most.describe_images()
    if len(columns) == 1:
        print_table(f"{first.name} on {title}", ("", "value"), [(n, columns[0][n]) for n in names])
    else:
        print_table(
            title,
            ("", *(r.name for r in results.evaluations)),
            [(n, *(c.get(n, "") for c in columns)) for n in names],
        )


def _list_metrics(result: EvalResult) -> list[tuple[str, str]]:
    rows = [
        ("top-1, %", f"{result.top1:.2f}"),
        ("  95 % interval", result.top1_interval.format(".2f")),
        *([] if result.top5 is None else [("top-5, %", f"{result.top5:.2f}")]),
        *(_list_even_metrics(result) if _is_uneven(result) else []),
        ("loss", f"{result.loss:.4f}"),
        ("expected calibration error", f"{result.ece:.4f}"),
    ]
    if result.temperature != 1:
        rows.append(("  with the model's temperature", f"{result.temperature:.3f}"))
    if fitted := result.calibration:
        rows += [
            ("  fitted temperature", f"{fitted.temperature:.3f}"),
            ("  error with it", f"{fitted.ece:.4f}"),
        ]
    if result.top1_among_classes is not None:
        name = f"top-1 among the data's {result.num_classes} classes, %"
        rows.append((name, f"{result.top1_among_classes:.2f}"))
    if real := result.real_labels:
        rows.append((f"ReaL top-1 of {real.num_images} images, %", f"{real.top1:.2f}"))
        if real.top5 is not None:
            rows.append((f"ReaL top-5 of {real.num_images} images, %", f"{real.top5:.2f}"))
    if result.heads is not None:
        rows += [(f"top-1 of head {name}, %", f"{top1:.2f}") for name, top1 in result.heads.items()]
        rows.append(("head agreement, %", f"{result.head_agreement:.2f}"))
    rows.append(("images/s", f"{result.images_per_second:.1f}"))
    return rows


def _is_uneven(result: EvalResult) -> bool:
    counts = [score.num_images for score in result.per_class.values()]
    return max(counts) >= MIN_IMBALANCE * min(counts)


def _list_even_metrics(result: EvalResult) -> list[tuple[str, str]]:
    """Return the metrics in which each class counts alike."""
    return [
        ("balanced accuracy, %", f"{result.balanced_accuracy:.2f}"),
        *_list_interval(result.balanced_accuracy_interval, "balanced accuracy"),
        ("macro F1, %", f"{result.macro_f1:.2f}"),
        *_list_interval(result.macro_f1_interval, "macro F1"),
    ]


def _list_interval(interval: Interval | None, metric: str) -> list[tuple[str, str]]:
    # Named, because a row is looked up by its name.
    return [] if interval is None else [(f"  95 % of {metric}", interval.format(".2f"))]


def _list_label_metrics(result: MultilabelResult) -> list[tuple[str, str]]:
    own, fitted = result.thresholds_from == "model", result.fitted
    at = "the model's thresholds" if own else "cross-fitted thresholds"
    rows = [
        ("mAP, %", _format(result.map)),
        *_list_interval(result.map_interval, "mAP"),
        ("micro average precision, %", _format(result.micro_ap)),
        (f"macro F1 at {at}, %", f"{result.macro_f1:.2f}"),
        *_list_interval(result.macro_f1_interval, "macro F1"),
        ("micro F1, %", f"{result.micro_f1:.2f}"),
        *_list_interval(result.micro_f1_interval, "micro F1"),
        ("mean F1 of images, %", f"{result.sample_f1:.2f}"),
        *_list_interval(result.sample_f1_interval, "mean F1 of images"),
        ("all labels right, %", f"{result.exact_match:.2f}"),
    ]
    if own:
        rows += [
            ("macro F1 at cross-fitted thresholds, %", f"{fitted.macro_f1:.2f}"),
            ("  micro F1 at these, %", f"{fitted.micro_f1:.2f}"),
            ("  mean F1 of images at these, %", f"{fitted.sample_f1:.2f}"),
        ]
    rows += [
        ("loss", f"{result.loss:.4f}"),
        ("calibration error, mean of classes", f"{result.ece:.4f}"),
    ]
    if result.temperature != 1:
        rows.append(("  with the model's temperature", f"{result.temperature:.3f}"))
    if calibration := result.calibration:
        rows += [
            ("  fitted temperature", f"{calibration.temperature:.3f}"),
            ("  error with it", f"{calibration.ece:.4f}"),
        ]
    if result.heads is not None:
        rows += [(f"mAP of head {name}, %", f"{value:.2f}") for name, value in result.heads.items()]
        rows.append(("head agreement (micro F1), %", _format(result.head_agreement)))
    rows += [
        ("labels an image", f"{result.labels_per_image:.2f}"),
        ("images/s", f"{result.images_per_second:.1f}"),
    ]
    return rows


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_comparisons(results: EvalResults) -> None:
    from deitctl.evaluation.bootstrap import PairedComparison

    top1 = [c for c in results.comparisons if isinstance(c, PairedComparison)]
    labels = [c for c in results.comparisons if not isinstance(c, PairedComparison)]
    if top1:
        _print_top1_comparisons(top1)
    if labels:
        _print_label_comparisons(labels)


def _print_label_comparisons(comparisons: Sequence[MultilabelComparison]) -> None:
    first = comparisons[0].a
    print_table(
        f"{first} minus another model on the same images, points of mAP",
        ("other", "points", "95 % interval", f"only {first} right", "only other right", "p"),
        [
            (
                c.b,
                "-" if c.map_difference is None else f"{c.map_difference:+.2f}",
                "-" if c.interval is None else c.interval.format("+.2f"),
                str(c.only_a_correct),
                str(c.only_b_correct),
                "-" if c.p_value is None else f"{c.p_value:.2g}",
            )
            for c in comparisons
        ],
    )


def _print_top1_comparisons(comparisons: Sequence[PairedComparison]) -> None:
    first = comparisons[0]
    among = " among the data's classes" if first.among_classes else ""
    print_table(
        f"{first.a} minus another model on the same images, points of top-1{among}",
        ("other", "points", "95 % interval", f"only {first.a} correct", "only other correct", "p"),
        [
            (
                c.b,
                f"{c.top1_difference:+.2f}",
                c.interval.format("+.2f"),
                str(c.only_a_correct),
                str(c.only_b_correct),
                f"{c.p_value:.2g}",
            )
            for c in comparisons
        ],
    )


def _print_classes(result: EvalResult, suffix: str) -> None:
    assert result.subject is not None
    lowest = sorted(result.per_class.values(), key=lambda score: score.recall)[:MAX_CLASSES]
    print_table(
        f"lowest-recall classes{suffix}",
        ("class", "images", "recall, %", "precision, %"),
        [
            (
                result.subject.class_titles[score.label],
                str(score.num_images),
                f"{score.recall:.1f}",
                f"{score.precision:.1f}",
            )
            for score in lowest
        ],
    )


def _print_labels(result: MultilabelResult, suffix: str) -> None:
    def rate(score: LabelScore) -> float:
        return 101 if score.average_precision is None else score.average_precision

    scores = sorted(result.per_class.values(), key=rate)
    lowest = f", the {MAX_LABELS} of {len(scores):,} with the lowest average precision"
    print_table(
        f"classes{suffix}{lowest if len(scores) > MAX_LABELS else ''}; %, but for threshold and ECE",
        ("class", "images", "of all", "AP", "threshold", "F1", "ECE"),
        [
            (
                score.title,
                str(score.num_images),
                f"{score.prevalence:.1f}",
                "-" if score.average_precision is None else f"{score.average_precision:.1f}",
                f"{score.threshold:.3f}",
                f"{score.f1:.1f}",
                f"{score.ece:.3f}",
            )
            for score in scores[:MAX_LABELS]
        ],
    )
