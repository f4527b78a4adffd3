"""Braces, patterns, lists and folders mean the shards that a shell would name, with their splits."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.readers.braces import expand_braces
from deitctl.data.readers.shard_names import find_shards
from deitctl.errors import DataError
from tests.data.readers.tars import jpeg, sample, write_tar

PATTERNS = (
    "x-{000000..000146}.tar",
    "x-{8..11}.tar",
    "x-{3..0}.tar",
    "x-{08..11}.tar",
    "{a,b}-{0..1}.tar",
    "x-{a,{b,c}}.tar",
    "{train,val}/x-{00..02}.tar",
    "x-{0..10..5}.tar",
    "x-{1,}.tar",
)


def test_braces_mean_what_bash_means():
    said = subprocess.run(
        ["bash", "-c", "\n".join(f"echo {pattern}" for pattern in PATTERNS)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for pattern, line in zip(PATTERNS, said, strict=True):
        assert sorted(expand_braces(pattern)) == sorted(line.split())


@given(st.text("ab{},.0123", max_size=24))
def test_any_braces_end_in_names_or_one_line(pattern):
    try:
        assert expand_braces(pattern)
    except DataError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "pattern", ["x-{0..99999999999}.tar", "{0..9999}{0..9999}.tar", "{" + "{0..900000}," * 40 + "}"]
)
def test_braces_that_mean_too_many_are_refused_at_once(pattern):
    with pytest.raises(DataError, match="means more than 1,000,000 shards"):
        expand_braces(pattern)


def make(folder: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        write_tar(folder / name, sample(f"{n}", n, cls=0))
    return folder


def parts(ref: Path | str) -> dict[str, list[str]]:
    shards = find_shards(str(ref))
    assert shards is not None
    return {split: [Path(path).name for path in paths] for split, paths in shards.parts.items()}


SPLITS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "none": (["x-0.tar", "x-1.tar"], {"": ["x-0.tar", "x-1.tar"]}),
    "by names": (["train-0.tar", "val-0.tar"], {"train": ["train-0.tar"], "val": ["val-0.tar"]}),
    "timm's": (
        ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"],
        {
            "train": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"],
            "val": ["imagenet1k-validation-00.tar"],
        },
    ),
    "by folders": (
        ["train/0.tar", "val/0.tar", "test/0.tar"],
        {"train": ["0.tar"], "val": ["0.tar"], "test": ["0.tar"]},
    ),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_shards_are_of_the_split_that_they_are_named_by(kind, tmp_path):
    names, expected = SPLITS[kind]
    assert parts(make(tmp_path, *names)) == expected
    listed = tmp_path / "shards.txt"
    listed.write_text("\n".join(["", "# shards", *names]))
    assert parts(listed) == expected
    assert parts(f"{tmp_path}/{{{','.join(names)}}}") == expected


def test_a_pattern_means_the_files_that_it_matches(tmp_path):
    make(tmp_path, "a-0.tar", "a-1.tar", "b-0.tar")
    assert parts(tmp_path / "a-*.tar") == {"": ["a-0.tar", "a-1.tar"]}
    with pytest.raises(DataError, match=r"No file matches .*c-\*.tar"):
        find_shards(str(tmp_path / "c-*.tar"))


def test_a_word_for_a_split_in_a_class_is_none(tmp_path):
    assert parts(make(tmp_path, "bullet_train.tar", "car.tar")) == {
        "": ["bullet_train.tar", "car.tar"]
    }


def test_missing_shards_are_counted_and_named(tmp_path):
    make(tmp_path, "x-0.tar", "x-2.tar")
    with pytest.raises(DataError) as raised:
        find_shards(f"{tmp_path}/x-{{0..9}}.tar")
    text = str(raised.value)
    assert text.startswith("8 of the 10 shards ")
    assert "x-1.tar, x-3.tar, x-4.tar, x-5.tar, x-6.tar and 3 more" in text
    (tmp_path / "list.txt").write_text("x-0.tar\nx-7.tar\n")
    with pytest.raises(DataError, match=r"1 of the 2 shards of .*list.txt are missing: x-7.tar"):
        find_shards(str(tmp_path / "list.txt"))


REFUSALS = {
    "a program": ("pipe:curl https://x/{0..1}.tar", "would run a program"),
    "a program of a run": ("/data/pipe:curl x", "would run a program"),
    "compressed": ("{here}/x-{{0..1}}.tar.gz", "is compressed"),
    "twice": ("{here}/{{x-0,x-0}}.tar", "names x-0.tar twice"),
    "no numbers": ("{here}/x-{{0-9}}.tar", "means no numbers"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_no_list_of_tars_is_refused_in_one_line(kind, tmp_path):
    ref, why = REFUSALS[kind]
    make(tmp_path, "x-0.tar", "x-0.tar.gz", "x-1.tar.gz")
    ref = ref.replace("{here}", str(tmp_path)).replace("{{", "{").replace("}}", "}")
    with pytest.raises(DataError, match=why) as raised:
        find_shards(ref)
    assert len(str(raised.value).splitlines()) == 1


def test_half_of_the_names_with_a_split_are_refused(tmp_path):
    make(tmp_path, "train-0.tar", "val-0.tar", "extra-0.tar")
    with pytest.raises(DataError, match=r"1 of none: extra-0.tar\. Name those"):
        find_shards(str(tmp_path))


def test_a_folder_of_images_is_none_of_shards_whatever_lies_beside(image_folder, tmp_path):
    root = image_folder({"ant": 1, "bee": 1})
    make(root, "backup.tar")
    assert find_shards(str(root)) is None
    assert find_shards(str(tmp_path / "none")) is None
    table = tmp_path / "images.txt"
    table.write_text("a.jpg,ant\nb.jpg,bee\n")
    assert find_shards(str(table)) is None


def test_a_file_with_braces_in_its_name_is_itself(tmp_path):
    make(tmp_path, "x-{0..1}.tar")
    assert parts(tmp_path / "x-{0..1}.tar") == {"": ["x-{0..1}.tar"]}
    assert list(itertools.chain(*parts(tmp_path).values())) == ["x-{0..1}.tar"]


def write_info(folder: Path, info: object) -> None:
    (folder / "_info.json").write_text(json.dumps(info))


def test_a_folder_or_pattern_without_a_shard_that_info_names_is_refused(tmp_path):
    make(tmp_path, "train-0.tar", "train-2.tar", "val-0.tar", "train/a-0.tar")
    files = {"train": [f"train-{n}.tar" for n in range(3)], "val": ["val-0.tar"], "test": ["t.tar"]}
    splits = {split: {"filenames": names} for split, names in files.items()}
    write_info(tmp_path, {"splits": splits})
    (tmp_path / "train" / "a-0.tar").rename(tmp_path / "train" / "a-0")
    for ref in (tmp_path, tmp_path / "train-*.tar"):
        with pytest.raises(DataError, match=r"1 of the 3 shards .* missing: train-1\.tar\."):
            find_shards(str(ref))
    assert parts(tmp_path / "train-{0,2}.tar") == {"train": ["train-0.tar", "train-2.tar"]}
    assert parts(tmp_path / "train-[02].tar") == {"train": ["train-0.tar", "train-2.tar"]}
    for names in (5, None, {}, [7]):  # another program's
        write_info(tmp_path, {"splits": {"train": {"filenames": names, "shard_lengths": [1]}}})
        assert list(parts(tmp_path)) == ["train", "val"]


def test_names_of_classes_are_read_or_refused(tmp_path):
    make(tmp_path, "x-0.tar")

    def list_names() -> tuple[str, ...]:
        shards = find_shards(str(tmp_path))
        assert shards is not None
        return shards.list_class_names()

    (tmp_path / "classes.txt").write_text("rose\ntulip \n\n  \n")
    assert list_names() == ("rose", "tulip")
    (tmp_path / "classes.txt").write_text("rose\n\ntulip\n")
    with pytest.raises(DataError, match=r"classes\.txt has no name in line 2"):
        list_names()
    (tmp_path / "classes.txt").unlink()
    write_info(tmp_path, {"class_names": {"1": "tulip", "0": "rose"}})
    assert list_names() == ("rose", "tulip")
    write_info(tmp_path, {"class_names": {"rose": 0}})
    with pytest.raises(DataError, match=r"class_names in _info\.json is no list of names"):
        list_names()


MIXTURES = {
    "tars beside a split of tars": ["x-0.tar", "val/x-0.tar"],
    "tars of a split beside images of another": ["train-0.tar", "val/ant/1.jpg"],
    "tars for one split, images for another": ["train/x-0.tar", "val/ant/1.jpg"],
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_no_part_of_a_folder_is_passed_over(kind, tmp_path):
    for name in MIXTURES[kind]:
        if name.endswith(".tar"):
            make(tmp_path, name)
        else:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(jpeg(1))
    with pytest.raises(
        DataError, match="has shards (in|of its) (val|train)(/, and other images in| split)"
    ):
        find_shards(str(tmp_path))
