"""Names for the classes of weights that come without them: `--classes FILE`.

Such files come in many forms: a name a line, with or without numbers or WordNet ids; JSON lists and
dictionaries, also inside the config of a model; the Python dictionary that is copied around for
ImageNet; CSV with a header.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.data.classes import describe_classes
from deitctl.data.file_types import START_BYTES, identify
from deitctl.data.readers.column_names import LABEL_KEYS, LABEL_NAMES, name_columns, reduce_name
from deitctl.data.readers.text import TEXT_TYPES, TextTable, find_encoding, open_text
from deitctl.data.yaml_names import parse_yaml_names
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import (
    MAX_CLASSES,
    ModelConfig,
    describe_replaced_names,
    require_count,
)
from deitctl.names import canonicalize_name
from deitctl.paths import read_regular, suggest_path

Classes = str | Path | Sequence[str]
"""What names classes: a file, or the names in the order of the logits."""
CONFIG = "config.json"
"""Of a model folder, which may be named for its config."""
MAX_BYTES = 1 << 24
MAX_LITERAL = 1 << 20
"""Characters of a Python dictionary."""
WORDNET_ID = re.compile(r"n\d{8}")
KEYED_LINE = re.compile(r"\s*(\d+|n\d{8})(?:\s*[,;:\t|]\s*|\s+)(\S.*)")
"""`0 cat`, `0: cat`, `0,cat`, `n02123045 tabby, tabby cat`."""
NUMBERED_LINE = re.compile(r"(.*\S)(?:\s*[,;:\t|]\s*|\s+)(\d+)\s*")
"""`cat 0`, `cat,0`."""
LIST_KEYS = ("label_names", "class_names", "classes", "names", "labels", "categories")
MAP_KEYS = ("id2label", "idx_to_class", "label2id", "class_to_idx")
"""Under which configs and annotations have classes: timm, ours, Keras; transformers, torchvision."""
NAME_COLUMNS = (
    "name",
    *sorted(LABEL_NAMES, key=lambda name: (not name.endswith("name"), name)),
    "description",
)
"""In order of preference; see `reduce_name`."""
NUMBER_COLUMNS = ("index", "idx", "id", "number", *sorted(LABEL_KEYS), "label")
MIN_IMAGENET = 0.9
"""Share of a thousand names that are ImageNet's, each in its place, in a file that names ImageNet."""


@dataclass(frozen=True)
class ClassNames:
    """Names in the order of the logits."""

    names: tuple[str, ...]
    """By which data is matched; WordNet ids for ImageNet."""
    descriptions: tuple[str, ...] | None
    """For people, where they differ."""


class _Malformed(Exception):
    """What is wrong with a file of names, as the end of a sentence that begins with the file."""


def read_class_names(classes: Classes) -> ClassNames:
    """Return the names of a file, or of a sequence.

    Args:
        classes: names, or a file of them in one of these forms: a name a line; lines of a number or
            a WordNet id and a name; CSV with a header; JSON with a list, or a dictionary from
            numbers to names or from names to numbers, also inside a model's config.json; a model
            folder, which stands for its config.json.

    Raises:
        ConfigError: no such file, or not one of these forms; an empty name, or one that two classes have.
    """
    if isinstance(classes, str | Path):
        path = expand_home(classes)
        path = path / CONFIG if path.is_dir() else path
        where = str(path)
        try:
            entries = _parse(path)
        except _Malformed as error:
            raise ConfigError(
                f"{where} does not name classes: {error}.",
                "A text file with one name a line does, or JSON: a list, or a dictionary from numbers to names.",
            ) from error
    else:
        where, entries = "classes", [(name, None) for name in classes]
        if wrong := next((name for name, _ in entries if not isinstance(name, str)), None):
            raise ConfigError(f"classes has {wrong!r}, which is no name.")
    return _check(_recognize_imagenet(entries), where)


def apply_class_names(
    model_config: ModelConfig,
    classes: Classes,
    where: str,
    reporter: Reporter,
    *,
    option: str = "--classes",
) -> ModelConfig:
    """Return the config of a model whose classes have the names of `classes`; empty for its own.

    Args:
        model_config: of the model.
        classes: see `read_class_names`.
        where: the model's file or name, for messages.
        reporter: gets a note of names that are replaced or missing.
        option: which names the file, for messages.

    Raises:
        ConfigError: see `read_class_names`.
        ModelError: another number of names than classes.
    """
    own = model_config.class_names
    if isinstance(classes, str | Path) and not str(classes):
        if own is None:
            reporter.note(
                f"{where} does not name its {model_config.num_classes} classes, so they are numbered "
                f"from 0: {option} FILE names them."
            )
        return model_config
    replacing = read_class_names(classes)
    require_count(replacing.names, model_config.num_classes, where, option=option)
    if clause := describe_replaced_names(own, replacing.names, where):
        reporter.note(f"T{clause[1:]}.")
    return replace(model_config, class_names=replacing.names, descriptions=replacing.descriptions)


Entry = tuple[str, str | None]
"""A class's name, and its description if there is one."""


def _read_text(path: Path) -> str:
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The class names in {path} cannot be read: {reason}.", suggest_path(path)
        ) from error
    kind = identify(data[:START_BYTES], len(data))
    if kind not in (*TEXT_TYPES, "a JSON file", "empty"):
        raise _Malformed(f"it is {kind}")
    with suppress(UnicodeError):
        text = data.decode(find_encoding(path, (*TEXT_TYPES, "a JSON file")))
        if "\0" not in text:
            return text
    raise _Malformed("it is no text in UTF-8, UTF-16 or Windows-1252")


def _parse(path: Path) -> list[Entry]:
    text, suffix = _read_text(path), path.suffix.lower()
    if suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        try:
            return _parse_value(_parse_literal(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            if suffix == ".json":
                raise _Malformed("it is not valid JSON") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    if lines == [""]:
        raise _Malformed("it is empty")
    if suffix in (".yaml", ".yml"):
        try:
            return _parse_value(parse_yaml_names(text, (*LIST_KEYS, *MAP_KEYS)))
        except ValueError as error:
            raise _Malformed(
                f"of YAML a list or a map of names is read, below `names:` or alone, and this is {error}"
            ) from error
    table = open_text(path, _rate_header)
    if entries := _parse_table(table, suffix):
        return entries
    entries = _parse_lines([line.strip() for line in lines])
    if suffix in (".csv", ".tsv") and entries[0][0] == lines[0].strip() and len(table.header) > 1:
        raise _Malformed(
            f"which of its columns has the names is unknown: {name_columns(table.header)}"
        )
    return entries


def _parse_literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if len(text) > MAX_LITERAL:  # parsing takes hundreds of times its size
            raise _Malformed("it is no JSON, and too large for a Python dictionary") from None
        return ast.literal_eval(text.strip())  # {0: 'tench, Tinca tinca', ...}


def _parse_value(value: Any) -> list[Entry]:
    """Return the classes of a JSON value."""
    if isinstance(value, Mapping):
        for key in (*LIST_KEYS, *MAP_KEYS):
            if isinstance(value.get(key), list | dict) and value[key]:
                entries = _parse_value(value[key])
                return _add_descriptions(entries, value.get("label_descriptions"))
        return _parse_mapping(value)
    if not isinstance(value, list | tuple):
        raise _Malformed("it holds no list and no dictionary")
    if all(isinstance(item, Mapping) for item in value):
        names = [item.get("name") for item in value]
        return _order(
            [(item.get("id"), (name, None)) for item, name in zip(value, names, strict=True)]
        )
    return [_parse_item(item) for item in value]


def _parse_item(item: Any) -> Entry:
    """Return the class of a name, or of a pair of a WordNet id and a name."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(i, str) for i in item):
        return item[0], item[1]
    raise _Malformed(f"{str(item)[:60]!r} is no name")


def _parse_mapping(value: Mapping[Any, Any]) -> list[Entry]:
    if not value:
        raise _Malformed("it is empty")
    if all(isinstance(number, int) for number in value.values()):  # no name is a number in JSON
        return _order([(number, (str(name), None)) for name, number in value.items()])
    return _order([(key, _parse_item(item)) for key, item in value.items()])


def _add_descriptions(entries: list[Entry], descriptions: Any) -> list[Entry]:
    """Return classes with timm's `label_descriptions`, by name."""
    if not isinstance(descriptions, Mapping):
        return entries
    return [(name, str(descriptions.get(name, name))) for name, _ in entries]


def _order(numbered: Sequence[tuple[Any, Entry]]) -> list[Entry]:
    """Return classes in the order of their numbers, which begin with 0 or 1 and have no gaps."""
    try:
        numbers = [int(number) for number, _ in numbered]
    except (TypeError, ValueError):
        raise _Malformed("its keys are no numbers of classes") from None
    first = min(numbers)
    if first not in (0, 1) or sorted(numbers) != list(range(first, first + len(numbers))):
        raise _Malformed(
            f"its numbers, {first} to {max(numbers)}, do not number {len(numbers)} classes one by one"
        )
    return [
        entry for _, (_, entry) in sorted(zip(numbers, numbered, strict=True), key=lambda x: x[0])
    ]


def _rate_header(fields: Sequence[str]) -> int:
    """Return how many columns of names and numbers of classes a header names."""
    names = set(map(reduce_name, fields))
    return sum(bool(names & set(kinds)) for kinds in (NAME_COLUMNS, NUMBER_COLUMNS))


def _parse_table(table: TextTable, suffix: str) -> list[Entry]:
    """Return the classes of a table with a header, or of a CSV; none for another text."""
    header = list(map(reduce_name, table.header))
    if len(header) == 1 and suffix not in (".csv", ".tsv"):
        return []
    try:
        rows = [[cell.strip() for cell in row] for row in table.read_rows()]
    except DataError:  # lines of names with commas in them
        return []
    if not rows or any(len(row) != len(header) for row in rows):
        return []
    places = range(len(header))
    ids = [c for c in places if all(WORDNET_ID.fullmatch(row[c]) for row in rows)]
    keys = [c for c in places if header[c] in NUMBER_COLUMNS and _is_number(rows, c)]
    names = [c for name in NAME_COLUMNS for c in places if header[c] == name]
    columns = (ids + [c for c in names if c not in (*ids, *keys)])[:2]
    if not names or not columns:
        return []
    entries = [(row[columns[0]], row[columns[1]] if len(columns) > 1 else None) for row in rows]
    if not keys:
        return entries
    return _order([(row[keys[0]], entry) for row, entry in zip(rows, entries, strict=True)])


def _is_number(rows: Iterable[Sequence[str]], column: int) -> bool:
    return all(row[column].isascii() and row[column].isdecimal() for row in rows)


def _parse_lines(lines: Sequence[str]) -> list[Entry]:
    """Return the classes of lines: names, or numbers or WordNet ids before names, or numbers behind."""
    if (blank := next((n for n, line in enumerate(lines, 1) if not line), 0)) != 0:
        raise _Malformed(f"line {blank} is empty")
    plain: list[Entry] = [(_unquote(line), None) for line in lines]
    if keyed := _match_all(KEYED_LINE, lines):
        entries = [_split_id(rest) for _, rest in keyed]
        if all(WORDNET_ID.fullmatch(key) for key, _ in keyed):
            return [(key, _unquote(rest)) for key, rest in keyed]
        if (ordered := _try_order([key for key, _ in keyed], entries)) is not None:
            return ordered
    if (numbered := _match_all(NUMBERED_LINE, lines)) and min(int(n) for _, n in numbered) == 0:
        entries = [_split_id(name) for name, _ in numbered]
        if (ordered := _try_order([number for _, number in numbered], entries)) is not None:
            return ordered
    return plain


def _match_all(pattern: re.Pattern[str], lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the two parts of every line, or nothing unless all match."""
    matches = [match for line in lines if (match := pattern.fullmatch(line))]
    return [(m[1], m[2]) for m in matches] if len(matches) == len(lines) else []


def _try_order(numbers: Sequence[str], entries: Sequence[Entry]) -> list[Entry] | None:
    """Return classes by number, None where the numbers are parts of names, as in `1 euro, 2 euro`."""
    if 2 * len({canonicalize_name(name) for name, _ in entries}) <= len(entries):
        return None
    try:
        return _order(list(zip(numbers, entries, strict=True)))
    except _Malformed:
        return None


def _split_id(text: str) -> Entry:
    """Return the class of `n02123045 tabby, tabby cat`, or of a name."""
    match = KEYED_LINE.fullmatch(text)
    if match and WORDNET_ID.fullmatch(match[1]):
        return match[1], _unquote(match[2])
    return _unquote(text), None


def _unquote(text: str) -> str:
    text = text.strip().rstrip(",") if text[:1] in ("'", '"') else text.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _recognize_imagenet(entries: list[Entry]) -> list[Entry]:
    """Return ImageNet's WordNet ids, described by the names, for a thousand names of its classes.

    Their short names are not unique: two classes are called crane, and two maillot.
    """
    ids, descriptions = load_imagenet_classes()
    if len(entries) != len(ids) or any(text is not None for _, text in entries):
        return entries
    num_equal = sum(
        _simplify(name) in {_simplify(part) for part in (text, *text.split(","))}
        for (name, _), text in zip(entries, descriptions, strict=True)
    )
    if num_equal < MIN_IMAGENET * len(ids):
        return entries
    return [(wordnet_id, name) for wordnet_id, (name, _) in zip(ids, entries, strict=True)]


def _simplify(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _check(entries: Sequence[Entry], where: str) -> ClassNames:
    """Return the names in canonical form; raise `ConfigError` for an empty or repeated one."""
    if not 1 <= len(entries) <= MAX_CLASSES:
        raise ConfigError(f"{where} names {len(entries):,} classes.")
    place_of: dict[str, int] = {}
    for place, (name, _) in enumerate(entries):
        if not isinstance(name, str) or not (canonical := canonicalize_name(name)):
            raise ConfigError(f"{where} has no name for class {place} (counted from 0).")
        if canonical in place_of:
            raise ConfigError(
                f"{where} names two classes {canonical!r}: {place_of[canonical]} and {place} (counted "
                "from 0).",
                "Every class needs a name of its own.",
            )
        place_of[canonical] = place
    names = tuple(place_of)
    if all(text is None for _, text in entries):
        return ClassNames(names, describe_classes(names))
    return ClassNames(names, tuple(text or name for name, text in entries))
