"""Reading rows of the LanceDB table in order, in bounded memory.

LanceDB's own stream reads ahead as fast as the storage gives: up to 2 GiB if the reader is slower.
"""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.stages.embeddings.shard_commits import open_dataset

ROWS_PER_BATCH = 1024
_BATCHES_AHEAD = 2
_BUFFER_BYTES = 2**25
"""Bytes read from storage that wait to be decoded."""


def scan_rows(
    corpus_uri: str,
    version: int,
    columns: list[str],
    where: str | None = None,
    with_row_id: bool = False,
) -> pa.RecordBatchReader:
    """Return the rows of one version as a stream of batches of at most `ROWS_PER_BATCH` rows.

    where: SQL condition. with_row_id: adds the column `_rowid`.
    """
    scanner = open_dataset(corpus_uri, version).scanner(
        columns=columns,
        filter=where,
        with_row_id=with_row_id,
        batch_size=ROWS_PER_BATCH,
        batch_readahead=_BATCHES_AHEAD,
        fragment_readahead=1,
        io_buffer_size=_BUFFER_BYTES,
    )
    return scanner.to_reader()
