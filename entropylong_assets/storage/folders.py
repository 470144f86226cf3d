"""Local folders: locks, temporary folders, and files that are replaced in one step."""

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
    """Hold the lock of a local folder. The system releases it when the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_dead(folder: Path, pattern: str) -> None:
    """Remove the folders that killed processes left in a locked folder.

    A running process holds the lock of its folder, which is then kept.
    """
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
    """Return the folder that contains this user's temporary folders, accessible to no one else."""
    folder = Path(tempfile.gettempdir()) / f"entropylong-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a new folder in a local folder, and remove it at the end.

    Folders with this prefix that killed processes left are removed first.
    """
    with ExitStack() as stack:
        with locked(parent):
            remove_dead(parent, f"{prefix}*")
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder))
        yield folder


def replace_file(path: Path, content: bytes) -> None:
    """Replace or create a file in a locked folder in one step.

    Readers see the old content or the new. Files that killed calls left are removed.
    """
    for unfinished in path.parent.glob(".put-*"):
        unfinished.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".put-", delete=False) as file:
        part = Path(file.name)
        try:
            file.write(content)
            file.flush()
            part.chmod(0o644)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
