"""The centroids that all segments of an index share: trained once, on a sample of the chunks.

They are a small Lance table beside the table of chunks, one per generation. If several processes
train them at the same time, the first to finish publishes its own, and all use these.

Legend: N vectors, P partitions, E dimensions.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.chunk_sample import POINT
from entropylong_assets.stages.embeddings.connection import (
    connect,
    is_missing,
    open_existing,
    table_uri,
    vectors_of,
)
from entropylong_assets.stages.embeddings.exact import device_of
from entropylong_assets.stages.embeddings.index_size import partitions
from entropylong_assets.stages.embeddings.kmeans import centroids_of
from entropylong_assets.stages.embeddings.scans import scan_rows
from entropylong_assets.storage.duck import querying
from entropylong_assets.storage.object_storage import lance_options
from entropylong_assets.storage.tables import TableStore

VECTORS_PER_CENTROID = 32
"""Vectors that centroids are trained on, per centroid."""
MAX_VECTORS = 1_000_000
"""Maximum number of vectors that centroids are trained on."""

_TABLE = "centroids_"  # and the generation
_ROWS = b"rows"
_SAMPLE = f"SELECT _rowid FROM chunks ORDER BY {POINT}, chunk_id, _rowid LIMIT $limit"


class Centroids(NamedTuple):
    """Centroids, and what they were trained for."""

    vectors_PE: NDArray[np.float32]
    rows: int
    """Rows of the table when they were trained."""

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.vectors_PE.tobytes()).hexdigest()[:16]


def load_or_train(corpus_uri: str, generation: int, device: str) -> Centroids:
    """Load the centroids of a generation. If there are none, train and publish them.

    They depend on the chunks in the table and not on the order in which shards were written.
    """
    uri = f"{table_uri(corpus_uri)}/{_TABLE}{generation}.lance"
    options = lance_options(corpus_uri)
    try:
        return _read(uri, options)
    except ValueError as error:
        if not is_missing(error):
            raise
    trained = train(corpus_uri, device)
    dimension = trained.vectors_PE.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(trained.vectors_PE.reshape(-1)), dimension)
    rows = pa.table({"vector": vectors}).replace_schema_metadata({_ROWS: str(trained.rows)})
    try:
        lance.write_dataset(rows, uri, mode="create", storage_options=options)
    except CommitConflictError:  # another process has published its own
        pass
    except OSError as error:  # Lance has no class for these
        if not any(words in str(error) for words in ("already exists", "commit conflict")):
            raise
    return _read(uri, options)


def _read(uri: str, options: Any) -> Centroids:
    # If two processes write at the same time, Lance makes a second version. The first one counts.
    dataset = lance.dataset(uri, version=1, storage_options=options)
    vectors_PE = vectors_of(dataset.to_table()["vector"])
    return Centroids(vectors_PE, int((dataset.schema.metadata or {})[_ROWS]))


def drop_other_generations(corpus_uri: str, generation: int) -> None:
    """Remove the centroids of all generations but this one."""
    database = connect(corpus_uri)
    for name in database.list_tables().tables:
        if name.startswith(_TABLE) and name != f"{_TABLE}{generation}":
            database.drop_table(name)


def train(corpus_uri: str, device: str) -> Centroids:
    """Train centroids on a sample of the chunks of the newest version.

    The sample is the chunks with the lowest points (see `chunk_sample`).
    """
    table = open_existing(corpus_uri)
    n_rows = table.count_rows()
    count = partitions(n_rows)
    limit = max(count, min(VECTORS_PER_CENTROID * count, MAX_VECTORS))
    data_uri, _, corpus = corpus_uri.rpartition("/")

    def ids() -> pa.RecordBatchReader:
        return scan_rows(corpus_uri, table.version, ["chunk_id"], with_row_id=True)

    with querying(TableStore(data_uri, corpus), {"chunks": ids}) as session:
        numbers = session.sql(_SAMPLE, params={"limit": limit}).to_arrow_table()["_rowid"]
    rows = table.take_row_ids(numbers.to_pylist()).select(["vector"]).with_row_id().to_arrow()
    taken = vectors_of(rows["vector"])
    found, wanted = rows["_rowid"].to_numpy(), numbers.to_numpy()
    order = np.argsort(found)
    vectors_NE = taken[order[np.searchsorted(found, wanted, sorter=order)]]
    return Centroids(centroids_of(vectors_NE, count, device_of(device)), n_rows)
