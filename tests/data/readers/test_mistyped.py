"""What is nearly an address is one line with the one that was meant."""

from __future__ import annotations

import pytest

from deitctl.data.open import open_dataset
from deitctl.data.readers.mistyped import is_like_address
from deitctl.data.sources import is_there
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.training.configure import make_absolute

MEANT = {
    "hf://uoft-cs/cifar10": "Did you mean hf://datasets/uoft-cs/cifar10?",
    "hf://uoft-cs/cifar10@main": "Did you mean hf://datasets/uoft-cs/cifar10@main?",
    "hf-hub:uoft-cs/cifar10": "Did you mean hf://datasets/uoft-cs/cifar10?",
    "hf:uoft-cs/cifar10": "Did you mean hf://datasets/uoft-cs/cifar10?",
    "hf:/datasets/uoft-cs/cifar10": "Did you mean hf://datasets/uoft-cs/cifar10?",
    "https://huggingface.co/datasets/a/b/tree/main": "Did you mean hf://datasets/a/b?",
    "uoft-cs/cifar10": "Did you mean hf://datasets/uoft-cs/cifar10?",
    "hf://datasets/cifar10@main/plain_text": "needs no address: DATA is cifar10.",
    "HF://datasets/cifar10": "needs no address: DATA is cifar10.",
    "hf://datasets/mine": "Names are hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION].",
    "s3:/bucket/wds": "Did you mean s3://bucket/wds?",
    "s3:bucket/wds": "Did you mean s3://bucket/wds?",
    "S3:///bucket/wds": "Did you mean s3://bucket/wds?",
    "s3a://bucket/wds": "Did you mean s3://bucket/wds?",
    "gs://": "Addresses begin with s3://, gs://",
    "ftp://c/wds/x.tar": "Addresses begin with s3://, gs://",
    "ftp:/c/wds/x.tar": "Addresses begin with s3://, gs://",
    "file:///c/wds": "DATA is /c/wds.",
}


@pytest.mark.parametrize("ref", MEANT)
def test_an_address_that_is_misspelled_is_answered_by_the_one_that_was_meant(
    ref, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset(make_absolute({"data": ref})["data"], SilentReporter())
    assert MEANT[ref] in caught.value.hint
    assert ref.lower().partition("://")[0] in caught.value.message.lower()


@pytest.mark.parametrize("ref", ["near/cifar10", "a/b/c", "near/x.csv", "../x/y"])
def test_a_path_that_is_misspelled_is_no_data_set_of_the_hub(ref, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near").mkdir()
    with pytest.raises(DataError, match="There is no dataset") as caught:
        open_dataset(make_absolute({"data": ref})["data"], SilentReporter())
    assert "Did you mean hf" not in caught.value.hint


def test_a_folder_that_is_spelled_as_an_address_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_like_address("ftp:/x")
    assert is_there("ftp:/x")
    (tmp_path / "ftp:").mkdir()
    assert not is_like_address("ftp:/x")
    assert not is_like_address("C:")
    assert not is_like_address("pipe:cat x.tar")
