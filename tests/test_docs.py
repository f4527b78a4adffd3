"""Pages link to what exists, and the command lines on them parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deitctl.cli.app import app
from deitctl.settings import list_settings

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands
SETTINGS = {setting.name for setting in list_settings()}
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    \S.*\n)+", re.M)
INLINE = re.compile(r"`([^`]+)`")
END_OF_COMMAND = {"|", "||", "&&", ";", "&", ">", "2>", ")"}


def name_page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=PAGES, ids=name_page)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def list_anchors(path: Path) -> set[str]:
    """Return GitHub's anchor of every heading."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.M)
    texts = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_links_and_anchors_exist(page: Path) -> None:
    text = INLINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in list_anchors(target), link


def test_every_page_is_in_an_index() -> None:
    indexes = [ROOT / "README.md", *(ROOT / "docs").rglob("README.md")]
    linked = {
        (index.parent / link).resolve()
        for index in indexes
        for link in re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    }
    assert not {name_page(path) for path in (ROOT / "docs").rglob("*.md") if path not in linked}


def split_commands(text: str) -> Iterator[list[str]]:
    """Yield the simple commands of shell lines, without pipes, redirections and comments."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;()>")
        lexer.whitespace_split = True
        command: list[str] = []
        for token in lexer:
            if token in END_OF_COMMAND:
                yield command
                command = []
            else:
                command.append(token)
        yield command


def list_blocks(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for block in (*FENCED.findall(text), *INDENTED.findall(FENCED.sub("", text))):
        # of a session, its prompts alone
        prompts = re.findall(r"^\$ .*$", block, re.M)
        if prompts or re.search(r"^\s*(\w+=\S+ )*(deitctl|python3?|torchrun) ", block, re.M):
            yield "\n".join(prompts) if prompts else block


def list_inline(page: Path) -> Iterator[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for code in INLINE.findall(text):
        if re.match(r"(sudo )?(deitctl|python) ", code):
            yield code.replace("\n", " ")


def list_commands(page: Path, program: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the arguments of each call of a program, and whether it is a complete line."""
    for texts, complete in ((list_blocks(page), True), (list_inline(page), False)):
        for text in texts:
            for command in split_commands(text):
                if program in command:
                    yield command[command.index(program) + 1 :], complete


def list_options(arguments: list[str]) -> list[str]:
    return [a.partition("=")[0] for a in arguments if re.match(r"--?[a-z]", a)]


def test_command_lines_parse(page: Path) -> None:
    for arguments, complete in list_commands(page, "deitctl"):
        name = next((a for a in arguments if not a.startswith("-")), None)
        if name is None or not re.fullmatch("[a-z-]+", name):  # `deitctl --help`, `deitctl X`
            continue
        line = f"deitctl {' '.join(arguments)}"
        assert name in COMMANDS, line
        command, rest = COMMANDS[name], arguments[arguments.index(name) + 1 :]
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert set(list_options(rest)) <= options | {"--help"}, line
        for setting in re.findall(r"--set[ =]([\w.]+)=", line):
            known = {setting, f"recipe.{setting}"} & SETTINGS
            assert known or setting.startswith("model."), line  # a model's own arguments
        if complete and "--help" not in rest:
            command.make_context(name, rest)  # raises where a value or an argument is wrong


def test_benchmarks_have_the_options_that_pages_name(page: Path) -> None:
    for program in ("python", "python3"):
        for arguments, _ in list_commands(page, program):
            name = arguments[1] if arguments[:1] == ["-m"] else arguments[0] if arguments else ""
            path = ROOT / (name.replace(".", "/") if arguments[:1] == ["-m"] else name)
            if not name.startswith(("benchmarks", "fuzz", "docs")):
                continue
            assert path.exists(), arguments
            files = sorted(path.glob("*.py")) if path.is_dir() else [path]
            source = "\n".join(file.read_text(encoding="utf-8") for file in files)
            for option in list_options(arguments[1:]):
                # libFuzzer's own options have one dash
                assert not option.startswith("--") or f'"{option}"' in source or "{name}" in source


@pytest.mark.parametrize("name", ["security", "reliability"])
def test_every_promise_has_a_test_that_exists(name: str) -> None:
    """`file::part of the name`, `::part` of the same file, or a benchmark."""
    folders = (ROOT / "tests" / "hostile", ROOT / "tests")
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    tables = [t for t in re.split(r"\n\n+", text) if re.match(r"^\|.*\| Test \|$", t, re.M)]
    assert tables
    for row in (row for table in tables for row in table.splitlines()[2:]):
        source, cell = "", row.rpartition(" | ")[2]
        assert "`" in cell, row
        for code in INLINE.findall(cell):
            file, _, part = code.partition("::")
            if file.startswith("benchmarks/"):
                assert (ROOT / file).exists(), code
                continue
            if file:
                name = file if file.endswith(".py") else f"test_{file}.py"
                paths = [path for folder in folders for path in folder.rglob(name)]
                assert paths, code
                source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
            assert re.search(rf"def test_\w*{part.replace('*', '')}", source), code


def test_pages_that_source_files_name_exist() -> None:
    folders = ("deitctl", "benchmarks", "fuzz", "tests")
    for file in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), (name_page(file), page)
