"""What `train` and `distill` share: they are one command with and without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deitctl.cli.console import choose_format, print_json, print_line, print_table
from deitctl.cli.progress import make_reporter
from deitctl.config import TrainConfig, from_dict, override, read_toml, to_dict
from deitctl.errors import ConfigError

if TYPE_CHECKING:
    from deitctl.workflows.configure import Teaching
    from deitctl.workflows.session import TrainResult

FORMATS = ("table", "json")


def run(
    *, data: str | None, model: str | None, weights: Path | None, recipe: str | None, pretrained: bool | None,
    teaching: Teaching | None, output: Path | None, resume: Path | None, config: Path | None,
    given: Mapping[str, Any], changes: Sequence[str], dry_run: bool, output_format: str | None, quiet: bool,
    said_of_the_teacher: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Configure and train, or resume; print the result. A run in which pictures had to be left out exits with 3."""
    import typer

    from deitctl.workflows.configure import Request, configure, parse_change
    from deitctl.workflows.train import resume as resume_run
    from deitctl.workflows.train import run_training

    shape = choose_format(output_format, FORMATS, "json")
    reporter = make_reporter(quiet)
    if resume is not None:
        named: dict[str, Any] = {
            "data": data,
            "model": model,
            "weights": weights,
            "recipe": recipe,
            "config": config,
            "output": output,
        }
        named |= {"pretrained": pretrained, "set": changes or None, "dry_run": dry_run or None}
        named |= said_of_the_teacher or {}
        result = resume_run(resume, given={**given, **named}, reporter=reporter)
    else:
        sources = None
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
            resolved = replace(resolved, output=str(output) if output else "")
            resolved = override(resolved, {k: v for k, v in given.items() if v is not None})
            resolved = override(resolved, dict(parse_change(c) for c in changes))
        else:
            request = Request(
                data=data or "", model=model or "", recipe=recipe or "", pretrained=pretrained,
                weights=str(weights) if weights else "", teaching=teaching, output=str(output) if output else "",
                given=given, changes=changes,
            )  # fmt: skip
            resolved, *pair = configure(request, reporter)
            sources = (pair[0], pair[1])
        if dry_run:
            _print_plan(resolved, shape)
            return
        result = run_training(resolved, sources=sources, reporter=reporter)
    _print_result(result, shape)
    if result.bad_images:
        raise typer.Exit(3)


def _require_unsaid(named: Mapping[str, Any], config: Path) -> None:
    """Refuse what a whole configuration has said already; single settings of it are changed with --set."""
    if again := [name for name, value in named.items() if value is not None]:
        raise ConfigError(
            f"{config} has its own {again[0].replace('_', ' ')}.", "Leave yours out, or change a setting with --set."
        )


def _print_plan(config: TrainConfig, shape: str) -> None:
    from deitctl.workflows.plan import plan_training

    plan = plan_training(config)
    if shape == "json":
        print_json({"config": to_dict(config), "plan": plan})
        return
    print_table(f"plan: {config.model} on {config.data}", ("what", "value"), [(k, str(v)) for k, v in plan.items()], 2)
    print_table("recipe", ("setting", "value"), [(k, str(v)) for k, v in _flat(to_dict(config))], 2)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _print_result(result: TrainResult, shape: str) -> None:
    if shape == "json":
        print_json(result.to_dict())
        return
    scores = result.shipped
    rows = []
    if result.teacher is not None:
        rows.append((f"teacher {result.teacher.name}", f"{result.teacher.top1:.2f}"))
    names = {"cls": "student, class head", "dist": "student, distillation head"}
    names |= {"avg-logits": "student, both (mean of logits)", "avg-probs": "student, both (mean of probabilities)"}
    heads = scores.heads or {"student": scores.top1}
    rows += [(names.get(head, head), f"{top1:.2f}") for head, top1 in heads.items()]
    print_table(f"top-1 on {scores.images} validation pictures, %", ("", "top-1"), rows)
    run = result.run
    print_table(
        "run", ("what", "where"),
        [
            ("model", str(run)), ("curves", str(run / "figures" / "curves.png")), ("log", str(run / "metrics.jsonl")),
            ("best epoch", f"{result.best_epoch} of {result.epochs}, {result.best_weights} weights"), ("time", f"{result.seconds:.0f} s"),
        ],
        2,
    )  # fmt: skip
    print_line(f"deitctl predict PICTURE --model {run}")
