"""URIs of object storage, opened in one way for fsspec and for LanceDB.

Credentials, endpoint and region come from the environment alone, under the names that AWS's own
tools read: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION (or
AWS_DEFAULT_REGION), AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) for a store that is not AWS.

A fault that passes (500, 503, a slow answer, a lost connection, a body cut short) is tried again
by the libraries themselves: for about a minute where the store answers or refuses at once, for a
quarter of an hour where it takes connections and never answers (16 tries of `ANSWER_SECONDS`).
What lasts longer ends the step, which Dagster tries again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from entropylong_assets.settings.credentials import CREDENTIALS, holds_credentials

ATTEMPTS = 8
"""Tries of one request, each after a longer pause."""

CONNECT_SECONDS = 5
ANSWER_SECONDS = 60
"""An answer that stands still for so long is given up and asked for again."""


def unless_gone(error: OSError) -> None:
    """What a walk does with a folder that it can't list: for fsspec, unless told, it is empty.

    Raises the error, but for a folder that is not there.
    """
    if not isinstance(error, FileNotFoundError):
        raise error


class Local(LocalFileSystem):
    """`file://` and plain paths, for which a folder that can't be listed is a fault."""

    def walk(
        self, path: str, *args: Any, on_error: Any = unless_gone, **kwargs: Any
    ) -> Iterator[Any]:
        # It comes by here at every level, and does not hand `on_error` down.
        yield from super().walk(path, *args, on_error=on_error, **kwargs)


class StorageError(ValueError):
    """A store can't be used as it is set up. One line that says what to do."""


def open_uri(uri: str) -> tuple[Any, str]:
    """Return the file system of a folder, a URI or a chain of URIs, and the path on it.

    Local paths and `s3://` get our own file systems; fsspec's registry stays as it is. Raises
    StorageError if the URI holds credentials or needs a package that is not installed.
    """
    if holds_credentials(uri):
        raise StorageError(CREDENTIALS)
    own = None if "::" in uri else _own_file_system(uri.partition("://")[0] if "://" in uri else "")
    if own is None:
        fs, path = fsspec.core.url_to_fs(uri)
        return fs, path
    return own(), str(own._strip_protocol(uri))


def _own_file_system(scheme: str) -> Any:
    """Our class for a scheme, or None if fsspec's own serves."""
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
    """URL of the store, none for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def lance_options(uri: str) -> dict[str, str]:
    """`storage_options` for LanceDB. It finds the credentials in the environment itself."""
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    options = {
        "client_max_retries": str(ATTEMPTS),
        "download_retry_count": str(ATTEMPTS),
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "timeout": f"{ANSWER_SECONDS}s",
    }
    if there := region():
        options["region"] = there
    if url := endpoint():
        options["endpoint"] = url
        options["allow_http"] = str(url.startswith("http://")).lower()
    return options
