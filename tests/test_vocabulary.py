"""One vocabulary, the field's: words that this project once had of its own do not come back.

What users see (help, messages, documentation), comments, identifiers and the metadata of the package are searched. The
words used instead are those of timm, torch, Hugging Face and the papers: image, teacher targets, verified, issue.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import deitctl
from deitctl.cli.app import COMMANDS, app

PACKAGE = Path(deitctl.__file__).parent
ROOT = PACKAGE.parent
FORBIDDEN = re.compile(
    r"\b(pictures?|tutors?|contenders?|tall(y|ies)|twins|listen(s|er|ers|ing)?|hears?|"
    # a program requests, reports, receives
    r"asked|said|told|heard|"
    r"proofs?|prove[sd]?|mend(s|ed|ing)?|teacher's words?|soft words?|hard words?|elementmean|"
    r"(is|not|are) sound|on_top|loss_jump|keep_batch_stats|teacher_sees|--micro-batch(?!-size)|"
    r"words-topk|teacher-sees|force-teacher|verify-with|calibrate-with|any-size|write-table)\b",
    re.IGNORECASE,
)
IDENTIFIERS = re.compile(
    r"(?:^|_)(pictures?|tutors?|contenders?|tally|twins|listener|proof|mend)(?:_|$)", re.IGNORECASE
)
VARIABLES = {
    "told",
    "said",
    "asked",
    "wanted",
    "found",
    "given",
    "known",
    "whole",
    "kept",
    "shown",
    "how",
}
"""Names that say nothing of what they hold."""
SOURCES = sorted(PACKAGE.rglob("*.py"))
# the changelog is left out: it says what was renamed
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def find_forbidden(text: str) -> list[str]:
    return [match[0] for match in FORBIDDEN.finditer(text)]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_the_fields_words(command: str | None) -> None:
    arguments = ["--help"] if command is None else [command, "--help"]
    assert not find_forbidden(CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_documentation_has_the_fields_words(page: Path) -> None:
    assert not find_forbidden(page.read_text(encoding="utf-8"))


def test_metadata_have_the_fields_words() -> None:
    assert not find_forbidden((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_comments_have_the_fields_words(source: Path) -> None:
    with source.open(encoding="utf-8") as file:
        comments = [
            token.string
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT
        ]
    assert not [word for comment in comments for word in find_forbidden(comment)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_messages_and_docstrings_have_the_fields_words(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert not [word for t in texts if isinstance(t, str) for word in find_forbidden(t)]


def list_names(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield every name that a file gives, and whether it is a variable or argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, True
        elif isinstance(node, ast.arg):
            yield node.arg, True


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_identifiers_have_the_fields_words(source: Path) -> None:
    names = list(list_names(ast.parse(source.read_text(encoding="utf-8"))))
    assert not [name for name, _ in names if IDENTIFIERS.search(name)]
    assert not [name for name, is_variable in names if is_variable and name in VARIABLES]


def test_the_search_finds_what_it_is_for() -> None:
    assert find_forbidden("A picture is proved, and the teacher's word is heard.") == [
        "picture",
        "proved",
        "teacher's word",
        "heard",
    ]
    assert not find_forbidden("An image of a micro-batch is verified: no issues found.")
    assert IDENTIFIERS.search("read_picture")
    assert not IDENTIFIERS.search("depicture")
