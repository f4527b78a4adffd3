"""A teacher of the caller's: any function of images that returns logits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deitctl.data.fingerprint import fingerprint_model
from deitctl.data.own_functions import LENGTH, identify_function, name_function
from deitctl.device import ran_out_of_memory
from deitctl.errors import ConfigError, DeitctlError, ExtensionError, TeacherError
from deitctl.models.factory import LoadedModel
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL, TASKS
from deitctl.records import to_object

PREFIX = "callable:"
"""Of what a run calls such a teacher: `callable:mymodule.Ensemble`."""


@dataclass(frozen=True, kw_only=True)
class CallableTeacher:
    """A function that labels images, for `deitctl.distill(teacher=...)`."""

    network: Callable[[Tensor], Tensor]
    """Returns logits [B,K] of images [B,3,S,S] that are normalized by `preprocessing`, on their device.
    A module is put into eval mode and moved there."""
    class_names: Sequence[str]
    """Names of its K classes, by which they are matched with the data's."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """The size, mean and standard deviation of its images."""
    task: str = CLASSIFICATION
    """`classification`, or `multilabel` for logits of a sigmoid each."""
    version: str = ""
    """Changes where the function gives other logits though its name, its source and the values that it
    holds are the same: cached targets of another version are not used."""

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise ExtensionError(
                f"The network of a CallableTeacher is a {type(self.network).__name__}.",
                "It is a function of images, [B,3,S,S], that returns logits.",
            )
        if self.task not in TASKS:
            raise ConfigError(f"There is no task {self.task!r}.", f"There are: {', '.join(TASKS)}.")

    @property
    def name(self) -> str:
        """What a run calls it."""
        return PREFIX + name_function(self.network)

    def load(self) -> LoadedModel:
        """Return it as a classifier."""
        model_config = ModelConfig(
            architecture="callable",
            num_classes=len(self.class_names),
            class_names=tuple(self.class_names),
            preprocessing=self.preprocessing,
            task=self.task,
        )
        return LoadedModel(CallableNetwork(self.network, len(self.class_names)), model_config)

    def identify(self) -> str:
        """Return a string that changes with what its logits depend on, as far as that is known."""
        network = self.network
        if isinstance(network, nn.Module):
            content = f"{name_function(network)} {fingerprint_model(network)}"
        else:
            content = identify_function(network)
        rest = json.dumps([to_object(self.preprocessing), [*self.class_names], self.task])
        digest = hashlib.sha256(rest.encode()).hexdigest()[:LENGTH]
        return f"{PREFIX}{content} {digest} {self.version}".strip()


class CallableNetwork(nn.Module):
    """Calls the caller's function, and checks what it returns."""

    def __init__(self, function: Callable[[Tensor], Tensor], num_classes: int) -> None:
        """Hold `function`; a module is a part of this one."""
        super().__init__()
        self.function, self.num_classes = function, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K] of normalized images [B,3,S,S].

        Raises:
            ExtensionError: the function fails, or returns something else.
        """
        what = f"The teacher {name_function(self.function)}"
        try:
            logits = self.function(images)
        except (DeitctlError, MemoryError):
            raise
        except Exception as error:
            if ran_out_of_memory(error):  # the micro-batch is halved
                raise
            raise ExtensionError.from_exception(what, error) from error
        expected = (len(images), self.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            returned = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ExtensionError(
                f"{what} returned {returned} for {expected[0]} images and {expected[1]} classes.",
                "It returns logits, [images, classes].",
            )
        if not logits.is_floating_point() or not torch.isfinite(logits).all():
            raise ExtensionError(f"{what} returned logits that are not finite numbers.")
        return logits


def refuse_other_task(teacher: CallableTeacher, *, is_multilabel: bool) -> TeacherError:
    """Return the error of a teacher for one label an image where there are several, or the reverse."""
    task = MULTILABEL if is_multilabel else CLASSIFICATION
    return TeacherError(
        f"{teacher.name} is for the task {teacher.task}, and the data for {task}.",
        f"Pass task={task!r} if its logits are of that kind.",
    )


def refuse_other_classes(teacher: CallableTeacher, missing: str) -> TeacherError:
    """Return the error of a teacher that lacks a class of the data, which is not fine-tuned."""
    return TeacherError(
        f"{teacher.name} lacks the class {missing!r} of the data.",
        "Its class_names name the data's classes; a function is not fine-tuned.",
    )
