"""Samples are those of the webdataset library, with their labels; what is left out is in one line."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deitctl.data.labels import name_labels
from deitctl.data.open import open_dataset
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from tests.data.readers.tars import jpeg, sample, write_tar


def opened(path: Path | str, reporter=None) -> TarDataset:
    dataset = open_dataset(str(path), reporter or SilentReporter()).unsplit
    assert isinstance(dataset, TarDataset)
    return dataset


def names(dataset) -> list[str]:
    return [dataset.relative_path(index) for index in range(len(dataset.labels))]


def group_by_library(path: Path) -> list[dict[str, bytes]]:
    """The samples of a shard as webdataset has them; its `WebDataset` leaves files open."""
    with path.open("rb") as stream:
        members = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        return list(webdataset.tariterators.group_by_keys(members))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two shards that webdataset's own writer wrote."""
    folder = tmp_path_factory.mktemp("written")
    with webdataset.ShardWriter(str(folder / "x-%06d.tar"), maxcount=4, verbose=0) as shards:
        for n in range(7):
            shards.write(
                {
                    "__key__": f"{n:04d}",
                    "jpg": jpeg(n * 30),
                    "cls": n % 3,
                    "json": {
                        "filename": f"{['ant', 'bee', 'cow'][n % 3]}/{n}.JPEG",
                        "label": n % 3,
                    },
                }
            )
    return folder


def test_what_webdatasets_writer_wrote_is_read_as_its_reader_reads_it(written):
    urls = str(written / "x-{000000..000001}.tar")
    theirs = [one for n in range(2) for one in group_by_library(written / f"x-{n:06}.tar")]
    ours = opened(urls)
    assert [ours.read_bytes(n) for n in range(len(ours.labels))] == [s["jpg"] for s in theirs]
    assert ours.labels.tolist() == [int(s["cls"]) for s in theirs] == [0, 1, 2, 0, 1, 2, 0]
    assert ours.class_names == ("ant", "bee", "cow")
    assert names(ours)[:2] == ["ant/0.JPEG", "bee/1.JPEG"]
    assert ours.name(4) == f"{written}/x-000001.tar:bee/4.JPEG"


members = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "d/a", "d/e.f/c", "__m__", "."]),
        st.sampled_from(["jpg", "JPG", "cls", "x.y", "npy", ""]),
    ),
    max_size=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=members)
def test_members_are_grouped_as_the_library_groups_them(listed, tmp_path):
    listed = [("first", "cls"), ("first", "jpg"), *listed]
    files = {f"{key}.{suffix}" if suffix else key: b"1" for key, suffix in listed}
    files = {
        name: jpeg(1) if name.lower().endswith("jpg") else data for name, data in files.items()
    }
    path = write_tar(tmp_path / "x.tar", files)
    try:
        grouped = group_by_library(path)
    except ValueError:  # a member twice, `a.jpg` and `a.JPG`, which deitctl counts
        return
    # the names of hidden files and folders are those of systems
    theirs = [one["__key__"] for one in grouped if {"jpg", "cls"} <= one.keys()]
    assert [name[: -len(".jpg")] for name in names(opened(path))] == theirs


LABELS: dict[str, tuple[list[dict[str, object]], list[tuple[str, ...]]]] = {
    "numbers in .cls": ([{"cls": 4}, {"cls": 1}], [("4",), ("1",)]),
    "names in .cls": ([{"cls": "rose"}, {"cls": " tulip\n"}], [("rose",), ("tulip",)]),
    "names in .txt": ([{"txt": "rose"}, {"txt": "tulip"}], [("rose",), ("tulip",)]),
    "numbers in .json": ([{"json": {"label": 2}}, {"json": {"label": 0}}], [("2",), ("0",)]),
    "a class in .json": ([{"json": {"class": "b"}}, {"json": {"class": "a"}}], [("b",), ("a",)]),
    "several in .json": (
        [{"json": {"labels": ["a", "b"]}}, {"json": {"labels": ["b"]}}],
        [("a", "b"), ("b",)],
    ),
    "several numbers": ([{"json": {"label": [0, 2]}}, {"json": {"label": []}}], [("0", "2"), ()]),
    "multi-hot": (
        [{"json": {"label": [1, 0, 1]}}, {"json": {"label": [0, 0, 1]}}],
        [("0", "2"), ("2",)],
    ),
    "multi-hot of two classes": (
        [{"json": {"label": [1, 0]}}, {"json": {"label": [0, 1]}}],
        [("0",), ("1",)],
    ),
    "names and numbers": ([{"cls": "a"}, {"cls": 7}], [("a",), ("7",)]),
    "a number that is a name": ([{"cls": "007"}, {"cls": "7"}], [("007",), ("7",)]),
    ".cls before .json": (
        [{"cls": 1, "json": {"label": 9}}, {"cls": 0, "json": {"label": 9}}],
        [("1",), ("0",)],
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_read_from_the_member_that_has_them(kind, tmp_path):
    listed, expected = LABELS[kind]
    files = {
        name: d for n, own in enumerate(listed) for name, d in sample(f"{n}", n, **own).items()
    }
    dataset = opened(write_tar(tmp_path / "x.tar", files))
    assert name_labels(dataset) == expected


def shard(tmp_path: Path, *labels: object, **files: bytes) -> Path:
    own = {
        name: d for n, cls in enumerate(labels) for name, d in sample(f"{n:02}", n, cls=cls).items()
    }
    for name, data in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return write_tar(tmp_path / "x-000.tar", own)


def test_numbers_are_named_by_the_list_beside_the_shards(tmp_path):
    path = shard(tmp_path, 2, 0, classes__txt=b"rose\ntulip\nlily\n")
    assert opened(path).class_names == ("rose", "tulip", "lily")
    assert opened(path).labels.tolist() == [2, 0]
    info = {"class_names": ["a", "b", "c"], "splits": {}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert opened(path).class_names == ("a", "b", "c")
    shard(tmp_path, 2, 7)
    with pytest.raises(
        DataError, match="has the label 7, and the list of classes beside it has 3 names"
    ):
        opened(path)


def test_a_thousand_numbers_without_names_are_imagenets(tmp_path, reporter):
    files = {
        f"{n:04}.{s}": d for n in range(1000) for s, d in (("jpg", b"\xff\xd8"), ("cls", b"%d" % n))
    }
    dataset = opened(write_tar(tmp_path / "x.tar", files), reporter)
    assert dataset.class_names[:2] == ("n01440764", "n01443537")
    assert any("are read as ImageNet's classes" in note for note in reporter.notes)


def test_what_is_left_out_is_counted_in_one_line(tmp_path, reporter):
    files = {
        **sample("good", 1, cls=0),
        **sample("masks", 2, cls=1, mask_png=b"x"),
        "alone.cls": b"1",
        "unlabeled.jpg": jpeg(3),
        "skipped.jpg": jpeg(4),
        "skipped.cls": b"-1",
        "two.left.jpg": jpeg(5),
        "two.right.jpg": jpeg(6),
        "two.cls": b"0",
        "again.jpg": jpeg(7),
        "again.JPG": jpeg(8),
        "again.cls": b"0",
        "stereo.input.jpg": jpeg(9),
        "stereo.depth.png": b"x",
        "stereo.cls": b"1",
    }
    dataset = opened(write_tar(tmp_path / "x.tar", files), reporter)
    assert names(dataset) == ["good.jpg", "masks.jpg", "stereo.input.jpg"]
    assert reporter.warnings == [
        f"{tmp_path}/x.tar: Samples that are left out: 1 without an image, 2 without a label, 1 with "
        "several images, of which none is the input, 1 with two members of one name."
    ]


def test_captions_are_no_classes(tmp_path):
    texts = [f"a photo of number {n} in the sun" for n in range(25)]
    files = {
        name: data
        for n, text in enumerate(texts)
        for name, data in sample(f"{n:09}", n, txt=text, json={"caption": text, "key": n}).items()
    }
    with pytest.raises(DataError, match=r"is a caption \('a photo of number 0.*--unlabelled"):
        opened(write_tar(tmp_path / "00000.tar", files))


def test_keys_that_begin_anew_in_each_shard_are_told_apart(tmp_path):
    for n in range(2):
        write_tar(tmp_path / f"x-{n}.tar", {**sample("0", n, cls=0), **sample("1", 5 + n, cls=1)})
    dataset = opened(tmp_path)
    assert names(dataset) == ["x-0/0.jpg", "x-0/1.jpg", "x-1/0.jpg", "x-1/1.jpg"]
    # a shard that is added changes no name
    assert names(opened(tmp_path / "x-0.tar")) == names(dataset)[:2]
    write_tar(tmp_path / "a" / "x-0.tar", sample("0", 3, cls=0))
    assert names(opened(f"{tmp_path}/{{.,a}}/x-0.tar"))[-1] == "a/x-0/0.jpg"


def test_copies_are_told_apart_by_their_shard_and_what_comes_first_stays_as_it_is(tmp_path):
    rose, key = {"filename": "data/train/rose/a.jpg"}, "n01_7"
    own = {"filename": "7.jpg"}  # counted by who named the file, not by the writer of the shard
    files = {**sample(key, 1, cls=0), **sample("b", 2, cls=1, json=rose)}
    files |= {**sample("c", 3, cls=1, json=rose), **sample("d", 4, cls=1, json=own)}
    write_tar(tmp_path / "x-0.tar", files)
    write_tar(tmp_path / "x-1.tar", {**sample(key, 5, cls=0), **sample("c", 6, cls=1, json=rose)})
    assert names(opened(tmp_path)) == [
        *("n01_7.jpg", "rose/a.jpg", "x-0/c.jpg", "7.jpg", "x-1/n01_7.jpg", "x-1/c.jpg"),
    ]


def test_a_shard_with_fewer_samples_than_info_says_is_an_error(tmp_path):
    path = shard(tmp_path, 0, 1)
    content = {"filenames": ["x-000.tar"], "shard_lengths": [3], "num_samples": 3, "name": "train"}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": content}}))
    with pytest.raises(
        DataError, match=r"x-000.tar has 2 samples, and _info.json beside it says 3"
    ):
        opened(path)


def test_timms_splits_are_those_of_its_info(tmp_path):
    splits = {}
    for split, count in (("train", 3), ("validation", 2)):
        files = {k: v for n in range(count) for k, v in sample(f"{n}", n, cls=n % 2).items()}
        write_tar(tmp_path / f"imagenet-{split}-0000.tar", files)
        splits[split] = {
            "name": split,
            "filenames": [f"imagenet-{split}-0000.tar"],
            "shard_lengths": [count],
            "num_samples": count,
        }
    for info in ({}, {"splits": splits}):  # by names alone, too
        (tmp_path / "_info.json").write_text(json.dumps(info))
        data = open_dataset(str(tmp_path), SilentReporter())
        assert (len(data.train.labels), len(data.val.labels)) == (3, 2)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in an image": lambda data: data[:2300],
    "cut in a header": lambda data: data[:3000],
    "no tar": lambda data: b"PK\3\4" + data,
    "gzip": lambda data: b"\x1f\x8b" + data,
    "changed in a header": lambda data: data.replace(b"1.cls\0", b"1.cls!", 1),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_one_line_with_its_name(damage, tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"x-{n}.tar", {**sample("0", n, cls=0), **sample("1", n, cls=1)})
    for n in (1, 2):
        path = tmp_path / f"x-{n}.tar"
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError) as raised:
        opened(tmp_path)
    text = str(raised.value)
    assert len(text.splitlines()) == 1
    assert f"{tmp_path}/x-1.tar is not a readable, uncompressed tar" in text
    assert "1 more of its 3 shards" in text


def test_hostile_labels_are_no_labels(tmp_path, reporter):
    bad = [
        b'{"label": ' + b"[" * 800 + b"]" * 800 + b"}",
        rb'{"label": "\ud800"}',
        b"9" * 5000,
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"label": NaN}',
        b'{"label": {"a": 1}}',
        b"",
        b"true",
    ]
    files = {**sample("ok", 1, json={"label": 1, "filename": "\ud800"})}
    for n, data in enumerate(bad):
        files |= {f"{n}.jpg": jpeg(n), f"{n}.json": data}
    dataset = opened(write_tar(tmp_path / "x.tar", files), reporter)
    assert names(dataset) == ["ok.jpg"]  # its filename is none
    assert "9 without a label" in reporter.warnings[0]


def test_hard_links_are_the_image_or_label_that_they_lead_to_in_their_place(tmp_path):
    path, links = tmp_path / "x.tar", {"b.jpg": "a.jpg", "c.cls": "a.cls"}
    members = {**sample("a", 1, cls=0), "b.jpg": b"", "b.cls": b"1", "c.cls": b"", "c.jpg": jpeg(2)}
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name in links:
                info.type, info.linkname = tarfile.LNKTYPE, links[name]
            archive.addfile(info, io.BytesIO(data))
    dataset = opened(path)
    assert names(dataset) == ["a.jpg", "b.jpg", "c.jpg"]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert np.array_equal(dataset.read(0), dataset.read(1))


def test_keys_with_a_dot_are_refused_with_what_a_key_is(tmp_path):
    with pytest.raises(DataError, match=r"has 1 \.cls, and none is of an image: a key ends at the"):
        opened(write_tar(tmp_path / "x.tar", sample("a.v1", 1, cls=0)))


REFUSED_LABELS: dict[str, tuple[list[object], str]] = {
    "a typing mistake": (
        [*range(9), "1x"],
        r"the label of x-000\.tar:09\.jpg is '1x', and those of 9",
    ),
    "a number among names": (
        [*"abcdefghi", 7],
        r"is 7, and those of 9 of the 10 samples are names",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_LABELS)
def test_labels_that_are_not_clear_are_refused_with_their_sample(kind, tmp_path):
    labels, why = REFUSED_LABELS[kind]
    with pytest.raises(DataError, match=why):
        opened(shard(tmp_path, *labels))


def test_two_numbers_that_may_be_two_classes_or_one_of_two_are_refused(tmp_path):
    files = {**sample("a", 1, json={"label": [0, 1]}), **sample("b", 2, json={"label": [0, 1]})}
    with pytest.raises(DataError, match=r"all labels are \[0, 1\], which may be the classes 0 and"):
        opened(write_tar(tmp_path / "x.tar", files))


def test_a_name_beside_numbers_that_a_list_names_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the label of x-000\.tar:01\.jpg is 'b'"):
        opened(shard(tmp_path, 0, "b", classes__txt=b"a\nb\n"))


def test_each_split_has_its_own_member_of_labels_and_none_is_lost(tmp_path):
    own = {k: v for n in range(3) for k, v in sample(f"k{n}_", n, cls=n % 2).items()}
    write_tar(tmp_path / "train-0.tar", own)
    write_tar(tmp_path / "val-0.tar", sample("v", 5, json={"label": 1}))
    data = open_dataset(str(tmp_path), SilentReporter())
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 1, 0], [1])
    write_tar(tmp_path / "val-0.tar", sample("v", 5, cls=-1))
    with pytest.raises(DataError, match="no sample with an image and a label in its val split"):
        open_dataset(str(tmp_path), SilentReporter())


@pytest.mark.parametrize("labels", [(0, 1), (0, 0)])
def test_class_folders_name_the_numbers_beside_their_images_or_a_note_says_why_not(
    labels, tmp_path, reporter
):
    files = {"notes.cls": b"7"}
    for folder, label in zip(("rose", "tulip"), labels, strict=True):
        files |= sample(f"{folder}/1", label, json={"label": label})
    dataset = opened(write_tar(tmp_path / "x.tar", files), reporter)
    agree = labels[0] != labels[1]
    assert dataset.class_names == (("rose", "tulip") if agree else ("0",))
    text = "are those of the .json beside each image, not the 2 folders"
    assert any(text in note for note in reporter.notes) is not agree
