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
import re
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

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


for _protocol in ("file", "local"):
    fsspec.register_implementation(_protocol, Local, clobber=True)

# By name, so that s3fs is imported where such a URI is opened and nowhere else.
for _protocol in ("s3", "s3a"):
    fsspec.register_implementation(
        _protocol,
        "entropylong_assets.storage.s3.S3",
        clobber=True,
        errtxt="s3:// needs the package s3fs: pip install '.[s3]'",
    )


class StorageError(ValueError):
    """A store can't be used as it is set up. One line that says what to do."""


CREDENTIALS = (
    "the URI holds credentials; take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "(or what your store reads) in the environment"
)


def open_uri(uri: str) -> tuple[Any, str]:
    """The file system of a folder, a URI or a chain of URIs, and the path on it.

    Raises StorageError where the URI holds credentials.
    """
    if holds_credentials(uri):
        raise StorageError(CREDENTIALS)
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


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


# On these what stands before an @ can only be a key; elsewhere a name alone is fine (sftp, abfs).
_NO_USERS = ("s3", "s3a", "gs", "gcs")


def holds_credentials(uri: str) -> bool:
    """Whether a URI, or one of a chain, names a password or a key."""
    for part in uri.split("::"):
        scheme, _, rest = part.partition("://")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if at and (":" in user or scheme in _NO_USERS):
            return True
        # A secret key may itself hold a slash, which ends what the rules take for the authority.
        if scheme in _NO_USERS and re.match(r"[^/@]*:[^@]*@", rest):
            return True
    return False


_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "DAGSTER_PG_PASSWORD",
)
_SHORTEST_SECRET = 6
"""Shorter ones ("test", as stores for trials have it) stand in any path or sentence."""


def without_credentials(text: str) -> str:
    """A message without the credentials that stand in the environment."""
    for name in _SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, f"<{name}>")
    return text
