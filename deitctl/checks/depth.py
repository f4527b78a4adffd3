"""Checks of images of more than 8 bits: whether their files say what is white, and what would be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deitctl.checks.issues import Issue, report
from deitctl.checks.survey import Split
from deitctl.data.range_survey import RangeSurvey, survey_datasets
from deitctl.data.value_range import NO_RANGE
from deitctl.models.model_config import ValueRange, parse_value_range


def check_depth(splits: Sequence[Split], option: str) -> tuple[list[Split], list[Issue]]:
    """Choose the value range of a data set as training does; return its splits so, and the issues.

    Args:
        splits: of the data set.
        option: `auto`, or `LOW,HIGH`.

    Raises:
        ConfigError: it is neither.
    """
    chosen = parse_value_range(option)
    chosen = chosen or next((s.dataset.value_range for s in splits if s.dataset.value_range), None)
    issues: list[Issue] = []
    if chosen is None:
        survey = survey_datasets([split.dataset for split in splits])
        chosen = NO_RANGE if survey.is_of_both_kinds else survey.choose()
        issues += _report(survey, chosen)
    return [replace(s, dataset=s.dataset.with_value_range(chosen)) for s in splits], issues


def _report(survey: RangeSurvey, chosen: ValueRange) -> Iterator[Issue]:
    if survey.is_of_both_kinds:
        yield from report("mixed_values", survey.num_deep)
    elif description := survey.describe(chosen):
        yield from report("no_stated_range", len(survey.largest), details=[description])
    num_deep = survey.num_deep + survey.num_stated
    if 0 < num_deep < survey.num_looked_at:
        yield from report(
            "mixed_depths",
            num_deep,
            details=[f"{num_deep} of {survey.num_looked_at} looked at have more."],
        )
