"""The files of a source: finding, naming, versioning and opening them on any fsspec URI."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any, NamedTuple

from entropylong_assets.settings.model import SourceSettings
from entropylong_assets.stages.corpus import python_docs
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.storage.object_storage import Local, open_uri

KINDS: Mapping[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "text": (".txt", ".text", ".md", ".markdown", ".rst"),
}
"""Endings by which `auto` knows a format; `.gz` or `.zst` may follow all but Parquet."""

COMPRESSIONS = (".gz", ".zst")

# What tells one content of a file from another, in the words of the file systems; the first
# group that an entry has is taken. Local change time and inode are left out: a chmod is no change.
_HASHES = ("ETag", "etag", "blob_id", "md5Hash", "content_hash", "CRC")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "date_time", "created")


_CACHES = ("simplecache", "filecache", "blockcache")


class SourceFile(NamedTuple):
    """One file of a source (for `python_docs`: one package)."""

    uri: str
    kind: str
    version: str


def plain_name(uri: str) -> str:
    """The part of a URI that ends as the file's name does: chains go on behind it."""
    if "://" not in uri:
        return uri
    return next(part for part in uri.split("::") if "://" in part)


def without_compression(name: str) -> str:
    """The name in lower case without `.gz` or `.zst`."""
    name = name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return name


def kind_of(name: str) -> str | None:
    """Format by the name of a file, or None where the name doesn't tell."""
    plain = without_compression(name)
    for kind, endings in KINDS.items():
        if plain.endswith(endings) and not (kind == "parquet" and plain != name.lower()):
            return kind
    return None


def version_of(info: Mapping[str, Any]) -> str:
    """16 hex digits of a directory entry's hash, or else of its size and time of change."""
    parts: list[Any] = [info.get("size")]
    known = [info[key] for key in _HASHES if info.get(key)]
    times = [info[key] for key in _TIMES if info.get(key)][:1]
    # One file system gives a time as a number in a listing and as a datetime for a single file.
    parts += known or [t.timestamp() if isinstance(t, datetime) else t for t in times]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _file_system(uri: str) -> tuple[Any, str]:
    # A plain path stays one, whatever its name holds ("::" would mean a chain of file systems).
    if "://" not in uri:
        local = Local()
        return local, local._strip_protocol(uri)
    return open_uri(uri)


def _split_cache(uri: str) -> tuple[str, str]:
    """A local cache that stands in front of a URI, and the rest: caches know no versions."""
    cache, colons, rest = uri.partition("::")
    return (cache + colons, rest) if cache in _CACHES and "://" in rest else ("", uri)


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading bytes, not decompressed.

    Raises CorpusError where it is gone or forbidden, else OSError as the file system does.
    """
    fs, path = _file_system(uri)
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        raise CorpusError(
            f"{one_line(uri)}: the file is gone; put it back, or scan the sources again"
        ) from None
    except PermissionError:
        raise CorpusError(
            f"{one_line(uri)}: no permission to read it; grant it, or take the file out of the "
            "source"
        ) from None
    with file:
        yield file  # `fs` lives as long: an archive closes with its file system


def file_version(uri: str, kind: str) -> str | None:
    """Version of one file as it stands now, or None where it is gone."""
    if kind == "python_docs":
        return python_docs.version(python_docs.package_of(uri))
    fs, path = _file_system(_split_cache(uri)[1])
    fs.invalidate_cache()
    try:
        return version_of(fs.info(path))
    except FileNotFoundError:
        return None


def _name(path: str, uri: str, fs: Any) -> str:
    """The URI by which `open_file` finds a path on the file system of the source `uri`."""
    if "://" in uri:
        return "::".join([fs.unstrip_protocol(path), *uri.split("::")[1:]])
    if os.path.isabs(uri) or uri.startswith("~"):
        return path
    # A relative source keeps relative names, so that a project folder can be moved.
    return os.path.relpath(path).replace(os.sep, "/")


def _entries(fs: Any, path: str, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Paths and directory entries that a glob, a file or a folder stands for."""
    if glob.has_magic(path):
        found = fs.glob(path, detail=True)
        if found:
            yield from ((p, i) for p, i in found.items() if i["type"] != "directory")
            return
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return
    if info["type"] != "directory":
        yield path, info
        return
    base = path.rstrip("/")
    for entry, detail in fs.find(base, detail=True).items():
        inside = entry[len(base) :].strip("/").split("/")
        found_kind = kind_of(inside[-1])
        wanted = found_kind is not None if kind == "auto" else found_kind == kind
        if wanted and not any(part.startswith(".") for part in inside):
            yield entry, detail


def list_files(source: SourceSettings) -> list[SourceFile]:
    """All files that a source names, sorted by URI; packages as they are listed.

    A folder stands for the files in it, at any depth, whose ending is known (of the source's
    kind) and whose name doesn't begin with a dot. Raises CorpusError for a source that cannot be
    listed; network faults come through as they are, since a retry may help there.
    """
    where = f"source '{source.name}'"
    if source.kind == "python_docs":
        return [
            SourceFile(python_docs.uri_of(package), "python_docs", python_docs.version(package))
            for package in python_docs.packages(source.name, source.uri)
        ]
    cache, inner = _split_cache(source.uri)
    try:
        fs, path = _file_system(inner)
    except (ImportError, ValueError) as error:
        raise CorpusError(
            f"{where}: cannot open {source.uri}: {one_line(error)}; correct the uri or install "
            "the package"
        ) from None
    # Remote file systems remember listings; a long-lived scanner would never see new files.
    fs.invalidate_cache()
    files = []
    try:
        entries = list(_entries(fs, path, source.kind))
    except PermissionError as error:
        raise CorpusError(
            f"{where}: no permission to list {source.uri} ({one_line(error)}); grant it, or "
            "narrow the uri"
        ) from None
    for entry, info in entries:
        uri = cache + _name(entry, inner, fs)
        kind = source.kind if source.kind != "auto" else kind_of(plain_name(uri))
        if kind is None:
            raise CorpusError(
                f"{where}: the format of {one_line(uri)} is not known by its name; set the "
                "source's kind or narrow its uri"
            )
        # It goes into tables and JSON, which take neither.
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in uri):
            raise CorpusError(
                f"{where}: the file name {one_line(uri)} holds control characters or is not "
                "UTF-8; rename it"
            )
        files.append(SourceFile(uri, kind, version_of(info)))
    return sorted(files)
