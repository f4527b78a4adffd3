"""docs/reference/json.md says what the result dataclasses are, every key with its type and meaning."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = ROOT / "docs" / "reference" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    """Else: python docs/reference/generate.py"""
    assert generator.PAGE.read_text(encoding="utf-8") == generator.build_page()


def test_every_key_has_a_type_and_a_meaning_and_is_snake_case(generator: ModuleType) -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \| (.*?) \|$", generator.build_page(), re.M)
    assert len(rows) > 200
    for key, kind, meaning in rows:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", key)
        assert kind, key
        assert meaning.endswith((".", ")")), (key, meaning)


def test_links_lead_to_sections(generator: ModuleType) -> None:
    page = generator.build_page()
    sections = {title.lower() for title in re.findall(r"^## (\w+)$", page, re.M)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= sections
