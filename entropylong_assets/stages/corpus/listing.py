"""The files of a source: listing them, and seeing whether one has changed."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.files import (
    SourceFile,
    file_system,
    plain_name,
    split_cache,
    version_of,
)
from entropylong_assets.stages.corpus.registry import VirtualFormat, kind_of, source_format
from entropylong_assets.stages.corpus.settings import AUTO, SourceSettings


def file_version(uri: str, kind: str) -> str | None:
    """Return the version of one file as it is now, or None if it does not exist."""
    reader = source_format(kind)
    if isinstance(reader, VirtualFormat):
        return reader.version(uri)
    fs, path = file_system(split_cache(uri)[1])
    fs.invalidate_cache()
    try:
        return version_of(fs.info(path), reader.edition)
    except FileNotFoundError:
        return None


def _name(path: str, uri: str, fs: Any) -> str:
    """Return the URI with which `open_file` opens a path on the file system of the source."""
    if "://" in uri:
        return "::".join([fs.unstrip_protocol(path), *uri.split("::")[1:]])
    if os.path.isabs(uri) or uri.startswith("~"):
        return path
    # A relative source has relative names, so that a project folder can be moved.
    return os.path.relpath(path).replace(os.sep, "/")


def _entries(fs: Any, path: str, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield paths and directory entries of a glob, a file or the files in a folder."""
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
    recognizes = kind_of if kind == AUTO else source_format(kind).recognizes
    for entry, detail in fs.find(base, detail=True).items():
        inside = entry[len(base) :].strip("/").split("/")
        if recognizes(inside[-1]) and not any(part.startswith(".") for part in inside):
            yield entry, detail


def list_files(source: SourceSettings) -> list[SourceFile]:
    """Return all files of a source, sorted by URI; those of a virtual format as it lists them.

    A folder stands for the files in it, at any depth, that the format recognizes and whose names
    don't begin with a dot. Raises CorpusError if the source can't be listed; network faults pass as
    they are, since a retry may help.
    """
    where = f"source '{source.name}'"
    reader = None if source.kind == AUTO else source_format(source.kind)
    if isinstance(reader, VirtualFormat):
        uris = reader.list_files(source)
        return [SourceFile(uri, source.kind, reader.version(uri)) for uri in uris]
    cache, inner = split_cache(source.uri)
    try:
        fs, path = file_system(inner)
    except (ImportError, ValueError) as error:
        raise CorpusError(
            f"{where}: can't open {source.uri}: {one_line(error)}; correct the uri or install "
            "the package"
        ) from None
    # Remote file systems cache listings; a process that runs for long would never see new files.
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
        kind = source.kind if source.kind != AUTO else kind_of(plain_name(uri))
        if kind is None:
            raise CorpusError(
                f"{where}: the format of {one_line(uri)} is not known by its name; set the "
                "source's kind or narrow its uri"
            )
        # Tables and JSON, which name the file, can't hold either.
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in uri):
            raise CorpusError(
                f"{where}: the file name {one_line(uri)} contains control characters or is not "
                "UTF-8; rename it"
            )
        files.append(SourceFile(uri, kind, version_of(info, source_format(kind).edition)))
    return sorted(files)
