"""Locks on local folders, and temporary folders that end with their process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a local folder's lock, which ends with the process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_dead(folder: Path, pattern: str) -> None:
    """Remove the folders that killed processes left in a locked one; a live one holds its own."""
    for path in folder.glob(pattern):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its writer has just ended
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def temporary_folder() -> Path:
    """Return this user's folder for temporary ones, on which no one else holds a lock."""
    folder = Path(tempfile.gettempdir()) / f"entropylong-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a new folder in a local one and remove it at the end.

    What killed processes left under this prefix is removed now.
    """
    with ExitStack() as stack:
        with locked(parent):
            remove_dead(parent, f"{prefix}*")
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder))
        yield folder
