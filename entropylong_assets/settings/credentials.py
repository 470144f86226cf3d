"""Credentials: refused in URIs, and removed from every message."""

from __future__ import annotations

import os
import re

CREDENTIALS = (
    "the URI holds credentials; take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "(or what your store reads) in the environment"
)

# For these schemes, what precedes an @ can only be a key; elsewhere a user name alone is fine
# (sftp, abfs).
_NO_USERS = ("s3", "s3a", "gs", "gcs")

_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "DAGSTER_PG_PASSWORD",
)
_SHORTEST_SECRET = 6
"""Shorter values (such as "test", used by test stores) occur in any path or sentence."""


def holds_credentials(uri: str) -> bool:
    """Whether a URI, or one URI of a chain, contains a password or a key."""
    for part in uri.split("::"):
        scheme, _, rest = part.partition("://")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if at and (":" in user or scheme in _NO_USERS):
            return True
        # A secret key may itself contain a slash, which ends the authority by the URI rules.
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
