"""What is evaluated: a loaded model under a protocol, and the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.data.classes import ClassMatch
from deitctl.data.dataset import ImageDataset
from deitctl.evaluation.eval_model import EvalModel
from deitctl.models.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalSubject:
    """What was evaluated: a loaded model under a protocol, and the images."""

    ref: str
    """Model, as it was named."""
    protocol: str
    eval_model: EvalModel
    model_config: ModelConfig
    dataset: ImageDataset
    match: ClassMatch
    """How the data's classes were found among the model's."""
    class_titles: Sequence[str]
    """Names of the data's classes for people, the same for all models of an evaluation."""

    def get_title(self, pred: int) -> str:
        """Return the display name of a class of the model, the data's if the data has the class."""
        if pred in self.match.rows:
            return self.class_titles[self.match.rows.index(pred)]
        label = self.model_config.label(pred)
        return label if self.model_config.descriptions is None else label.split(",")[0]


def name_classes(
    model_config: ModelConfig, match: ClassMatch, class_names: Sequence[str]
) -> list[str]:
    """Return display names of the data's classes.

    A WordNet id is named by its first synonym, followed by the id if two classes share it.
    """
    if model_config.descriptions is None:
        return list(class_names)
    titles = [model_config.label(row).split(",")[0] for row in match.rows]
    count = Counter(titles)
    return [t if count[t] == 1 else f"{t} ({class_names[n]})" for n, t in enumerate(titles)]
