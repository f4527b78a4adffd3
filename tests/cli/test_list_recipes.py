"""`deitctl recipes` fits a terminal, and one recipe is shown with all of its sources."""

from __future__ import annotations

import json
import re

from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.recipes import RECIPES, TABLES


def run(*arguments: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, ["recipes", *arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_has_a_line_a_recipe_at_80_columns():
    lines = run("--format", "table").splitlines()
    for name in RECIPES:
        (line,) = [line for line in lines if line.startswith(f"│ {name} ")]
        assert len(line) <= 80
        assert TABLES[name].purpose in line
    assert "79.9" in next(line for line in lines if line.startswith("│ paper "))
    assert "deit_small" in next(line for line in lines if line.startswith("│ paper "))


def test_a_wide_terminal_shows_the_cost_beside_the_papers():
    assert re.search(
        r"deit3 .*deit3_small .*26\.4 E .*2\.67", run("--format", "table", columns=120)
    )


def test_the_sources_of_a_size_name_their_settings():
    text = run("deit3", "--format", "table", columns=300)
    assert "img_size, optim.lr: own: as S, for there is no command for Ti; drop_path_rate: " in text


def test_a_recipe_is_shown_with_its_sources():
    text = " ".join(
        run("patient", "--teacher", "deit_tiny", "--format", "table", columns=300).split()
    )
    for _, source in (*TABLES["patient"].settings.values(), *TABLES["patient"].distill.values()):
        assert source in text
    assert "Teacher deit_tiny: 3.61 EFLOPs more." in text


def test_json_has_every_setting():
    details = json.loads(run("deit3", "--format", "json"))
    assert details["cost"]["train_flops"] > 2e19
    source = TABLES["deit3"].settings["epochs"][1]
    expected = {"name": "epochs", "value": 800, "source": source, "is_default": False}
    assert expected in details["settings"]


def test_a_recipe_that_is_none_is_one_line():
    result = CliRunner().invoke(app, ["recipes", "deit4"])
    assert result.exit_code == 1
