"""The manifest of an export: its contents, what it was made from, and the hash of every file.

JSON with sorted keys; `digest` is the sha256 of the same JSON without it. If encoding the parsed
content does not return the same bytes, the manifest is damaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

FORMAT_VERSION = 4


class ExportError(ValueError):
    """An export can't be made or read. The message is one line that says what to do."""


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def encode_manifest(content: dict[str, Any]) -> bytes:
    """The bytes of the manifest, including its own digest."""
    digest = hashlib.sha256(_encode(content)).hexdigest()
    return _encode(content | {"digest": digest})


def decode_manifest(data: bytes) -> dict[str, Any]:
    """The content of a manifest. Raises ExportError if any byte of it was changed."""
    try:
        content = json.loads(data)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError("manifest.json: damaged; export again") from error
    if encode_manifest(content) != data or hashlib.sha256(_encode(content)).hexdigest() != digest:
        raise ExportError("manifest.json: damaged; export again")
    if content["format_version"] != FORMAT_VERSION:
        raise ExportError(
            f"manifest.json: written in format {content['format_version']}, but this version reads "
            f"{FORMAT_VERSION}; export again"
        )
    return content


def without_secrets(value: Any) -> Any:
    """A JSON value without the user names, passwords and queries of its URIs."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"://[^/@]*@", "://", value)
        return re.sub(r"\?[^*/]*=.*$", "", value)
    return value
