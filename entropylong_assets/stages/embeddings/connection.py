"""Opening the LanceDB table, on a folder or in object storage."""

from __future__ import annotations

from typing import Any

import lancedb

from entropylong_assets.storage.object_storage import lance_options

INDEX_CACHE_BYTES = 2**30


def connect(data_uri: str) -> Any:
    return lancedb.connect(
        f"{data_uri}/lancedb",
        storage_options=lance_options(data_uri),
        # Of an index in memory, no more than this: the default is 6 GB.
        session=lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES),
    )


def is_missing(error: ValueError) -> bool:
    """Whether LanceDB says that there is no such table: a fault of the store is one, too."""
    return "was not found" in str(error)
