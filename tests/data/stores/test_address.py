from __future__ import annotations

import pytest

from deitctl.data.stores.address import (
    get_folder,
    get_name,
    hide_secrets,
    is_remote,
    join_address,
    redact,
    reveal,
)
from deitctl.data.stores.patience import describe


@pytest.mark.parametrize(
    "ref",
    [
        "s3://bucket/x",
        "gs://bucket/x",
        "HTTPS://host/x.tar",
        "hf://datasets/a/b/x.tar",
        "az://box/x",
    ],
)
def test_an_address_is_what_begins_with_the_scheme_of_a_store(ref):
    assert is_remote(ref)


@pytest.mark.parametrize("ref", ["photos", "/data/s3", "C:/photos", "torchvision:CIFAR10", "ftp:x"])
def test_paths_and_names_are_no_addresses(ref):
    assert not is_remote(ref)


def test_a_url_is_shown_without_its_user_and_its_signature():
    signed = "https://me:secret@host:8080/a/x-{000..001}.tar?X-Amz-Signature=abc#part"
    assert redact(signed) == "https://host:8080/a/x-{000..001}.tar"
    assert redact("s3://bucket/what?.tar") == "s3://bucket/what?.tar"


def test_hidden_secrets_are_there_for_whoever_reads_in_this_process():
    signed = "https://host/hidden/x.tar?sig=abc"
    public = hide_secrets(signed)
    assert (public, reveal(public)) == ("https://host/hidden/x.tar", signed)
    assert reveal("https://host/other.tar") == "https://host/other.tar"


def test_names_are_joined_before_the_query_of_a_url():
    assert join_address("https://host/a?sig=1", "x.tar") == "https://host/a/x.tar?sig=1"
    assert join_address("s3://bucket/a/", "x.tar") == "s3://bucket/a/x.tar"
    assert get_name("https://host/a/x.tar?sig=1") == "x.tar"
    assert get_folder("https://host/a/x.tar?sig=1") == "https://host/a"


def test_the_reason_of_an_error_holds_no_address():
    error = OSError("403, url='https://host/x.tar?sig=abc' and https://host/y?sig=abc refused")
    assert "sig" not in describe(error)
