"""Whether a teacher sees what its student's images have: a teacher of RGB knows no bands."""

from __future__ import annotations

from deitctl.config import DistillConfig
from deitctl.data.band_image import has_bands
from deitctl.data.dataset import ImageDataset
from deitctl.errors import TeacherError
from deitctl.evaluation.images import find_in_chans
from deitctl.home import expand_home
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.names import find_names


def require_teacher_bands(distill: DistillConfig, train: ImageDataset, *, is_own: bool) -> None:
    """Refuse a teacher of other channels than the images have, before it is loaded or trained.

    Args:
        distill: names the teacher.
        train: the training images.
        is_own: whether it is a function of the caller's, which gets RGB.

    Raises:
        TeacherError: it takes RGB and they have bands, or the reverse, or another number of bands; or
            it would have to be trained on bands first.
    """
    teacher = distill.teacher_weights or distill.teacher
    own = 0 if is_own else find_in_chans([teacher])
    bands = own if has_bands(own) else 0
    if bands != train.bands:
        takes = f"images of {bands} bands" if bands else "images of RGB"
        has = (
            f"images of {train.bands} bands, which have no RGB" if train.bands else "images of RGB"
        )
        raise TeacherError(
            f"{teacher} takes {takes}, and the student {has}.",
            "A teacher of bands is a run that was trained with the same --in-chans, on the same classes.",
        )
    if not bands:
        return
    path = expand_home(teacher)
    folder = path if (path / CONFIG).is_file() else path.parent
    names = load_model_config(folder).class_names
    if distill.finetune_teacher not in ("auto", "none") or (
        names is None or None in find_names(train.class_names, names)
    ):
        raise TeacherError(
            f"{teacher} would be trained on the data's classes first, which is not done with bands.",
            f"Train it: deitctl train DATA --in-chans {bands} --weights {teacher}.",
        )
