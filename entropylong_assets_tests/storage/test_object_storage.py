"""URIs are opened with the file systems of this package, and nothing is registered for others."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from entropylong_assets.storage.object_storage import Local, StorageError, open_uri
from entropylong_assets.storage.s3 import S3
from entropylong_assets_tests.storage.faulty_s3 import Bucket

UNCHANGED_REGISTRY = """
import fsspec
import s3fs
from fsspec.registry import known_implementations, registry
from fsspec.implementations.local import LocalFileSystem

known, loaded = dict(known_implementations), dict(registry)

import entropylong_assets.storage.object_storage as object_storage
import entropylong_assets.storage.s3 as s3
import entropylong_assets.definitions

assert dict(registry) == loaded
assert isinstance(object_storage.open_uri("/tmp")[0], object_storage.Local)
assert isinstance(object_storage.open_uri("s3://bucket/x")[0], s3.S3)
assert dict(known_implementations) == known
for scheme in ("file", "local"):
    assert fsspec.get_filesystem_class(scheme) is LocalFileSystem, scheme
for scheme in ("s3", "s3a"):
    assert fsspec.get_filesystem_class(scheme) is s3fs.S3FileSystem, scheme
assert type(fsspec.core.url_to_fs("/tmp")[0]) is LocalFileSystem
"""


def test_fsspec_registry_is_unchanged_by_this_package() -> None:
    """The failure: code of the user in the same process gets other file systems than it expects."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNCHANGED_REGISTRY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("uri", "kind", "path"),
    [
        ("/data/lab", Local, "/data/lab"),
        ("/data/a b#c?d", Local, "/data/a b#c?d"),
        ("file:///data/lab", Local, "/data/lab"),
        ("local:///data/lab", Local, "/data/lab"),
        ("s3://lake/data/lab", S3, "lake/data/lab"),
        ("s3a://lake/data", S3, "lake/data"),
        ("memory://lab", MemoryFileSystem, "/lab"),
    ],
)
def test_open_uri_chooses_the_file_system_by_scheme(uri: str, kind: type, path: str) -> None:
    fs, path_on_fs = open_uri(uri)
    assert type(fs) is kind
    assert path_on_fs == path


def test_open_uri_takes_a_relative_path_as_one_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fs, path = open_uri("data/lab")
    assert type(fs) is Local
    assert path == f"{tmp_path}/data/lab"


def test_open_uri_opens_a_chain_of_uris(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    fs, path = open_uri(f"simplecache::file://{tmp_path}/a.txt")
    assert fs.cat_file(path) == b"text"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:sEcReT@lake/x",
        "s3://AKIAKEY@lake/x",
        "https://user:sEcReT@host/x",
        "simplecache::s3://AKIAKEY:sEcReT@lake/x",
    ],
)
def test_open_uri_refuses_credentials_without_repeating_them(uri: str) -> None:
    with pytest.raises(StorageError, match="the URI contains credentials") as caught:
        open_uri(uri)
    assert "sEcReT" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_open_uri_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "entropylong_assets.storage.s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=r"needs the package s3fs: pip install '.\[s3\]'"):
        open_uri("s3://lake/x")


def stale_scan(folder: Path) -> Any:
    """`os.scandir`, except that this folder can't be listed."""
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == folder:
            raise OSError(errno.ESTALE, "Stale file handle")
        return scan(path)

    return scandir


@pytest.mark.parametrize("unlisted", ["", "a", "a/b"])
@pytest.mark.parametrize("uri", ["{}", "file://{}"])
def test_local_folder_that_cannot_be_listed_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, unlisted: str
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.txt").write_text("x")
    fs, path = open_uri(uri.format(tmp_path))
    assert fs.find(path) == fs.glob(f"{path}/**/*.txt") == [f"{tmp_path}/a/b/x.txt"]
    monkeypatch.setattr(os, "scandir", stale_scan(tmp_path / unlisted))
    for listing in (
        lambda: fs.find(path),
        lambda: fs.glob(f"{path}/**/*.txt"),
        lambda: list(fs.walk(path)),
    ):
        with pytest.raises(OSError, match="Stale"):
            listing()
    # What fsspec itself does, without which the class would not be needed.
    assert LocalFileSystem(skip_instance_cache=True).find(path) == []


def test_local_folder_that_is_missing_is_empty(tmp_path: Path) -> None:
    fs, path = open_uri(str(tmp_path / "none"))
    assert fs.find(path) == []
    assert list(fs.walk(path)) == []


def test_s3_folder_that_cannot_be_listed_raises(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("data/a/x.txt", b"x")
    fs, path = open_uri(f"{bucket.uri}/data")
    assert fs.find(path) == fs.glob(f"{path}/*/*.txt") == [f"{bucket.name}/data/a/x.txt"]
    assert open_uri(f"{bucket.uri}/none")[0].find(f"{bucket.name}/none") == []

    async def refuse(self: S3, method: str, *_: Any, **__: Any) -> Any:
        raise PermissionError("The provided token has expired.")

    monkeypatch.setattr(S3, "_call_s3", refuse)
    for listing in (
        lambda: fs.find(path),
        lambda: fs.glob(f"{path}/*/*.txt"),
        lambda: list(fs.walk(path)),
    ):
        with pytest.raises(PermissionError, match="token has expired"):
            listing()
