"""The options of an evaluation, and which do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.data.class_file import Classes
from deitctl.errors import ConfigError, require_positive
from deitctl.evaluation.eval_model import PROTOCOLS
from deitctl.home import expand_home
from deitctl.inference.onnx_classifier import SUFFIX
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.sources import is_model_folder
from deitctl.paths import require_writable
from deitctl.sizes import ImageSize


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation beside its data, models and protocols."""

    split: str = ""
    """train, val, test or all; empty: see `choose_images`."""
    task: str = "auto"
    """Whether images have several labels and models predict them: `classification`, `multilabel`, or
    `auto`: as the data, its run and the models say."""
    weights: str = ""
    """See `load_model`; for one model only."""
    classes: Classes = ""
    """Names of the classes of every model, see `deitctl.load`."""
    head: str = "auto"
    """Head rule of the predictions, `auto` for each model's own."""
    batch_size: int | None = None
    """Images per batch; None: by the memory of an accelerator, see `choose_batch_size`."""
    img_size: ImageSize = 0
    """Another input size, pixels; 0 for each model's own."""
    workers: int = -1
    """Loader processes, -1 chosen from the machine."""
    device: str = "auto"
    """See `choose_device`."""
    precision: str = "auto"
    """`auto` is fp32."""
    predictions: str = ""
    """JSON Lines file to write the result of every image to."""
    real_labels: str = ""
    """ReaL labels of ImageNet's validation images, see `read_real_labels`."""
    value_range: str = "auto"
    """Of images of more than 8 bits whose files state none: `LOW,HIGH`, or `auto`: each model's own,
    or one for all of these images."""
    image_folder: str = ""
    """That the paths of a table are below; empty: where the table leads."""
    save_temperature: bool = False
    """Whether to store the fitted temperatures in the folder of the one model."""
    save_thresholds: bool = False
    """Whether to store the fitted thresholds of several labels an image there."""
    cache_dir: str = ""
    """Folder of what is read from stores; empty: `data/` below `$DEITCTL_CACHE`."""
    cache_size: str = ""
    """Of that folder, see `reading_stores`."""
    on_bad_image: str = "skip"
    """`skip` leaves out an image that cannot be read, `stop` raises."""


def check_options(models: Sequence[str], protocols: Sequence[str], options: EvalOptions) -> None:
    """Raise `ConfigError` for values that do not exist or do not go together, before any work: an
    evaluation of hours must not end with a file that cannot be written."""
    if options.batch_size is not None:
        require_positive(batch_size=options.batch_size)
    if options.on_bad_image not in ("skip", "stop"):
        raise ConfigError(
            f"--on-bad-image cannot be {options.on_bad_image!r}.", "It can be: skip, stop."
        )
    if options.weights and len(models) > 1:
        raise ConfigError(
            f"--weights is for one model, and there are {len(models)}.",
            "Name files or folders as models.",
        )
    if not protocols:
        raise ConfigError("No protocol is named.", f"There are: {', '.join(PROTOCOLS)}.")
    for option, what in (("temperature", "a temperature"), ("thresholds", "thresholds")):
        if getattr(options, f"save_{option}"):
            _check_save(f"--save-{option}", what, models, protocols, options)
    if options.predictions:
        require_writable(expand_home(options.predictions), "--predictions")


def _check_save(
    option: str,
    what: str,
    models: Sequence[str],
    protocols: Sequence[str],
    options: EvalOptions,
) -> None:
    """Raise `ConfigError` unless what is fitted can be fitted to one model and stored with it."""
    ref = models[0]
    if len(models) > 1 or list(protocols) != ["native"]:
        raise ConfigError(
            f"{option} is for one model under its own protocol.",
            "Evaluate that model only, with --protocol native.",
        )
    if ref.lower().endswith(SUFFIX):
        raise ConfigError(
            f"{ref} has its own inside.",
            f"Use {option} on the model that it was exported from, and export it again.",
        )
    if not is_model_folder(ref):
        raise ConfigError(
            f"{ref} is not a model folder, so {option} can store {what} nowhere.",
            f"Make one: deitctl export {ref} --to timm --output FOLDER; then --model FOLDER.",
        )
    folder = expand_home(ref)
    require_writable(folder / CONFIG, "--model")
    own_size = load_model_config(folder).preprocessing.img_size
    if options.img_size not in (0, own_size):
        raise ConfigError(
            f"{option} is for the model's own input size, {own_size} pixels, "
            f"not for {options.img_size}.",
            "Leave out --img-size.",
        )
