"""Every option that more than one command has, declared once. A default of None means: from the recipe or the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA_HELP = "Folder with train/ and val/, folder of class folders, .tar or .pack of either, .csv or .parquet with path,label."
MODEL_HELP = "Alias, timm name, hf-hub:owner/name, run folder, or weights file. `deitctl models` lists the DeiTs."
DEVICE_HELP = "auto, cuda, cuda:N, mps or cpu."
PRECISION_HELP = "auto, fp32, bf16 or fp16; auto trains in the fastest and answers in fp32."

DataArg = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help=f"{DATA_HELP} Left out: the built-in 'digits'.",
        show_default=False,
    ),
]
InputsArg = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="File, folder, web address, or - for a list of paths on stdin."
    ),
]
ModelOpt = Annotated[str | None, typer.Option("--model", help=MODEL_HELP, show_default=False)]
WeightsOpt = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Weights file or model folder for a model named.", show_default=False
    ),
]
HeadOpt = Annotated[
    str,
    typer.Option("--head", help="Which head answers: auto, cls, dist, avg-logits or avg-probs."),
]
DeviceOpt = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
PrecisionOpt = Annotated[str, typer.Option("--precision", help=PRECISION_HELP)]
DeviceOfRunOpt = Annotated[
    str | None,
    typer.Option("--device", help=DEVICE_HELP, show_default="auto, or the resumed run's"),
]
PrecisionOfRunOpt = Annotated[
    str | None,
    typer.Option("--precision", help=PRECISION_HELP, show_default="auto, or the resumed run's"),
]
BatchSizeOpt = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Images at a time.", show_default="from the recipe"),
]
CHOOSE = 0
"""What `--batch-size auto` is to the program."""


def _batch_size(text: str) -> int:
    if text.lower() == "auto":
        return CHOOSE
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a number from 1 on nor auto.")
    return int(text)


BatchSizeOrAutoOpt = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        parser=_batch_size,
        metavar="N|auto",
        show_default="from the recipe",
        help="Images a step; auto: as many as this device can take and gains by.",
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Loader processes.", show_default="from the machine"),
]
ImgSizeOpt = Annotated[
    int | None,
    typer.Option(
        "--img-size",
        min=1,
        help="Side of the input in pixels.",
        show_default="from the recipe or model",
    ),
]
CountOpt = Annotated[int, typer.Option("--count", min=1, help="How many images to prove it on.")]
QuietOpt = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")
]
FormatOpt = Annotated[
    str | None,
    typer.Option("--format", help="table or json.", show_default="table on a terminal, else json"),
]

RecipeOpt = Annotated[
    str | None,
    typer.Option("--recipe", help="Name or TOML file of a recipe.", show_default="by the data"),
]
PretrainedOpt = Annotated[
    bool | None,
    typer.Option(
        "--pretrained/--no-pretrained",
        help="Start from published weights.",
        show_default="from the recipe",
    ),
]
EpochsOpt = Annotated[int | None, typer.Option("--epochs", min=1, show_default="from the recipe")]
LrOpt = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Learning rate for 512 images a step; scaled with the batch.",
        show_default="from the recipe",
    ),
]
SeedOpt = Annotated[
    int | None, typer.Option("--seed", help="The same seed, the same run.", show_default="0")
]
OutputRunOpt = Annotated[
    Path | None,
    typer.Option("--output", help="Folder of the run.", show_default="a new one under runs/"),
]
ResumeOpt = Annotated[
    str | None,
    typer.Option(
        "--resume",
        help="Go on with this run folder where it stopped; auto: with the newest unfinished run of the same "
        "configuration, or begin one.",
        show_default=False,
    ),
]
SaveEveryOpt = Annotated[
    str | None,
    typer.Option(
        "--save-every", help="Save the state every 10m, 90s, 1h, or 500 (steps).", show_default="5m"
    ),
]
MicroBatchOpt = Annotated[
    int | None,
    typer.Option(
        "--micro-batch",
        min=0,
        help="Images a process takes at a time; gradients add up to the batch's.",
        show_default="as many as fit",
    ),
]
OnBadImageOpt = Annotated[
    str | None,
    typer.Option(
        "--on-bad-image",
        help="An image that cannot be read: skip (and name) it, or stop.",
        show_default="skip",
    ),
]
ConfigOpt = Annotated[
    Path | None, typer.Option("--config", help="Run a run.toml again.", show_default=False)
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any setting of the recipe, key=value; may be repeated.", show_default=False
    ),
]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")
]


TeacherOpt = Annotated[
    str | None,
    typer.Option(
        "--teacher", help=MODEL_HELP, show_default="on digits: regnety_002, else regnety_160"
    ),
]
StudentOpt = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="A DeiT, which gets a distillation token, or any timm model.",
        show_default="on digits: deit_tiny, else deit_small",
    ),
]
TeacherWeightsOpt = Annotated[
    Path | None,
    typer.Option("--teacher-weights", help="Weights of the teacher.", show_default=False),
]
TeacherSizeOpt = Annotated[
    int | None,
    typer.Option(
        "--teacher-img-size",
        min=1,
        help="Side of the teacher's input in pixels.",
        show_default="its own",
    ),
]
AdaptOpt = Annotated[
    str | None,
    typer.Option(
        "--adapt",
        help="Fit the teacher to the data first: auto (if it knows other classes), head, full, or none.",
        show_default="auto",
    ),
]
ForceTeacherOpt = Annotated[
    bool, typer.Option("--force-teacher", help="Go on with a teacher that scores near chance.")
]
ModeOpt = Annotated[
    str | None,
    typer.Option(
        "--mode", help="hard (Eq. 3), soft (Eq. 2), or none: like `train`.", show_default="hard"
    ),
]
TauOpt = Annotated[
    float | None,
    typer.Option("--tau", help="Temperature of soft distillation.", show_default="3.0"),
]
TeacherSeesOpt = Annotated[
    str | None,
    typer.Option(
        "--teacher-sees",
        help="mixed (the paper's: the student's mixed images) or view (before mixing).",
        show_default="by the recipe",
    ),
]
ViewsOpt = Annotated[
    int | None,
    typer.Option(
        "--views",
        min=0,
        help="Views of an image, used in turn, that the teacher is asked about once; 0: new ones every epoch.",
        show_default="by the recipe",
    ),
]
ViewSeedOpt = Annotated[
    int | None, typer.Option("--view-seed", help="Seed of the views.", show_default="0")
]
CompileOpt = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Have torch compile the student's blocks: a minute or so more before the first step. Little is gained on a CPU.",
        show_default="no, or the resumed run's",
    ),
]
TopkWordsOpt = Annotated[
    int | None,
    typer.Option(
        "--words-topk", min=1, help="Classes of a soft answer kept one by one.", show_default="100"
    ),
]
CacheOpt = Annotated[
    str | None,
    typer.Option(
        "--teacher-cache",
        help="Folder of the teacher's answers, or off.",
        show_default="one named by its content",
    ),
]


def training_settings(
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    img_size: int | None,
    seed: int | None,
    workers: int | None,
    device: str | None,
    precision: str | None,
    save_every: str | None = None,
    micro_batch: int | None = None,
    on_bad_image: str | None = None,
    compiled: bool | None = None,
) -> dict[str, object]:
    """Name the settings that the everyday options of `train` and `distill` stand for."""
    return {
        "recipe.epochs": epochs,
        "recipe.batch_size": batch_size,
        "recipe.optim.lr": lr,
        "recipe.img_size": img_size,
        "seed": seed,
        "workers": workers,
        "device": device,
        "precision": precision,
        "save_every": save_every,
        "micro_batch_size": micro_batch,
        "on_bad_image": on_bad_image,
        "compile": compiled,
    }
