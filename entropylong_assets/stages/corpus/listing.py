"""The files of a source: one rule for a folder, a pattern and an object store.

A uri names one file, a folder, or a pattern (see `patterns.py`). A single file is read whatever its
name. Below a folder or a pattern, everything is read except what REASONS lists, which is counted.
Like Spark, DuckDB and Hugging Face's `datasets`, it passes over hidden files, files of unknown
formats and dataset cards.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from entropylong_assets.settings.registry import ExtensionError
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.files import (
    SourceFile,
    entry_of,
    file_system,
    plain_name,
    split_cache,
    version_of,
    without_compression,
)
from entropylong_assets.stages.corpus.patterns import Pattern, expand_alternatives
from entropylong_assets.stages.corpus.registry import VirtualFormat, kind_of, source_format
from entropylong_assets.stages.corpus.settings import AUTO, SourceSettings
from entropylong_assets.stages.corpus.walking import Found, find_files
from entropylong_assets.storage.object_storage import StorageError

REASONS: Mapping[str, str] = {
    "hidden": "names that begin with . or _",
    "repository": "README, LICENSE and the like",
    "unknown_format": "no known format by the name",
    "other_format": "not of the source's kind by the name",
    "dangling": "links that lead nowhere",
    "forbidden": "no permission to read",
    "repeated": "links to what is read anyway",
    "special": "neither files nor folders",
    "own": "the data_uri, where tables are written",
    "empty": "files without rows",
}
"""Why files are passed over, in words."""

# Files of a repository that are not its data: those that `datasets` leaves out, and licences.
_REPOSITORY_TEXT = re.compile(
    r"(readme|licen[cs]e|copying|notice|(data(set)?|model)[-_]?card)([-_.][a-z0-9.-]{1,12})?"
)
_REPOSITORY_JSON = {
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
}

PassedOver = Mapping[str, tuple[str, ...]]
"""URIs by reason, a key of REASONS. A hidden or repeated folder stands for all files in it."""


_NAMED = 3


def describe_passed_over(passed_over: PassedOver) -> str:
    """Return one line: per reason, in words, the number of files and the first of them."""
    parts = []
    for reason, uris in passed_over.items():
        more = ", …" if len(uris) > _NAMED else ""
        shown = ", ".join(one_line(uri, 200) for uri in uris[:_NAMED])
        parts.append(f"{REASONS[reason]}: {len(uris):,} ({shown}{more})")
    return "; ".join(parts)


class Listing(NamedTuple):
    """What was found at a source's uri."""

    files: list[SourceFile]
    """Sorted by URI; those of a virtual format in its own order."""
    passed_over: PassedOver


def file_version(uri: str, kind: str) -> str | None:
    """Return the present version of one file, or None if it does not exist."""
    reader = source_format(kind)
    if isinstance(reader, VirtualFormat):
        return reader.version(uri)
    fs, path = file_system(split_cache(uri)[1])
    fs.invalidate_cache()
    info = entry_of(fs, path)
    return None if info is None else version_of(info, reader.edition)


def list_files(source: SourceSettings, data_uri: str = "") -> list[SourceFile]:
    """Return the files of a source. Raises CorpusError as `list_source` does."""
    return list_source(source, data_uri).files


def list_source(source: SourceSettings, data_uri: str = "") -> Listing:
    """Find the files of a source, and what is passed over.

    data_uri: folder of the corpus' own tables, passed over if it is below the source. Raises
    CorpusError if the source can't be listed, and network errors unchanged, since a retry may help.
    """
    where = f"source '{source.name}'"
    reader = None if source.kind == AUTO else source_format(source.kind)
    if isinstance(reader, VirtualFormat):
        uris = reader.list_files(source)
        files = [SourceFile(uri, source.kind, reader.version(uri) or "") for uri in uris]
        return Listing(files, {})
    inner = split_cache(source.uri)[1]
    try:
        fs, path = file_system(inner)
    except (ImportError, ValueError) as error:
        raise CorpusError(
            f"{where}: can't open {source.uri}: {one_line(error)}; correct the uri or install "
            "the package"
        ) from None
    # Remote file systems cache listings, so that a long process would never see new files.
    fs.invalidate_cache()
    if inner.split("::")[0].endswith("/"):
        path = path.rstrip("/") + "/"
    try:
        return _Search(source, fs, data_uri).run(path)
    except PermissionError as error:
        raise CorpusError(
            f"{where}: no permission to list {source.uri} ({one_line(error)}); grant it, or "
            "narrow the uri"
        ) from None
    except CorpusError as error:
        raise CorpusError(f"{where}: {error}") from None
    except (StorageError, ExtensionError):
        raise
    except (ValueError, NotImplementedError) as error:  # of a file system
        raise CorpusError(
            f"{where}: can't list {source.uri}: {one_line(error)}; correct the uri"
        ) from None


class _Search:
    """One search for the files of a source on a file system."""

    def __init__(self, source: SourceSettings, fs: Any, data_uri: str) -> None:
        self._source, self._fs = source, fs
        own_fs, own = file_system(data_uri) if data_uri else (None, "")
        self._is_local = isinstance(fs, LocalFileSystem)
        self._own = ""
        if own_fs is not None and type(own_fs) is type(fs):
            self._own = (os.path.realpath(own) if self._is_local else own).rstrip("/")
        self._cache, self._uri = split_cache(source.uri)
        self._has_question_marks = not self._uri.startswith(("http://", "https://"))
        self._passed_over: dict[str, set[str]] = defaultdict(set)
        self._recognizes = kind_of if source.kind == AUTO else source_format(source.kind).recognizes

    def run(self, path: str) -> Listing:
        chosen: list[tuple[Found, str]] = []
        for alternative in expand_alternatives(path):
            chosen += self._choose(Pattern(alternative, question_marks=self._has_question_marks))
        if not chosen and not self._passed_over:  # perhaps a name with characters of a pattern
            chosen += self._named_file(path)
        files, seen = dict[str, SourceFile](), dict[str, str]()
        for file, kind in sorted(chosen, key=lambda one: (one[0].is_linked, one[0].path)):
            if seen.setdefault(file.real, file.path) != file.path:
                self._note("repeated", file.path)
                continue
            uri = self._name(file.path)
            files[uri] = SourceFile(
                uri,
                kind,
                version_of(file.info, source_format(kind).edition),
                file.info.get("size"),
            )
        for uri in files:
            self._refuse_unusable(uri)
        passed_over = {
            reason: tuple(sorted(self._passed_over[reason]))
            for reason in REASONS
            if reason in self._passed_over
        }
        return Listing(sorted(files.values()), passed_over)

    def _note(self, reason: str, path: str) -> None:
        uri = self._name(path.rstrip("/"))
        self._passed_over[reason].add(f"{uri}/" if path.endswith("/") else uri)

    def _choose(self, pattern: Pattern) -> Iterator[tuple[Found, str]]:
        if pattern.is_literal and not pattern.root.endswith("/"):
            named = self._named_file(pattern.root)
            if named:
                yield from named
                return
        root = os.path.realpath(pattern.root) if self._is_local else pattern.root
        own = f"{self._own}/" if self._own.startswith(f"{root.rstrip('/')}/") else None
        for file in find_files(self._fs, pattern, self._note):
            if own and file.real.startswith(own):
                self._note("own", own)
                continue
            name = file.path.rpartition("/")[2]
            kind, reason = self._judge(name, pattern)
            if kind is not None:
                yield file, kind
            else:
                self._note(reason, file.path)

    def _named_file(self, path: str) -> list[tuple[Found, str]]:
        """The file of this path, or [] if there is none. It is read, whatever its name."""
        info = entry_of(self._fs, path)
        if info is None or info["type"] == "directory":
            return []
        uri = self._name(path)
        if info["type"] != "file":
            raise CorpusError(f"{one_line(uri)} is not a regular file; name one")
        kind = self._source.kind if self._source.kind != AUTO else kind_of(plain_name(uri))
        if kind is None:
            raise CorpusError(
                f"the format of {one_line(uri)} is not known by its name; set the source's kind "
                "or narrow its uri"
            )
        return [(Found(path, info, path, False), kind)]

    def _judge(self, name: str, pattern: Pattern) -> tuple[str | None, str]:
        """The format of a file by its name, or None and the reason for which it is passed over."""
        kind = self._source.kind
        if pattern.is_bare and _is_of_repository(name):
            return None, "repository"
        if kind == AUTO:
            return kind_of(name), "unknown_format"
        ending = pattern.ending.lower()
        is_asked_for = "." in ending or (
            "." not in without_compression(name) and not pattern.is_bare
        )
        if source_format(kind).recognizes(name) or is_asked_for:
            return kind, ""
        return None, "unknown_format" if kind_of(name) is None else "other_format"

    def _name(self, path: str) -> str:
        """The URI with which `open_file` opens a path on the file system of the source."""
        if "://" in self._uri:
            chain = [self._fs.unstrip_protocol(path), *self._uri.split("::")[1:]]
            return self._cache + "::".join(chain)
        if os.path.isabs(self._uri) or self._uri.startswith("~"):
            return path
        # A relative source has relative names, so that a project folder can be moved.
        return os.path.relpath(path).replace(os.sep, "/")

    def _refuse_unusable(self, uri: str) -> None:
        # Tables and JSON contain the file's name and can't store such characters.
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in uri):
            raise CorpusError(
                f"the file name {one_line(uri)} contains control characters or is not UTF-8; "
                "rename it"
            )
        if "://" in self._uri and uri.count("::") != self._source.uri.count("::"):
            raise CorpusError(
                f"the file name {one_line(uri)} contains '::', which joins file systems in a URI; "
                "rename it"
            )


def _is_of_repository(name: str) -> bool:
    """Whether a file describes a repository and is no part of its data."""
    name = name.lower()
    is_text = kind_of(name) in (None, "text")
    return name in _REPOSITORY_JSON or (is_text and bool(_REPOSITORY_TEXT.fullmatch(name)))
