"""Walking through the files below a folder that match a pattern, on any file system."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from entropylong_assets.stages.corpus.files import local_info
from entropylong_assets.stages.corpus.patterns import Pattern, States, is_hidden

Note = Callable[[str, str], None]
"""Called for everything that is passed over, with the reason (a key of `listing.REASONS`) and the
path."""


class Found(NamedTuple):
    """A file that matches."""

    path: str
    info: Mapping[str, Any]
    real: str
    """Its path without links."""
    is_linked: bool
    """Whether the path goes through a link below the root."""


class _Folder(NamedTuple):
    path: str
    real: str
    states: States
    is_linked: bool


def find_files(fs: Any, pattern: Pattern, note: Note) -> Iterator[Found]:
    """Yield the files below the pattern's root that match it, and note what is passed over.

    On a local disk, links to files and folders are followed; each folder is read once, whatever
    links lead to it. Raises OSError if a folder can't be listed; a folder that no longer exists
    is empty.
    """
    if isinstance(fs, LocalFileSystem):
        yield from _find_local(pattern, note)
    else:
        yield from _find_remote(fs, pattern, note)


def _find_local(pattern: Pattern, note: Note) -> Iterator[Found]:
    root = pattern.root or "/"
    # Targets of links are visited last, so that a folder has its own path if it is below the root.
    waiting = deque([_Folder(root, os.path.realpath(root), pattern.start(), False)])
    seen = set()
    while waiting:
        folder = waiting.popleft()
        if (folder.real, folder.states) in seen:
            note("repeated", f"{folder.path}/")
            continue
        seen.add((folder.real, folder.states))
        try:
            with os.scandir(folder.path) as entries:
                names = sorted((entry.name, entry.is_symlink()) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name, is_link in names:
            path = os.path.join(folder.path, name)
            after = pattern.step(folder.states, name)
            if not after:
                if is_hidden(name):
                    _note_hidden(pattern, folder.states, name, path, os.path.isdir(path), note)
                continue
            info = _stat(path, is_link, note)
            if info is None:
                continue
            real = os.path.realpath(path) if is_link else os.path.join(folder.real, name)
            is_linked = folder.is_linked or is_link
            if info["type"] == "directory":
                if pattern.goes_on(after):
                    inner = _Folder(path, real, after, is_linked)
                    (waiting.append if is_linked else waiting.appendleft)(inner)
            elif not pattern.accepts(after):
                continue
            elif info["type"] == "file":
                yield Found(path, info, real, is_linked)
            else:
                note("special", path)


def _stat(path: str, is_link: bool, note: Note) -> dict[str, Any] | None:
    try:
        return local_info(path)
    except OSError as error:
        if is_link and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            note("dangling", path)
        elif is_link and error.errno in (errno.EACCES, errno.EPERM):
            note("forbidden", path)
        elif error.errno != errno.ENOENT:  # else removed since its folder was listed
            raise
    return None


def _note_hidden(
    pattern: Pattern, states: States, name: str, path: str, is_folder: bool, note: Note
) -> None:
    """Note a name that does not match only because it is hidden."""
    after = pattern.step(states, name, with_hidden=True)
    if pattern.goes_on(after) if is_folder else pattern.accepts(after):
        note("hidden", f"{path}/" if is_folder else path)


def _find_remote(fs: Any, pattern: Pattern, note: Note) -> Iterator[Found]:
    """List an object store folder by folder, but everything below a `**` at once."""
    waiting = [(pattern.root, pattern.start())]
    while waiting:
        folder, states = waiting.pop()
        is_deep = pattern.is_unbounded(states)
        for path, info in _list(fs, folder, is_deep):
            inside = path[len(folder.rstrip("/")) :].lstrip("/") if folder else path.lstrip("/")
            if not inside or (is_deep and (info["type"] == "directory" or path.endswith("/"))):
                continue  # the folder's own entry, or that of one in it
            names, after = inside.rstrip("/").split("/"), states
            for depth, name in enumerate(names, 1):
                before, after = after, pattern.step(after, name)
                if not after and is_hidden(name):
                    is_folder = depth < len(names) or info["type"] == "directory"
                    place = path.rstrip("/").removesuffix("/".join(["", *names[depth:]]))
                    _note_hidden(pattern, before, name, place, is_folder, note)
                if not after:
                    break
            if not after:
                continue
            if info["type"] == "directory":
                if pattern.goes_on(after):
                    waiting.append((path.rstrip("/"), after))
            elif not pattern.accepts(after) or path.endswith("/"):
                continue
            elif info["type"] == "file":
                yield Found(path, info, path, False)
            else:
                note("special", path)


def _list(fs: Any, folder: str, is_deep: bool) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        if is_deep:
            return list(fs.find(folder, detail=True).items())
        return [(info["name"], info) for info in fs.ls(folder, detail=True)]
    except (FileNotFoundError, NotADirectoryError):
        return []
