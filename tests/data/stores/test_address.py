from __future__ import annotations

import re

import pytest

from deitctl.data.stores.address import (
    get_folder,
    get_name,
    get_public,
    get_suffix,
    hide_secrets,
    is_remote,
    join_address,
    name_version,
    redact,
    reveal,
)
from deitctl.data.stores.patience import describe
from deitctl.errors import DataError


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("?X-Amz-Date=1&X-Amz-Signature=a", "?X-Amz-Date=2&X-Amz-Signature=b"),
        ("?sv=1&sr=b&se=2026&sig=a", "?sv=1&sr=b&se=2027&sig=b"),
        ("?Expires=1&Signature=a&Key-Pair-Id=k", ""),
        ("?id=1&sig=a", "?id=1&sig=b"),
    ],
)
def test_a_file_has_one_name_however_its_url_is_signed(one, other):
    urls = [f"https://host/x.tar{query}" for query in (one, other)]
    assert len({name_version(url, "etag") for url in urls}) == 1
    assert len({get_public(url) for url in urls}) == 1


def test_urls_of_one_path_that_name_several_files_are_told_apart():
    urls = [f"https://host/get.tar?id=secret{number}" for number in (1, 2)]
    assert len({name_version(url, "etag") for url in urls}) == 2
    public = [hide_secrets(url) for url in urls]
    assert [reveal(name) for name in public] == urls
    assert "secret" not in "".join(public)
    assert [hide_secrets(name) for name in public] == public
    assert redact(public[0]) == reveal("https://host/get.tar#00000000") == "https://host/get.tar"


def test_what_is_no_url_is_a_line_without_its_secrets():
    with pytest.raises(DataError, match=r"https://\[x/y.tar is no URL") as caught:
        hide_secrets("https://me:pass@[x/y.tar?sig=secret")
    assert not re.search("pass|secret", str(caught.value))


@pytest.mark.parametrize(
    ("address", "suffix"),
    [
        ("s3://my.bucket", ""),
        ("s3://my.bucket/wds-1.0", ""),
        ("s3://bucket/x.TAR", ".tar"),
        ("http://127.0.0.1:80", ""),
        ("http://my.host/", ""),
        ("https://my.host/a/x.csv?sig=a.b", ".csv"),
    ],
)
def test_a_host_a_bucket_and_a_version_have_no_suffix_of_a_file(address, suffix):
    assert get_suffix(address) == suffix
