"""The Dockerfile: a pinned base, no root, signals to deitctl itself, and nothing in the image but what is installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [
    line
    for line in re.sub(r"\\\n", " ", TEXT).splitlines()
    if line.strip() and not line.startswith("#")
]


def list_arguments(instruction: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{instruction} ")]


def test_the_base_is_a_slim_python_of_one_version_that_the_project_supports() -> None:
    assert list_arguments("FROM") == ["python:${PYTHON} AS build", "python:${PYTHON}"]
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+-slim-[a-z]+$", TEXT, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
    (extras,) = re.findall(r'^ARG EXTRAS="(.*)"$', TEXT, re.M)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_it_runs_as_no_root_and_signals_reach_deitctl() -> None:
    # The exec form: a shell in front would be process 1, and would not pass SIGTERM on.
    assert list_arguments("ENTRYPOINT") == ['["deitctl"]']
    assert list_arguments("STOPSIGNAL") == ["SIGTERM"]
    (user,) = list_arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # numbers, which runAsNonRoot can check


def test_what_any_user_must_write_is_everybodys() -> None:
    (folders,) = re.findall(r"mkdir -m 1777 (.*)", TEXT)
    (settings,) = list_arguments("ENV")[-1:]
    cache = re.findall(r"DEITCTL_CACHE=(\S+)", settings)
    assert cache == ["/cache"]
    assert set(folders.split()) == {"/cache", list_arguments("WORKDIR")[-1]}


def test_torch_comes_from_the_index_of_the_build_argument() -> None:
    assert 'ARG TORCH_INDEX=""' in LINES
    assert any('--index-url "$TORCH_INDEX"' in line and "torch.txt" in line for line in LINES)
    assert all("--mount=type=cache" in line for line in LINES if "pip install" in line)


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = {
        source
        for arguments in list_arguments("COPY")
        if "--from=" not in arguments
        for source in arguments.split()[:-1]
    }
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_it_has_no_secret() -> None:
    assert not re.search(r"(?i)token|password|secret|credential", TEXT)
