"""What is in a store: files below a folder, files that a pattern matches, and what each is."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deitctl.data.stores.address import get_scheme, redact
from deitctl.data.stores.patience import (
    OPENING_PATIENCE_S,
    describe,
    find_endpoint,
    read_from_store,
)
from deitctl.data.stores.stores import (
    IN_FLIGHT,
    StoredPath,
    get_store,
    make_stored_path,
)
from deitctl.errors import DataError, StoreLost

T = TypeVar("T")
ENDPOINT = "AWS_ENDPOINT_URL"
"""The variable that names the server of an S3 that is not Amazon's."""
WILDCARD = re.compile(r"[*?\[]")


def describe_file(address: str, named: str = "") -> StoredPath:
    """Return what a file in a store is.

    Args:
        address: of the file.
        named: what the user named, for messages, where it is not this file.

    Raises:
        FileNotFoundError: it is not there.
        DataError: its store cannot be read.
        StoreLost: it does not answer.
    """
    return _ask(named or address, lambda: get_store(address).describe(address))


def describe_files(addresses: Iterable[str]) -> list[StoredPath]:
    """Return what each of some files is, read with many requests in flight; raise as `describe_file`."""
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        return list(threads.map(describe_file, addresses))


def list_addresses(folder: str, suffixes: Sequence[str] = ()) -> list[StoredPath]:
    """Return the files below a folder of a store, or those that a pattern matches, in order of name.

    Args:
        folder: an address; with `*`, `?` or `[` in it, a pattern, of which `*` matches no `/`.
        suffixes: of the names that are returned, `.tar`; none: all of them.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: the store cannot be read, or its folders cannot be listed.
    """
    scheme = get_scheme(folder)
    is_pattern = WILDCARD.search(folder) is not None
    base, prefix = folder, ""
    if is_pattern:
        base, _, prefix = WILDCARD.split(folder, maxsplit=1)[0].rpartition("/")
    entries = _ask(base, lambda: get_store(base).find(base.rstrip("/"), prefix))
    files = []
    for path, entry in sorted(entries.items()):
        address = f"{scheme}://{path.partition('://')[2] or path}"
        is_other = suffixes and not address.lower().endswith(tuple(suffixes))
        if entry.get("type") == "directory" or is_other:
            continue
        if not is_pattern or _matches(address, folder):
            files.append(make_stored_path(address, entry))
    if not files:
        raise FileNotFoundError(2, "there is nothing", redact(folder))
    return files


def _matches(address: str, pattern: str) -> bool:
    """Return whether an address matches a pattern part by part."""
    names, patterns = address.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def _ask(address: str, ask: Callable[[], T]) -> T:
    """Return the answer of a store, which may be misspelled: it is not waited for long."""
    name = redact(address)
    try:
        return read_from_store(ask, name, patience_s=OPENING_PATIENCE_S)
    except FileNotFoundError:
        raise
    except StoreLost as error:
        raise StoreLost(error.message, _suggest_spelling(address, error)) from error
    except DataError:
        raise
    except Exception as error:  # as in `read_patiently`: no common base
        raise DataError(
            f"{name} cannot be read: {describe(error)}.", _suggest_credentials(address, error)
        ) from error


def _suggest_spelling(address: str, error: StoreLost) -> str:
    is_away = error.__cause__ is not None and find_endpoint(error.__cause__) != ""
    if get_scheme(address) != "s3" or not is_away:
        return f"See whether {redact(address)} is spelled as it is meant."
    if os.environ.get(ENDPOINT):
        return f"See whether {ENDPOINT} names the server as it is meant, and whether that is up."
    return f"See whether the network is up; for a store that is not Amazon's set {ENDPOINT}."


def _suggest_credentials(address: str, error: Exception) -> str:
    is_refused = isinstance(error, PermissionError) or "Credential" in type(error).__name__
    if not is_refused:
        return ""
    scheme = get_scheme(address)
    return {
        "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL).",
        "gs": "Log in by `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        "gcs": "Log in by `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        "hf": "Log in by `hf auth login`, and accept the conditions on its page.",
        "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.",
        "abfs": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.",
    }.get(scheme, "Its server wants credentials, or the URL's signature has expired.")
