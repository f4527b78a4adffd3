"""Options of the commands: those of training follow from `config`, those that other commands share are here.

Where another command has an option of training, its name, help and values are those of the setting too.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from deitctl.api import FUNCTIONS
from deitctl.cli import completion
from deitctl.config import (
    EVERYDAY,
    EXTRA_SETTINGS,
    MACHINE,
    MODEL_HELP,
    OPTIMIZATION,
    RESUMING,
    TEACHER_SETTINGS,
    CompileChoice,
    ModeChoice,
)
from deitctl.errors import ConfigError, UsageError
from deitctl.settings import (
    convert,
    find_setting,
    list_options,
    parse_overrides,
    require_range,
)
from deitctl.sizes import ImageSize, format_size

DATA_HELP = (
    "Folder with train/ and val/, folder of class folders, .tar of either, shards, table of path,label; an "
    "address (s3://, gs://, https://, hf://datasets/OWNER/NAME); or a name, as cifar10."
)
FORMATS = ("table", "json")
OUTPUT = "Output"
"""Panel of `--help` for what is printed and written."""
VERIFICATION = "Verification"
DATA_CACHE = "data/ below $DEITCTL_CACHE"
CACHE_BOUND = "8 GiB, or half of the free disk"
IMAGES_DEFAULT = "where the table or its run leads"


def option(
    *flags: str,
    help: str,
    default: str | None = None,
    panel: str | None = None,
    complete: Callable[..., list[str]] | None = None,
    choices: tuple[str, ...] = (),
    **details: Any,
) -> Any:
    """Declare an option.

    Args:
        flags: its names on the command line.
        help: what it is.
        default: what happens without it, in words; None: `describe_default` adds the value.
        panel: of `--help`; None: the first one.
        complete: values for the shell.
        choices: the only values that there are, which the shell completes too.
        details: further arguments of `typer.Option`.
    """
    if choices:
        complete = complete or completion.complete_values(*choices)
        details.setdefault(
            "callback", _check_each(lambda value: _require(flags[0], value, choices))
        )
    return typer.Option(
        *flags,
        help=f"{help} Default: {default}." if default else help,
        show_default=default is None,
        rich_help_panel=panel,
        autocompletion=complete,
        **details,
    )


def describe_defaults(command: Any) -> None:
    """Say in the help of each option of a command what its default is, in one way for values and words."""
    for parameter in command.params:
        default, is_switch = parameter.default, bool(getattr(parameter, "secondary_opts", None))
        if is_switch and getattr(parameter, "show_default", False) and default is not None:
            default = (parameter.opts if default else parameter.secondary_opts)[0]
        if getattr(parameter, "show_default", False) and default not in (None, "", False, [], ()):
            parameter.help = f"{parameter.help} Default: {default}."
            parameter.show_default = False


def _check_each(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Return a callback of Typer that checks a value, or each of several, before anything is done."""

    def check_values(values: Any) -> Any:
        for value in values if isinstance(values, list | tuple) else (values,):
            if value not in (None, ""):
                check(value)
        return values

    return check_values


def _require(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"There is no {flag.removeprefix('--')} {value!r}.", f"There are: {', '.join(choices)}."
        )


DEVICES = ("auto", "cpu", "mps", "cuda", "cuda:N")
CHOICES = {"precision": completion.PRECISIONS, "mode": (*get_args(ModeChoice), "none")}
"""Of settings that do not declare them: `none` is no mode of a `DistillConfig`."""
COMPLETIONS = {
    "model": completion.complete_model,
    "teacher": completion.complete_teacher,
    "device": completion.complete_device,
}


def _parse_img_size(flag: str, text: str) -> ImageSize:
    with blame_command_line():
        size: ImageSize = convert(text, ImageSize, flag)
    return size


def setting_option(keyword: str, *, default: str | None, panel: str | None, **details: Any) -> Any:
    """Declare the option of a setting; arguments as `option`."""
    setting = list_options()[keyword]
    values = get_args(setting.kind) if get_origin(setting.kind) is Literal else ()
    flag = setting.flag.partition("/")[0]

    if setting.kind == ImageSize:
        details = {
            "parser": functools.partial(_parse_img_size, flag),
            "metavar": "N|HxW",
            **details,
        }

    def check(value: Any) -> None:
        if keyword == "device" and not re.fullmatch(r"cuda:\d+", value):
            _require(flag, value, DEVICES)
        with blame_command_line():
            kind = get_args(setting.kind)[0] if keyword in EXTRA_SETTINGS else setting.kind
            require_range(setting, convert(value, kind, flag), flag)

    return option(
        setting.flag,
        help=setting.option.help,
        default=default,
        panel=None if panel == EVERYDAY else panel,
        complete=COMPLETIONS.get(keyword),
        choices=CHOICES.get(keyword, values),
        **({} if keyword in CHOICES or values else {"callback": _check_each(check)}),
        **details,
    )


@contextmanager
def blame_command_line() -> Iterator[None]:
    """Turn the error of a value into one of the command line, which has an exit code of its own."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(error.message, error.hint) from error


def _check_change(ctx: typer.Context, values: Any) -> Any:
    """Check the texts of --set, before anything is opened."""
    for text in values or ():
        with blame_command_line():
            for name, value in parse_overrides([text]).items():
                setting, short = find_setting(name), name.removeprefix("recipe.")
                if ctx.info_name == "train" and name.startswith("distill."):
                    raise UsageError(
                        f"{short!r} cannot be set: a teacher is for `deitctl distill`."
                    )
                require_range(setting, convert(value, setting.kind, short), short)
    return values


DataArg = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help=f"{DATA_HELP} Default: the built-in 'digits'.",
        show_default=False,
        autocompletion=completion.complete_data,
    ),
]
ImagesArg = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="File, folder, web address, or - for a list of paths on stdin."
    ),
]
ModelOpt = Annotated[
    str, option("--model", help=MODEL_HELP, default="", complete=completion.complete_model)
]
WeightsOpt = Annotated[str, setting_option("weights", default="", panel=None)]
ClassesOpt = Annotated[str, setting_option("classes", default="", panel=None, metavar="FILE")]
HeadOpt = Annotated[
    str,
    option(
        "--head",
        help="Which head predicts: auto, cls, dist, avg-logits or avg-probs.",
        choices=completion.HEADS,
    ),
]
ModelTaskOpt = Annotated[
    str,
    option(
        "--task",
        help="multilabel: of weights that were trained on several labels an image and do not say so.",
        default="the model's own",
        choices=completion.TASKS,
    ),
]
DeviceOpt = Annotated[str, setting_option("device", default=None, panel=MACHINE)]
PrecisionOpt = Annotated[str, setting_option("precision", default=None, panel=MACHINE)]
CacheDirOpt = Annotated[str, setting_option("cache_dir", default=DATA_CACHE, panel=MACHINE)]
CacheSizeOpt = Annotated[str, setting_option("cache_size", default=CACHE_BOUND, panel=MACHINE)]
WorkersOpt = Annotated[int, setting_option("workers", default=None, panel=MACHINE, min=-1)]
ImgSizeOpt = Annotated[Any, setting_option("img_size", default="", panel=EVERYDAY)]
ImageFolderOpt = Annotated[
    str, setting_option("image_folder", default=IMAGES_DEFAULT, panel=EVERYDAY)
]
TaskOpt = Annotated[str, setting_option("task", default=None, panel=EVERYDAY)]
ValueRangeOpt = Annotated[str, setting_option("value_range", default=None, panel=EVERYDAY)]
OnBadImageOpt = Annotated[str, setting_option("on_bad_image", default=None, panel=MACHINE)]
NumImagesOpt = Annotated[
    int, option("--num-images", help="How many of them.", min=1, panel=VERIFICATION)
]
VerifyDataOpt = Annotated[
    str,
    option(
        "--verify-data",
        help="Images to verify the file on.",
        default="the run's held-out images, or digits",
        panel=VERIFICATION,
    ),
]
QuietOpt = Annotated[
    bool, option("--quiet", "-q", help="Print only warnings and errors on stderr.", panel=OUTPUT)
]
FormatOpt = Annotated[
    str | None,
    option(
        "--format",
        help="table or json.",
        panel=OUTPUT,
        default="table on a terminal, else json",
        choices=FORMATS,
    ),
]
SetOpt = Annotated[
    list[str] | None,
    option(
        "--set",
        panel=OPTIMIZATION,
        help="Any setting, augment.mixup=0.2 for example; may be repeated.",
        default="",
        complete=completion.complete_set,
        callback=_check_change,
        metavar="KEY=VALUE",
    ),
]
DryRunOpt = Annotated[bool, option("--dry-run", help="Print the plan, and do nothing.")]


def _parse_batch_size(text: str) -> int | Literal["auto"]:
    if text.lower() == "auto":
        return "auto"
    if not text.isdecimal():
        raise UsageError(f"--batch-size = {text!r} is neither a number nor auto.")
    with blame_command_line():
        require_range(list_options()["batch_size"], int(text), "--batch-size")
    return int(text)


SPECIAL: dict[str, Any] = {
    "data": DataArg,
    "recipe": Annotated[
        str | None,
        option(
            "--recipe",
            help="Name or TOML file of a recipe.",
            default="by the data",
            complete=completion.complete_recipe,
        ),
    ],
    "batch_size": Annotated[
        int | None,
        option(
            "--batch-size",
            help="Images per step, over all processes; auto: as many as fit and speed it up.",
            default="the recipe's",
            parser=_parse_batch_size,
            metavar="N|auto",
        ),
    ],
    "student": Annotated[
        str | None,
        option(
            "--student",
            help="A DeiT, which gets a distillation token, or any timm model.",
            default="deit_small, or deit_tiny on digits without --teacher",
            complete=completion.complete_model,
        ),
    ],
    "resume": Annotated[
        str | None,
        option(
            "--resume",
            help="Continue this run; auto: the newest unfinished run of this configuration, or a new one.",
            default="",
            panel=RESUMING,
            complete=completion.complete_resume,
            metavar="RUN|auto",
        ),
    ],
    "more_epochs": Annotated[
        int | None,
        option(
            "--more-epochs",
            help="Train the finished run that --resume names this many epochs longer.",
            default="",
            panel=RESUMING,
            min=1,
        ),
    ],
    "config": Annotated[
        Path | None,
        option(
            "--config",
            help="Repeat the run of a run.toml.",
            default="",
            panel=RESUMING,
            metavar="RUN.TOML",
        ),
    ],
}
"""Keywords of training that are no settings, or more than one."""
INVERTED = {keyword for keyword, s in list_options().items() if s.flag.startswith("--no-")}
"""Keywords of switches that exist as `--no-NAME` alone."""


def take_options(
    source: Callable[..., Any], *, leave_out: Sequence[str] = (), own_first: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that stand for the keywords of an API function.

    The command receives the ones that were given as its first argument, a dict for that function, and declares
    options of its own in the usual way; those come last, or replace one of the function's by its name. Functions of a
    program's, and keywords in `leave_out`, get none; with `own_first` the command's own come first.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        own = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in parameters}
        keywords = [
            p
            for p in inspect.signature(source).parameters.values()
            if p.kind != p.VAR_KEYWORD and p.name not in ("reporter", *FUNCTIONS, *leave_out)
        ]
        # in the function's order, which is that of `--help`
        options = {p.name: own.get(p.name) or _declare(p) for p in keywords} | own
        if own_first:
            options = own | options
        shared = [name for name in options if name not in own]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            chosen = {k: values.pop(k) for k in shared}
            # of the options that may be repeated, for several teachers
            chosen = {
                k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in chosen.items()
            }
            arguments = {k: v for k, v in chosen.items() if v not in (None, "", [])}
            for keyword in INVERTED & arguments.keys():
                arguments[keyword] = not arguments[keyword]
            command(arguments, **values)

        run.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: p.annotation for name, p in options.items()}
        return run

    return decorate


def spell_switches(words: Sequence[str]) -> list[str]:
    """Return a command line in which `--compile` without a value, and `--no-compile`, have one."""
    spelled, rest = list[str](), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*spelled, word, *rest]
        if word == "--no-compile":
            word = "--compile=off"
        elif word == "--compile" and (not rest or rest[0] not in get_args(CompileChoice)):
            word = "--compile=on"
        spelled.append(word)
    return spelled


def is_run(name: str) -> bool:
    """Whether a name is that of a run folder."""
    return os.path.isfile(os.path.join(os.path.expanduser(name), "run.toml"))


def spell_options(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments that `take_options` gave as the words of a command line: DATA, then options."""
    words = [str(arguments["data"])] if "data" in arguments else []
    for keyword, value in arguments.items():
        setting = list_options().get(keyword)
        on, _, off = setting.flag.partition("/") if setting else (f"--{keyword}", "", "")
        if isinstance(value, bool):
            words += [on if value != (keyword in INVERTED) else off]
        elif keyword != "data":
            for part in value if isinstance(value, list) else [value]:
                words += [on, format_size(part) if isinstance(part, tuple) else str(part)]
    return words


def spell_model(model: str, weights: str, classes: str) -> list[str]:
    """Return the options that name a model, without those that are empty."""
    options = {"--model": model, "--weights": weights, "--classes": classes}
    return [word for flag, value in options.items() if value for word in (flag, value)]


def _declare(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the parameter from which Typer makes the option of a function's keyword."""
    name = parameter.name
    kind = SPECIAL.get(name)
    if name == "batch_size" and "auto" not in str(parameter.annotation):
        kind = None  # the setting, a number
    if kind is None:
        kind = _annotate(name)
    default = "" if name == "data" else None
    return inspect.Parameter(name, parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _annotate(keyword: str) -> Any:
    setting = list_options()[keyword]
    kind, fixed = setting.kind, setting.default
    has_default = fixed is not MISSING and fixed != "" and not isinstance(fixed, bool)
    default = setting.option.default or (str(fixed) if has_default else "")
    info = setting_option(keyword, default=default, panel=setting.option.panel)
    is_text = get_origin(kind) is Literal or kind == ImageSize  # which a parser reads
    if setting.name in EXTRA_SETTINGS:
        return Annotated[list[get_args(kind)[0]] | None, info]  # type: ignore[misc]
    if setting.name in TEACHER_SETTINGS:  # once for each of several teachers
        return Annotated[list[str] | None, info]
    return Annotated[(str if is_text else kind) | None, info]
