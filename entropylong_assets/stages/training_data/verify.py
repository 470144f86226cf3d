"""Reading a whole export again, and comparing it with its manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from entropylong_assets.stages.training_data.manifest import ExportError, decode_manifest
from entropylong_assets.stages.training_data.publication import MANIFEST
from entropylong_assets.storage.object_storage import open_uri

_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Verification:
    """Result of reading an export."""

    files: int
    bytes: int
    faults: tuple[str, ...]
    """One line per file that has changed, is missing or does not belong to the export."""


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of the export at `uri`. Raises ExportError if it is missing or damaged."""
    fs, folder = open_uri(uri)
    try:
        data = fs.cat_file(f"{folder.rstrip('/')}/{MANIFEST}")
    except FileNotFoundError:
        raise ExportError(
            f"{uri}: no export here ({MANIFEST} is missing); name the folder of one export"
        ) from None
    return decode_manifest(data)


def _fault(fs: Any, path: str, expected: dict[str, Any]) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        with fs.open(path, "rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        return "missing"
    if size != expected["bytes"]:
        return f"{size} bytes, but {expected['bytes']} were written"
    return None if digest.hexdigest() == expected["sha256"] else "its bytes have changed"


def _is_of_a_client(relative: str) -> bool:
    """Whether a client of the Hub wrote a file beside the export that it fetched or pushed."""
    return relative == ".gitattributes" or relative.startswith((".git/", ".cache/huggingface/"))


def _empty_folders(fs: Any, folder: str) -> list[str]:
    """Folders below `folder` without any file, relative to it. Object storage has none."""
    entries = fs.find(folder, withdirs=True, detail=True)
    files = [path for path, info in entries.items() if info["type"] != "directory"]
    used = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    below = f"{folder}/"
    return sorted(
        path.removeprefix(below)
        for path, info in entries.items()
        if info["type"] == "directory" and path.startswith(below) and path.rstrip("/") not in used
    )


def verify_export(uri: str) -> Verification:
    """Read every file; find changed, missing and foreign ones, and foreign empty folders.

    Files that git and the clients of the Hugging Face Hub add are ignored.

    Raises ExportError if the manifest itself is missing or damaged.
    """
    manifest = read_manifest(uri)
    fs, folder = open_uri(uri)
    folder = folder.rstrip("/")
    faults = []
    for file in manifest["files"]:
        fault = _fault(fs, f"{folder}/{file['path']}", file)
        if fault:
            faults.append(f"{file['path']}: {fault}")
    known = {file["path"] for file in manifest["files"]} | {MANIFEST}
    for path in sorted(fs.find(folder)):
        relative = path.removeprefix(folder).lstrip("/")
        if relative not in known and not _is_of_a_client(relative):
            faults.append(f"{relative}: not part of the export")
    faults += [
        f"{path}/: an empty folder that is not part of the export"
        for path in _empty_folders(fs, folder)
        if not _is_of_a_client(f"{path}/")
    ]
    files = manifest["files"]
    return Verification(len(files), sum(file["bytes"] for file in files), tuple(faults))
