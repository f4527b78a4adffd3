"""A file of records that is continued: what it lacks, and when it is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from deitctl.errors import ConfigError, DataError
from deitctl.events import SilentReporter
from deitctl.inference.classifier import Classifier, load
from deitctl.inference.prediction_file import PredictionFile, list_remaining, open_prediction_file
from deitctl.lock import Busy
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.paths import DiskError
from deitctl.records import to_object


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A distilled DeiT-tiny at 32 pixels with three named classes; both heads differ."""
    torch.manual_seed(0)  # other weights may agree in bf16 to the digits that are compared
    built = build_model(
        "deit_tiny",
        class_names=("ant", "bee", "cow"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=True,
        reporter=SilentReporter(),
    )
    with torch.no_grad():
        for head in (built.model.head, built.model.head_dist):
            head.weight.normal_(std=0.5)
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(
        path,
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )
    return path


@pytest.fixture(scope="module")
def classifier(folder) -> Classifier:
    return load(folder)


@pytest.fixture
def names(image_folder) -> list[str]:
    return sorted(map(str, image_folder({"in": 5}).rglob("*.png")))


def write(path: Path, classifier: Classifier, names: list[str], topk: int = 3) -> None:
    predictions = classifier.stream(names, topk=topk, batch_size=2)
    path.write_text("".join(json.dumps(to_object(p)) + "\n" for p in predictions))


def read(path: Path) -> PredictionFile:
    with open_prediction_file(path, resume=True) as records:
        return records


def verify(records: PredictionFile, classifier: Classifier, reporter, **options) -> None:
    arguments = {"topk": 3, "precision": "auto", "reporter": reporter, **options}
    records.require_model(classifier, **arguments)


def test_batches_that_lack_a_record_are_computed_whole():
    names = ["a", "b", "c", "d", "e", "a"]
    assert list_remaining(names, {}, 2) == [(name, False) for name in names]
    assert list_remaining(names, Counter("abc"), 2) == [
        ("c", True),
        ("d", False),
        ("e", False),
        ("a", False),
    ]
    assert list_remaining(names, Counter("abcdea"), 2) == [], "an input named twice has two records"
    assert list_remaining(names, Counter("aaabcde"), 4) == []


def test_the_rest_is_predicted_in_order(names, classifier, tmp_path):
    write(tmp_path / "x.jsonl", classifier, [names[0], names[3]])
    records = read(tmp_path / "x.jsonl")
    rest = records.predict_remaining(names, classifier, topk=3, batch_size=2)
    assert [p.input for p in rest] == [names[1], names[2], names[4]]


def test_half_a_record_is_cut_off_when_writing_starts(names, classifier, tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, classifier, names[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # it lacks its end of line alone
    with open_prediction_file(path, resume=True) as records:
        assert records.counts == {names[0]: 1}
        assert path.read_bytes() == whole[:-1]
        records.start()
        records.append(whole.splitlines(keepends=True)[1].decode())
        assert path.read_bytes() == whole


def test_the_same_model_is_accepted(names, classifier, folder, tmp_path, reporter):
    write(tmp_path / "x.jsonl", classifier, names)
    verify(read(tmp_path / "x.jsonl"), load(str(folder)), reporter)
    verify(read(tmp_path / "x.jsonl"), classifier, reporter, topk=5)  # three are all it has
    assert not reporter.warnings


@pytest.mark.parametrize("options", [{"head": "cls"}, {"img_size": 48}, {"precision": "bf16"}])
def test_other_settings_are_refused(options, names, classifier, folder, tmp_path, reporter):
    write(tmp_path / "x.jsonl", load(folder, **options), names)
    with pytest.raises(ConfigError, match="another model or with other settings: .*0.png has"):
        verify(read(tmp_path / "x.jsonl"), classifier, reporter)


def test_a_class_that_the_model_does_not_have_is_refused(names, classifier, tmp_path, reporter):
    path = tmp_path / "x.jsonl"
    write(path, classifier, names)
    path.write_text(path.read_text().replace('"bee"', '"elk"'))
    with pytest.raises(ConfigError, match="'elk' there, which is no class of this model"):
        verify(read(path), classifier, reporter)


def test_another_number_of_classes_is_refused(names, classifier, tmp_path, reporter):
    write(tmp_path / "x.jsonl", classifier, names, topk=2)
    with pytest.raises(ConfigError, match="predictions of 2 classes, not 3. Use --topk 2"):
        verify(read(tmp_path / "x.jsonl"), classifier, reporter)


def test_records_whose_images_are_gone_cannot_be_verified_which_is_said(
    names, classifier, tmp_path, reporter
):
    write(tmp_path / "x.jsonl", classifier, names)
    for name in names:
        Path(name).unlink()
    verify(read(tmp_path / "x.jsonl"), classifier, reporter)
    assert "could not be verified" in reporter.warnings[0]


def test_records_of_other_inputs_are_refused_and_some_more_are_noted(
    names, classifier, tmp_path, reporter
):
    write(tmp_path / "x.jsonl", classifier, names[:2])
    records = read(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match="has records of other inputs"):
        records.require_inputs(names[2:], reporter)
    assert not reporter.notes
    records.require_inputs(names[1:], reporter)
    assert "1 inputs that are not named now" in reporter.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        b"input,rank\n",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b'{"input": "a", "predictions": [{"index": 1, "score": NaN}], "error": null}\n',
        b'{"input": 3, "predictions": [], "error": null}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_file_of_anything_else_is_refused(line, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(DataError, match=r"x.jsonl, line 1, is no record of `deitctl predict`"):
        read(tmp_path / "x.jsonl")


def test_a_file_has_one_writer(tmp_path):
    path = tmp_path / "x.jsonl"
    with (
        open_prediction_file(path, resume=False),
        pytest.raises(Busy, match="is being written"),
        open_prediction_file(path, resume=True),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [".x.jsonl.lock"], "no empty file is left"


def test_a_new_file_replaces_none(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    with (
        pytest.raises(ConfigError, match="Continue it with --resume"),
        open_prediction_file(tmp_path / "x.jsonl", resume=False),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"they end in .jsonl"),
        open_prediction_file(tmp_path / "x.csv", resume=True),
    ):
        pass


def test_a_link_in_place_of_the_file_is_neither_written_nor_read(tmp_path, classifier, names):
    """In a folder of somebody else's, where it could lead to any file of the user's, or make one."""
    precious, out = tmp_path / "precious", tmp_path / "out.jsonl"
    write(precious, classifier, names[:2])
    before = precious.read_bytes()
    for target in (precious, tmp_path / "new"):
        out.symlink_to(target)
        with pytest.raises(ConfigError, match="exists"), open_prediction_file(out, resume=False):
            pass
        with (
            pytest.raises(DiskError, match="symbolic link"),
            open_prediction_file(out, resume=True),
        ):
            pass
        out.unlink()
    assert precious.read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_records_of_other_thresholds_or_another_task_are_refused(names, folder, tmp_path, reporter):
    path = tmp_path / "out.jsonl"
    write(path, load(folder, task="multilabel", threshold=0.0), names)
    verify(read(path), load(folder, task="multilabel", threshold=0.0), reporter)
    for options in ({"task": "multilabel", "threshold": 1.0}, {}):
        with pytest.raises(ConfigError, match="another model|another --task or other thresholds"):
            verify(read(path), load(folder, **options), reporter)
