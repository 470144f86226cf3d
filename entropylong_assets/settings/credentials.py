"""Credentials: URIs that contain them are refused, and messages are cleaned of them."""

from __future__ import annotations

import os
import re

CREDENTIALS = (
    "the URI contains credentials; remove them and set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY (or the variables of your store) in the environment"
)

# For these schemes, text before an @ can only be a key. For others (sftp, abfs) it may be a user
# name without a password.
_NO_USERS = ("s3", "s3a", "gs", "gcs")

_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "DAGSTER_PG_PASSWORD",
)
_SHORTEST_SECRET = 6
"""Shorter values (e.g. "test", used by test stores) occur in ordinary paths and sentences."""


def holds_credentials(uri: str) -> bool:
    """Whether a URI, or one URI of a chain, contains a password or a key."""
    for part in uri.split("::"):
        scheme, _, rest = part.partition("://")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if at and (":" in user or scheme in _NO_USERS):
            return True
        # A secret key may contain a slash, which by the rules of URIs ends the authority.
        if scheme in _NO_USERS and re.match(r"[^/@]*:[^@]*@", rest):
            return True
    return False


def without_credentials(text: str) -> str:
    """Replace the values of secret environment variables in a message by their names."""
    for name in _SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, f"<{name}>")
    return text
