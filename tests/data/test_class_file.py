"""Names of classes are read from every form that they are passed around in, or refused in a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from deitctl.data.class_file import ClassNames, apply_class_names, read_class_names
from deitctl.errors import ConfigError, ModelError
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import ModelConfig

IDS, DESCRIPTIONS = load_imagenet_classes()
SHORT = [text.split(",")[0] for text in DESCRIPTIONS]
TWO = ("cat", "big owl")


def write(folder: Path, name: str, content: str | bytes | object) -> Path:
    path = folder / name
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "cat\nbig owl\n"),
        ("no_extension", "cat\r\nbig owl\r\n\r\n\n"),
        ("a.txt", "  cat \nbig owl\t"),
        ("bom.txt", b"\xef\xbb\xbfcat\nbig owl"),
        ("utf16.txt", "cat\nbig owl".encode("utf-16")),
        ("utf16_without_mark.txt", "cat\nbig owl".encode("utf-16-le")),
        ("numbered.txt", "0 cat\n1 big owl"),
        ("numbered.txt", "0: cat\n1: big owl"),
        ("from_one.txt", "1 cat\n2 big owl"),
        ("behind.txt", "cat 0\nbig owl 1"),
        ("unordered.txt", "1\tbig owl\n0\tcat\n"),
        ("a.csv", "index,name\n1,big owl\n0,cat\n"),
        ("a.csv", "Name;Class ID\ncat;0\nbig owl;1\n"),
        ("a.csv", "0,cat\n1,big owl\n"),
        ("a.csv", 'class_name\ncat\n"big owl"\n'),
        ("a.csv", "Class IDs;Species\n0;cat\n1;big owl\n"),
        ("a.csv", "sep=;\nid;label\n0;cat\n1;big owl\n"),
        ("a.csv", "index|Category Name\n0|cat\n1|big owl\n"),
        ("a.csv", "label,description\n0,cat\n1,big owl\n"),
        ("a.tsv", "id\tname\n0\tcat\n1\tbig owl\n"),
        ("a.json", ["cat", "big owl"]),
        ("a.json", {"0": "cat", "1": "big owl"}),
        ("a.json", {"big owl": 1, "cat": 0}),
        (
            "a.json",
            {"id2label": {"0": "cat", "1": "big owl"}, "label2id": {"cat": 0, "big owl": 1}},
        ),
        ("a.json", {"class_to_idx": {"cat": 0, "big owl": 1}}),
        ("a.json", {"categories": [{"id": 2, "name": "big owl"}, {"id": 1, "name": "cat"}]}),
        ("config.json", {"architecture": "x", "label_names": ["cat", "big owl"]}),
        ("dict.txt", "{0: 'cat',\n 1: 'big owl'}"),
        ("a.yaml", "- cat\n- big owl\n"),
        ("a.yml", "# pets\n---\n0: cat\n1: 'big owl'  # Bubo\n"),
        ("a.yaml", "cat: 0\nbig owl: 1\n"),
        (
            "data.yaml",
            "path: ../pets\ntrain: images\nnc: 2\nnames:\n  0: cat\n  1: big owl\nx: 1\n",
        ),
        ("data.yaml", "names:\n- cat\n- big owl\nnc: 2\n"),
        ("data.yaml", "nc: 2\nnames: ['cat', big owl]\n"),
        ("data.yaml", 'names: [cat,\n  "big owl",\n]\nnc: 2\n'),
        ("data.yaml", "class_to_idx: {big owl: 1, cat: 0}\n"),
    ],
)
def test_every_form_gives_the_same_names(name: str, content: object, tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, name, content)) == ClassNames(TWO, None)


def test_yaml_keeps_names_that_it_would_read_as_truth_values(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "names:\n  - no\n  - 'on'\n  - a, b\n")
    assert read_class_names(path).names == ("no", "on", "a, b")


def test_accents_are_composed_and_old_windows_text_is_read(tmp_path: Path) -> None:
    decomposed = write(tmp_path, "mac.txt", "e\u0301toile\nmer")
    windows = write(tmp_path, "windows.txt", "étoile\nmer".encode("cp1252"))
    assert (
        read_class_names(decomposed).names == read_class_names(windows).names == ("étoile", "mer")
    )


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("1 euro\n2 euro\n", ("1 euro", "2 euro")),
        ("1 cent\n2 cent\n5 cent", ("1 cent", "2 cent", "5 cent")),
        ("type 0\ntype 1", ("type 0", "type 1")),
        ("7\n3", ("7", "3")),
        ("3D printer\n2D plotter", ("3D printer", "2D plotter")),
        (
            "1 001.Black_footed_Albatross\n2 002.Laysan",
            ("001.Black_footed_Albatross", "002.Laysan"),
        ),
        ("/a/airfield 0\n/a/alley 1", ("/a/airfield", "/a/alley")),
    ],
)
def test_numbers_that_are_part_of_names_stay(
    content: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    assert read_class_names(write(tmp_path, "a.txt", content)).names == names


@pytest.mark.parametrize(
    "content",
    [
        f"{IDS[0]} {DESCRIPTIONS[0]}\n{IDS[1]} {DESCRIPTIONS[1]}",
        f"{IDS[0]}\t{DESCRIPTIONS[0]}\n{IDS[1]}\t{DESCRIPTIONS[1]}",
        f"0,{IDS[0]},{DESCRIPTIONS[0]}\n1,{IDS[1]},{DESCRIPTIONS[1]}",
        f"{IDS[0]}\n{IDS[1]}\n",
        json.dumps({"0": [IDS[0], DESCRIPTIONS[0]], "1": [IDS[1], DESCRIPTIONS[1]]}),
        json.dumps([[IDS[0], DESCRIPTIONS[0]], [IDS[1], DESCRIPTIONS[1]]]),
        json.dumps(
            {
                "label_names": IDS[:2],
                "label_descriptions": dict(zip(IDS, DESCRIPTIONS, strict=True)),
            }
        ),
    ],
)
def test_wordnet_ids_match_data_and_their_names_are_for_people(
    content: str, tmp_path: Path
) -> None:
    names = read_class_names(write(tmp_path, "synsets.txt", content))
    assert names == ClassNames(IDS[:2], DESCRIPTIONS[:2])


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(SHORT),
        "\n".join(f"{number},{text}" for number, text in enumerate(DESCRIPTIONS)),
        json.dumps(SHORT),
        str(dict(enumerate(DESCRIPTIONS))),
    ],
    ids=["lines", "numbers", "json", "python"],
)
def test_a_thousand_names_of_imagenet_are_its_classes(content: str, tmp_path: Path) -> None:
    """Two classes are called crane: only by their ids are they two."""
    assert len(set(SHORT)) < 1000
    names = read_class_names(write(tmp_path, "imagenet_classes.txt", content))
    assert names.names == IDS
    assert names.descriptions is not None
    assert names.descriptions[2].startswith("great white shark")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "it is empty"),
        ("a.txt", "cat\n\nowl\n", "line 2 is empty"),
        ("a.txt", "cat\nowl\ncat ", "names two classes 'cat': 0 and 2"),
        ("a.txt", "e\u0301\n\u00e9", "names two classes"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "3", "no list and no dictionary"),
        ("a.json", [1, 2], "'1' is no name"),
        ("a.json", ["cat", " "], "no name for class 1"),
        ("a.json", {"0": "cat", "2": "owl"}, "0 to 2, do not number 2 classes"),
        ("a.json", {"x": "cat", "y": "owl"}, "keys are no numbers"),
        ("a.json", {}, "it is empty"),
        ("a.csv", "foo,bar\nx,y\n", "which of its columns has the names is unknown: 'foo', 'bar'"),
        ("a.csv", "index,name\n0,cat\n2,owl\n", "do not number 2 classes"),
        ("a.yaml", "model:\n  classes: 5\nlr: 0.1\n", "of YAML a list or a map of names is read"),
        ("a.yaml", "names:\n- name: cat\n- name: owl\n", "'name: cat' is no name"),
        ("a.yaml", "names: [bird's, owl]\n", "a quote that does not end"),
        ("a.yaml", "names: [cat, owl\n", "a list that does not end"),
        ("a.yaml", "names:\n  0: cat\n    1: owl\n", "neither a list nor a map"),
        ("a.yaml", "names: &pets\n  - cat\n", "neither a list nor a map"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "it is a PNG image"),
        ("a.txt", b"cat\0owl", "it is no text"),
        (
            "a.txt",
            "{0: 'cat', 1: 'owl'," + " " * (1 << 20) + "}",
            "too large for a Python dictionary",
        ),
    ],
)
def test_what_names_no_classes_is_refused_in_a_line(
    name: str, content: object, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_class_names(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "classes.txt", "a")
    with pytest.raises(ConfigError, match=r"No such file.*Did you mean.*classes\.txt"):
        read_class_names(tmp_path / "clases.txt")


def test_a_model_folder_stands_for_the_names_in_its_config(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"architecture": "x", "label_names": TWO})
    assert read_class_names(tmp_path).names == TWO


@pytest.mark.parametrize("classes", [TWO, list(TWO)])
def test_a_model_gets_the_names_of_a_sequence(classes: Sequence[str], reporter) -> None:
    bare = ModelConfig(architecture="deit_tiny_patch16_224", num_classes=2)
    assert apply_class_names(bare, classes, "w.pth", reporter).class_names == TWO
    assert reporter.notes == []


def test_names_that_are_replaced_or_missing_are_said(reporter) -> None:
    own = ModelConfig(
        architecture="deit_tiny_patch16_224",
        num_classes=2,
        class_names=("cat", "owl"),
        descriptions=("a cat", "an owl"),
    )
    replaced = apply_class_names(own, TWO, "w.pth", reporter)
    assert [replaced.label(n) for n in range(2)] == list(TWO)
    bare = ModelConfig(architecture="deit_tiny_patch16_224", num_classes=2)
    assert apply_class_names(bare, "", "bare.pth", reporter) is bare
    assert apply_class_names(own, own.class_names or "", "w.pth", reporter).class_names == (
        "cat",
        "owl",
    )
    assert reporter.notes == [
        "The class names of w.pth are replaced, 'owl' by 'big owl' for example.",
        "bare.pth does not name its 2 classes, so they are numbered from 0: --classes FILE names them.",
    ]


def test_another_number_of_names_is_refused(reporter) -> None:
    bare = ModelConfig(architecture="deit_tiny_patch16_224", num_classes=3)
    with pytest.raises(ModelError, match=r"--classes names 2 classes, and w\.pth has 3"):
        apply_class_names(bare, TWO, "w.pth", reporter)
    with pytest.raises(ConfigError, match="has 3, which is no name"):
        apply_class_names(bare, ["a", 3, "b"], "w.pth", reporter)  # type: ignore[list-item]
