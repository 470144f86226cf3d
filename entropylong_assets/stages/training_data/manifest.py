"""The manifest of an export: what it holds, what it was made from, and the hash of every file.

JSON with sorted keys; `digest` is the sha256 of the same JSON without it. A reader that writes
what it parsed and does not get the same bytes has a damaged manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

FORMAT_VERSION = 1


class ExportError(ValueError):
    """An export can't be made or read. One line that says what to do."""


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def encode_manifest(content: dict[str, Any]) -> bytes:
    """The manifest's bytes, its own digest included."""
    digest = hashlib.sha256(_encode(content)).hexdigest()
    return _encode(content | {"digest": digest})


def decode_manifest(data: bytes) -> dict[str, Any]:
    """The content of a manifest. Raises ExportError where a byte of it was changed."""
    try:
        content = json.loads(data)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError("manifest.json: damaged; export again") from error
    if encode_manifest(content) != data or hashlib.sha256(_encode(content)).hexdigest() != digest:
        raise ExportError("manifest.json: damaged; export again")
    if content["format_version"] != FORMAT_VERSION:
        raise ExportError(
            f"manifest.json: of format {content['format_version']}, this version reads "
            f"{FORMAT_VERSION}; export again"
        )
    return content


def without_secrets(value: Any) -> Any:
    """A JSON value with user names, passwords and queries taken out of its URIs."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"://[^/@]*@", "://", value)
        return re.sub(r"\?[^*/]*=.*$", "", value)
    return value
