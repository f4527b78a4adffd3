"""What `train` and `distill` share: they are one command with and without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deitctl.cli.console import choose_format, left_out_code, print_json, print_line, print_table
from deitctl.cli.options import CHOOSE
from deitctl.cli.progress import make_reporter
from deitctl.cli.startup import without_garbage
from deitctl.config import TrainConfig
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.recipes import get_recipe
from deitctl.settings import flatten, from_dict, override, read_toml, to_dict

if TYPE_CHECKING:
    from deitctl.training.configure import Teaching
    from deitctl.training.result import TrainResult

FORMATS = ("table", "json")
AUTO = "auto"


def run(
    *,
    data: str | None,
    model: str | None,
    weights: Path | None,
    recipe: str | None,
    pretrained: bool | None,
    teaching: Teaching | None,
    output: Path | None,
    resume: str | None,
    config: Path | None,
    given: Mapping[str, Any],
    changes: Sequence[str],
    dry_run: bool,
    output_format: str | None,
    quiet: bool,
    said_of_the_teacher: Mapping[str, Any] | None = None,
) -> None:
    """Configure and train, or resume; print the result. A run in which images had to be left out exits with 3."""
    import typer

    with without_garbage():
        from deitctl.distributed import is_main_process
        from deitctl.profiling.batch_size import with_chosen_batch
        from deitctl.settings import parse_overrides
        from deitctl.training.configure import Request, configure
        from deitctl.training.launch import resume as resume_run
        from deitctl.training.launch import start_or_resume

    shape = choose_format(output_format, FORMATS, "json")
    reporter = make_reporter(quiet)
    choose_batch = given.get("recipe.batch_size") == CHOOSE
    if choose_batch:
        given = {**given, "recipe.batch_size": None}
    if resume is not None and resume != AUTO:
        _require_unsaid(
            {"config": config, "output": output, "dry run": dry_run or None}, Path(resume)
        )
        named = {
            "data": _as_kept(data),
            "model": _as_kept(model),
            "weights": _as_kept(weights),
            "recipe.name": get_recipe(recipe).name if recipe else None,
            "recipe.pretrained": pretrained,
            **parse_overrides(changes),
            **_of_the_teacher(said_of_the_teacher or {}),
        }
        result = resume_run(Path(resume), given={**given, **named}, reporter=reporter)
    else:
        datasets = None
        if config is not None:
            contradicting = {
                "data": data,
                "model": model,
                "weights": weights,
                "recipe": recipe,
                "pretrained": pretrained,
            }
            _require_unsaid({**contradicting, **(said_of_the_teacher or {})}, config)
            resolved = from_dict(TrainConfig, read_toml(config), str(config))
            resolved = replace(resolved, output_dir=str(output) if output else "")
            resolved = override(resolved, {k: v for k, v in given.items() if v is not None})
            resolved = override(resolved, parse_overrides(changes))
        else:
            request = Request(
                data=data or "",
                model=model or "",
                recipe=recipe or "",
                pretrained=pretrained,
                weights=str(weights) if weights else "",
                teaching=teaching,
                output=str(output) if output else "",
                given=given,
                changes=changes,
            )
            resolved, *pair = configure(request, reporter)
            datasets = (pair[0], pair[1])

        def choose(config: TrainConfig) -> TrainConfig:
            return with_chosen_batch(config, datasets, reporter)

        if dry_run:
            _print_plan(choose(resolved) if choose_batch else resolved, shape, reporter)
            return
        result = start_or_resume(
            resolved,
            auto=resume == AUTO,
            datasets=datasets,
            reporter=reporter,
            choose=choose if choose_batch else None,
        )
    if is_main_process():
        _print_result(result, shape)
    raise typer.Exit(left_out_code(len(result.bad_images)))


def _as_kept(name: str | Path | None) -> str | None:
    """Return a name or path as a run's configuration keeps it."""
    if name is None:
        return None
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def _of_the_teacher(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of a teacher under the names that a run's configuration has for it."""
    names = {
        "no_token": "token",
        "teacher_cache": "cache",
        "words_topk": "topk",
        "force_teacher": "force",
    }
    values = {names.get(k, k): v for k, v in said.items() if v is not None}
    if "token" in values:
        values["token"] = not values["token"]
    for path in ("teacher", "teacher_weights", "cache"):
        if path in values:
            values[path] = _as_kept(values[path])
    return {f"distill.{k}": v for k, v in values.items()}


def run_replay(
    record: Path, said: Mapping[str, Any], *, output_format: str | None, quiet: bool
) -> None:
    """Take the step of a record again, on any device and in any precision, and print what happens in it."""
    from deitctl.training.replay import replay

    shape = choose_format(output_format, FORMATS, "json")
    machine = {k: said[k] for k in ("device", "precision", "workers") if said.get(k) is not None}
    _require_unsaid({k: v for k, v in said.items() if k not in machine}, record)
    result = replay(record, given=machine, reporter=make_reporter(quiet))
    if shape == "json":
        print_json(result.to_dict())
        return
    print_table(
        f"{result.kind} at step {result.step}, in {result.precision}",
        ("step", "loss", "gradient norm", "rate"),
        [
            (str(s["step"]), f"{s['loss']:.4g}", f"{s['norm']:.4g}", f"{s['rate']:.2g}")
            for s in result.steps[-12:]
        ],
    )
    print_table(
        "largest gradients of the step",
        ("parameter", "norm"),
        [(k, f"{v:.4g}") for k, v in result.gradients[:10]],
    )
    print_table(
        "its images, worst first",
        ("image", "loss"),
        [(k, f"{v:.4g}") for k, v in result.images[:10]],
    )
    print_line("It went wrong again." if result.again else "This time it did not go wrong.")


def _require_unsaid(named: Mapping[str, Any], config: Path) -> None:
    """Refuse what a whole configuration has said already; single settings of it are changed with --set."""
    if again := [name for name, value in named.items() if value is not None]:
        raise ConfigError(
            f"{config} has its own {again[0].replace('_', ' ')}.",
            "Leave yours out, or change a setting with --set.",
        )


def _print_plan(config: TrainConfig, shape: str, reporter: Reporter) -> None:
    from deitctl.training.plan import plan_training

    plan = plan_training(config, reporter=reporter)
    if shape == "json":
        print_json({"config": to_dict(config), "plan": plan})
        return
    print_table(
        f"plan: {config.model} on {config.data}",
        ("what", "value"),
        [(k, str(v)) for k, v in plan.items()],
        2,
    )
    print_table(
        "recipe",
        ("setting", "value"),
        [(k, str(v)) for k, v in flatten(to_dict(config)).items()],
        2,
    )


def _print_result(result: TrainResult, shape: str) -> None:
    if shape == "json":
        print_json(result.to_dict())
        return
    scores = result.shipped
    rows = []
    if result.teacher is not None:
        rows.append((f"teacher {result.teacher.name}", f"{result.teacher.top1:.2f}"))
    names = {"cls": "student, class head", "dist": "student, distillation head"}
    names |= {
        "avg-logits": "student, both (mean of logits)",
        "avg-probs": "student, both (mean of probabilities)",
    }
    heads = scores.heads or {"student": scores.top1}
    rows += [(names.get(head, head), f"{top1:.2f}") for head, top1 in heads.items()]
    print_table(f"top-1 on {scores.num_images} validation images, %", ("", "top-1"), rows)
    run = result.run
    print_table(
        "run",
        ("what", "where"),
        [
            ("model", str(run)),
            ("curves", str(run / "figures" / "curves.png")),
            ("log", str(run / "metrics.jsonl")),
            (
                "best epoch",
                f"{result.best_epoch} of {result.epochs}, {result.best_weights} weights",
            ),
            ("time", f"{result.seconds:.0f} s"),
        ],
        2,
    )
    print_line(f"deitctl predict IMAGE --model {run}")
