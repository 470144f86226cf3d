"""Reading one sample of a shard without its other samples."""

from __future__ import annotations

import pyarrow.parquet as pq

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.tables import TableStore

_TABLE = "samples"
_ROWS_PER_BATCH = 4
"""Number of samples decoded at once."""


def shard_of(sample_id: str) -> str:
    """Return the shard of a sample: its id is `<shard>-<number>`."""
    return sample_id.rpartition("-")[0]


def read_token_ids(store: TableStore, sample_id: str) -> list[int] | None:
    """Return the token ids of one sample, or None if there is no such sample.

    The id is looked up in the column of ids. Then token ids are read only from its row group, a few
    rows at a time. Raises TableError if the table is damaged.
    """
    shard = shard_of(sample_id)
    if not shard or store.manifest(LONG_CONTEXT_SAMPLES, shard) is None:
        return None
    with (
        store.reporting_damage(LONG_CONTEXT_SAMPLES, shard, _TABLE),
        store.open(LONG_CONTEXT_SAMPLES, shard, _TABLE) as file,
    ):
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            ids = parquet.read_row_group(group, columns=["sample_id"])["sample_id"].to_pylist()
            if sample_id in ids:
                return _row(parquet, group, ids.index(sample_id))
    return None


def _row(parquet: pq.ParquetFile, group: int, row: int) -> list[int]:
    """Token ids of one row of a row group."""
    batches = parquet.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=["input_ids"])
    for batch in batches:
        if row < len(batch):
            return batch["input_ids"][row].as_py()
        row -= len(batch)
    raise AssertionError("the row is in the group")


def some_sample_ids(store: TableStore, limit: int, first: str = "") -> list[str]:
    """Return at most `limit` ids of existing samples, those of the shard `first` before others."""
    shards = sorted(store.shards(LONG_CONTEXT_SAMPLES), key=lambda shard: (shard != first, shard))
    sample_ids: list[str] = []
    for shard in shards:
        if len(sample_ids) == limit:
            break
        ids = store.head(
            LONG_CONTEXT_SAMPLES, shard, _TABLE, ["sample_id"], limit - len(sample_ids)
        )
        sample_ids += ids["sample_id"].to_list()
    return sample_ids
