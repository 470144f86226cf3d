"""Access to object storage, configured the same way for fsspec and LanceDB.

Credentials, endpoint and region are read from the environment only, under the names that AWS tools
use: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION (or
AWS_DEFAULT_REGION), and for a store that is not AWS, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3).

The client libraries retry transient faults (500, 503, a slow answer, a lost connection, a truncated
body): for about a minute if the store responds or refuses connections at once, and for about 15
minutes if it accepts connections but never answers (16 attempts of `ANSWER_SECONDS` each). A longer
fault fails the step, which Dagster retries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from entropylong_assets.settings.credentials import CREDENTIALS, holds_credentials

ATTEMPTS = 8
"""Maximum number of attempts per request; the pauses between them grow."""

CONNECT_SECONDS = 5
"""Timeout of a connection attempt."""

ANSWER_SECONDS = 60
"""Timeout of an answer that makes no progress. The request is then sent again."""


def raise_unless_missing(error: OSError) -> None:
    """Handle the error of a folder that a walk can't list: raise it, unless the folder is missing.

    By default fsspec takes a folder that it can't list for an empty one.
    """
    if not isinstance(error, FileNotFoundError):
        raise error


class Local(LocalFileSystem):
    """Local files: plain paths and `file://`. A folder that can't be listed raises an error."""

    def walk(
        self, path: str, *args: Any, on_error: Any = raise_unless_missing, **kwargs: Any
    ) -> Iterator[Any]:
        # fsspec calls this method at every level, without passing on `on_error`.
        yield from super().walk(path, *args, on_error=on_error, **kwargs)


class StorageError(ValueError):
    """A store can't be used with its present configuration. One line that says what to do."""


def open_uri(uri: str) -> tuple[Any, str]:
    """Return the file system of a folder, a URI or a chain of URIs, and the path on it.

    Local paths and `s3://` use the file systems of this package, all other schemes those that are
    registered with fsspec, whose registry stays unchanged. Raises StorageError if the URI contains
    credentials or needs a package that is not installed.
    """
    if holds_credentials(uri):
        raise StorageError(CREDENTIALS)
    own = None if "::" in uri else _own_file_system(uri.partition("://")[0] if "://" in uri else "")
    if own is None:
        fs, path = fsspec.core.url_to_fs(uri)
        return fs, path
    return own(), str(own._strip_protocol(uri))


def _own_file_system(scheme: str) -> Any:
    """Return the class of this package for a scheme, or None if fsspec's class is used."""
    if scheme in ("", "file", "local"):
        return Local
    if scheme not in ("s3", "s3a"):
        return None
    try:
        from entropylong_assets.storage.s3 import S3
    except ModuleNotFoundError as error:
        if error.name not in ("s3fs", "botocore", "aiobotocore"):
            raise
        raise StorageError("s3:// needs the package s3fs: pip install '.[s3]'") from None
    return S3


def endpoint() -> str | None:
    """Return the URL of the store, or None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def region() -> str | None:
    """Return the region that the environment names, if any."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def lance_options(uri: str) -> dict[str, str]:
    """Return LanceDB's `storage_options` for a URI. LanceDB itself reads the credentials."""
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    options = {
        "client_max_retries": str(ATTEMPTS),
        "download_retry_count": str(ATTEMPTS),
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{ANSWER_SECONDS}s",
    }
    if name := region():
        options["region"] = name
    if url := endpoint():
        options["endpoint"] = url
        options["allow_http"] = str(url.startswith("http://")).lower()
    return options
