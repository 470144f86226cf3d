from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from entropylong_assets.storage.tables import TableStore


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TableStore]:
    """A store without any table: on a local disk, in memory, on S3."""
    if request.param == "local":
        yield TableStore(str(tmp_path / "data"))
        return
    if request.param == "s3":
        yield TableStore(f"{request.getfixturevalue('bucket').uri}/da ta")
        return
    store = TableStore(f"memory://{uuid.uuid4().hex}")
    yield store
    if store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)
