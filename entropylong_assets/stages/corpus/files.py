"""Single files of a source: names, versions and opening, on any fsspec URI."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.registry import COMPRESSIONS
from entropylong_assets.storage.object_storage import Local, open_uri

# Keys of a directory entry that distinguish two contents of a file. Each file system has its own;
# the first group that an entry has is used. For a local file it is the modification time. Change
# time and inode are left out, since a chmod, a backup by hard links or remounting a network disk
# changes them and not the content.
_HASHES = ("ETag", "etag", "blob_id", "md5Hash", "content_hash", "CRC")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "date_time", "created")

_CACHES = ("simplecache", "filecache", "blockcache")


class SourceFile(NamedTuple):
    """One file of a source, or one URI of a virtual format."""

    uri: str
    kind: str
    version: str
    size: int | None = None
    """Size in bytes, or None if the file system does not report it."""


def plain_name(uri: str) -> str:
    """Return the part of a chained URI that ends with the name of the file."""
    if "://" not in uri:
        return uri
    return next(part for part in uri.split("::") if "://" in part)


def without_compression(name: str) -> str:
    """Return the name in lower case without `.gz` or another suffix of a compressed file."""
    name = name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name


def version_of(info: Mapping[str, Any], edition: int = 1) -> str:
    """Return 16 hex digits of a directory entry's hash, or else of its size and change time.

    edition: of the file's format, because another numbering of rows makes another version.
    """
    parts: list[Any] = [info.get("size"), *([edition] if edition > 1 else [])]
    known = [info[key] for key in _HASHES if info.get(key)]
    times = [info[key] for key in _TIMES if info.get(key)][:1]
    # Some file systems give a time as a number in a listing and as a datetime for a single file.
    parts += known or [t.timestamp() if isinstance(t, datetime) else t for t in times]
    # A link may be changed to point to another file of the same size and time.
    parts += [info["destination"]] if info.get("destination") else []
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def local_info(path: str) -> dict[str, Any]:
    """Return the directory entry of a local path; of a link, that of the file it leads to.

    fsspec gives the time of the link itself: an edit of its target would go unnoticed. Raises
    OSError.
    """
    entry = os.stat(path)
    is_folder, is_file = stat.S_ISDIR(entry.st_mode), stat.S_ISREG(entry.st_mode)
    info = {
        "name": path,
        "type": "directory" if is_folder else "file" if is_file else "other",
        "size": entry.st_size,
        "mtime": entry.st_mtime,
    }
    return info | ({"destination": os.readlink(path)} if os.path.islink(path) else {})


def entry_of(fs: Any, path: str) -> Mapping[str, Any] | None:
    """Return the directory entry of a path on a file system, or None if it does not exist."""
    try:
        return local_info(path) if isinstance(fs, LocalFileSystem) else fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def file_system(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path on it.

    A "::" in a plain path is part of a name and does not chain file systems.
    """
    if "://" not in uri:
        local = Local()
        return local, local._strip_protocol(uri)
    return open_uri(uri)


def split_cache(uri: str) -> tuple[str, str]:
    """Split a URI into a local cache before it and the rest, as caches have no versions."""
    cache, colons, rest = uri.partition("::")
    return (cache + colons, rest) if cache in _CACHES and "://" in rest else ("", uri)


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, not decompressed.

    Raises CorpusError if it does not exist or may not be read, and other OSErrors unchanged.
    """
    fs, path = file_system(uri)
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        raise CorpusError(
            f"{one_line(uri)}: the file does not exist; put it back, or scan the sources again"
        ) from None
    except PermissionError:
        raise CorpusError(
            f"{one_line(uri)}: no permission to read it; grant it, or remove the file from the "
            "source"
        ) from None
    with file:
        yield file  # `fs` is still alive: an archive closes with its file system
