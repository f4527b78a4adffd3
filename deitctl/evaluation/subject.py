"""What is evaluated: a loaded model under a protocol, its classes and task those of the images."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.data.classes import NUMBERS, ClassMatch, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import count_images
from deitctl.data.splits import ALL
from deitctl.data.subsets import make_multilabel, renumber
from deitctl.errors import DataError
from deitctl.evaluation.eval_model import EvalModel, get_preprocessing
from deitctl.evaluation.images import ScoredImages, find_run
from deitctl.evaluation.networks import Network
from deitctl.events import Reporter
from deitctl.home import expand_home
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
    """How the data's classes match the model's."""
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


def settle_kind(
    models: Sequence[str],
    configs: Sequence[ModelConfig],
    data: str,
    dataset: ImageDataset,
    reporter: Reporter,
) -> ImageDataset:
    """Return the images with labels of the kind that the models predict.

    A model of several labels can be scored on images that have one each, its only one. The reverse
    cannot be: a softmax ranks one image's classes, not one class's images.

    Raises:
        DataError: images have several labels, and a model predicts one, or the models differ.
    """
    several = [config.is_multilabel for config in configs]
    if dataset.is_multilabel:
        for ref, is_multilabel in zip(models, several, strict=True):
            if not is_multilabel:
                run, train = find_run(ref), "deitctl train DATA --task multilabel."
                raise DataError(
                    f"{ref} predicts one class an image, and images of {data} have several labels.",
                    f"Train on them: {train} If its weights are of such a training of others: --task "
                    "multilabel."
                    if run is None
                    else f"If its run was trained on such: --task {run.task} reads them as it did. Else train "
                    f"on them: {train}",
                )
        return dataset
    if not any(several):
        return dataset
    if not all(several):
        one, other = models[several.index(True)], models[several.index(False)]
        raise DataError(
            f"{one} predicts several labels an image, and {other} one class: their scores are not "
            "comparable.",
            "Evaluate them one at a time.",
        )
    reporter.note(
        f"Each image of {data} has one label, and {models[0]} predicts any number: the others of its "
        "classes count as absent."
    )
    return make_multilabel(dataset)


def drop_unknown_classes(configs: Sequence[ModelConfig], dataset: ImageDataset) -> ImageDataset:
    """Return images of several labels without the classes that none of them has and a model does not know."""
    names = dataset.class_names
    if not dataset.is_multilabel or all(match_classes(config, names) for config in configs):
        return dataset
    counts = count_images(dataset).tolist()
    used = tuple(
        name
        for name, count in zip(names, counts, strict=True)
        if count or all(match_classes(config, [name]) for config in configs)
    )
    return dataset if used == names else renumber(dataset, used)


def build_subjects(
    models: Sequence[str],
    networks: Sequence[tuple[Network, ModelConfig]],
    protocols: Sequence[str],
    data: str,
    dataset: ImageDataset,
    reporter: Reporter,
) -> list[EvalSubject]:
    """Return every model under every protocol, its classes matched with the data's."""
    matches = [
        _match_classes(model_config, dataset, data, reporter) for _, model_config in networks
    ]
    if dataset.is_multilabel:
        for ref, (_, model_config), match in zip(models, networks, matches, strict=True):
            _note_other_classes(ref, model_config, match, data, reporter)
    titles = name_classes(networks[0][1], matches[0], dataset.class_names)
    return [
        EvalSubject(
            ref=ref,
            protocol=protocol,
            eval_model=EvalModel(
                model=network,
                preprocessing=get_preprocessing(model_config, protocol),
                rows=match.rows,
                head=model_config.head,
                temperature=model_config.temperature(model_config.head),
                thresholds=_choose_thresholds(model_config, match.rows),
            ),
            model_config=model_config,
            dataset=dataset,
            match=match,
            class_titles=titles,
        )
        for ref, (network, model_config), match in zip(models, networks, matches, strict=True)
        for protocol in protocols
    ]


def _choose_thresholds(model_config: ModelConfig, rows: Sequence[int]) -> tuple[float, ...] | None:
    """Return the thresholds of the head rule for the data's classes; None if the model keeps none."""
    own = model_config.thresholds.get(model_config.head)
    return None if own is None else tuple(own[row] for row in rows)


def _match_classes(
    model_config: ModelConfig, dataset: ImageDataset, data: str, reporter: Reporter
) -> ClassMatch:
    """Find the data's classes among the model's; raise `DataError` if one is missing."""
    names = dataset.class_names
    match = match_classes(model_config, names)
    if match is None:
        missing = [name for name in names if match_classes(model_config, [name]) is None]
        example = f", for example {missing[0]!r}" if missing else ""
        classes = (
            "without names"
            if model_config.class_names is None
            else f"such as {model_config.label(0)!r}"
        )
        # Numbers above those of `digits` are probably a part of ImageNetV2. They are not matched,
        # because they could be any model's class numbers.
        if missing and set(names) <= NUMBERS and max(map(int, names)) > 99:
            classes += "; numbers are read as ImageNetV2's only if all of 0 to 999 have images"
        raise DataError(
            f"The model does not have {len(missing)} of the {len(names)} classes of {data}"
            f"{example}; its {model_config.num_classes} classes are {classes}.",
            "--classes FILE names its classes."
            if model_config.class_names is None
            else "Evaluate a model that was trained on these classes.",
        )
    if match.kind == "numbers":
        reporter.note(
            f"The folders of {data} are named 0 to 999: they are read as ImageNet's class numbers, "
            "as in ImageNetV2."
        )
    return match


def _note_other_classes(
    ref: str, model_config: ModelConfig, match: ClassMatch, data: str, reporter: Reporter
) -> None:
    """Say which classes of a model the data does not have: whether its images have them is not known."""
    rows = set(match.rows)
    if others := [n for n in range(model_config.num_classes) if n not in rows]:
        reporter.note(
            f"{data} does not have {len(others):,} of the {model_config.num_classes:,} classes of {ref}, "
            f"for example {model_config.label(others[0])!r}: what it predicts of them does not count. "
            "A column of 0 says that no image has a class."
        )


def note_unknown_training(
    subjects: Sequence[EvalSubject], images: ScoredImages, weights: str, reporter: Reporter
) -> None:
    """Say where a file of no run may have been trained on the data: it has exactly its classes."""
    if images.split != ALL:
        return
    for subject in {subject.ref: subject for subject in subjects}.values():
        ref, config = weights or subject.ref, subject.model_config
        is_file = expand_home(ref).exists() and ref not in images.train_masks
        # ImageNet's classes have descriptions, and its val is not trained on.
        if is_file and subject.match.kind != "subset" and config.descriptions is None:
            reporter.note(
                f"Whether {ref} was trained on some of these images is not known. If it is of a "
                f"run: deitctl eval RUN --model {shlex.quote(ref)} scores those held out."
            )
