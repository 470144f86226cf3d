"""Publishing a folder of files as a whole. Files are hashed while they are written.

On a local disk the files are written into `.tmp-<name>-<random>` beside the final folder, and that
folder is renamed at the end. Object storage can't rename folders: there, files are written under
their final names, and the manifest last. Our readers ignore a folder without a manifest. Two
exporters of one name write the same bytes under the same names, so neither harms the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropylong_assets.storage.folders import remove_dead
from entropylong_assets.storage.object_storage import open_uri

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export; `path` is relative to the export's folder."""

    path: str
    bytes: int
    sha256: str


class HashedFile(io.RawIOBase):
    """A file opened for writing from start to end, which hashes what is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._stream.write(view)
        self._written += len(view)
        return len(view)

    def tell(self) -> int:
        return self._written

    def exported(self, path: str) -> ExportedFile:
        return ExportedFile(path, self._written, self._digest.hexdigest())


class Publication:
    """Writes the folder `<uri>/<name>`.

    Use it as a context manager. Without `publish` nothing becomes visible.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.fs, root = open_uri(uri)
        self.root, self.name = root.rstrip("/"), name
        self.uri = f"{uri.rstrip('/')}/{name}"
        self.files: list[ExportedFile] = []
        protocol = self.fs.protocol
        self.is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        self._folder = f"{self.root}/{name}"
        self._lock = -1

    def __enter__(self) -> Publication:
        if self.is_local:
            self.fs.makedirs(self.root, exist_ok=True)
            remove_dead(Path(self.root), ".tmp-*")
            self._folder = tempfile.mkdtemp(prefix=f".tmp-{self.name}-", dir=self.root)
            self._lock = os.open(self._folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        elif self.fs.exists(manifest := f"{self._folder}/{MANIFEST}"):
            self.fs.rm(manifest)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_local:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)

    def _remove_foreign(self) -> None:
        """Remove files of an older export under this name that this one does not have.

        Without a depth, s3fs lists all files at once, and raises if the listing fails.
        """
        ours = {MANIFEST, *(file.path for file in self.files)}
        for path in self.fs.find(self._folder):
            if path.rpartition(f"/{self.name}/")[2] not in ours:
                with suppress(FileNotFoundError):  # another exporter has just removed it
                    self.fs.rm(path)

    @contextmanager
    def file(self, path: str) -> Iterator[HashedFile]:
        """Open a new file; `path` is relative to the folder. Once closed it is in `files`."""
        full = f"{self._folder}/{path}"
        self.fs.makedirs(full.rpartition("/")[0], exist_ok=True)
        with self.fs.open(full, "wb") as stream:
            hashed = HashedFile(stream)
            yield hashed
        self.files.append(hashed.exported(path))

    def publish(self, manifest: bytes) -> None:
        """Write the manifest and give the folder its name, replacing an older one."""
        self.fs.pipe_file(f"{self._folder}/{MANIFEST}", manifest)
        if not self.is_local:
            self._remove_foreign()
            return
        staged, final = Path(self._folder), Path(self.root) / self.name
        staged.chmod(0o755)
        try:
            staged.rename(final)
        except OSError:  # an older one exists; any other fault is raised again below
            old = Path(tempfile.mkdtemp(prefix=f".tmp-{self.name}-old-", dir=self.root))
            final.rename(old / self.name)
            staged.rename(final)
            shutil.rmtree(old, ignore_errors=True)
