"""Pairs of near-duplicates over all shards, in bounded memory, the same in any order of shards.

Documents that share a band of their signatures are nominated (locality-sensitive hashing); the
Jaccard similarity of their true sets of shingles decides. Band keys, candidates and pairs are
tables of a DuckDB session, which writes to disk what exceeds its memory; the shingles of candidates
are in a temporary file. Only the verified pairs of documents are in memory, as numbers.

All documents of a small bucket are compared with each other. In a bucket of more than
`SMALL_BUCKET` documents, each is compared with the smallest id and with the one before it, so that
the work grows linearly with the bucket: 100,000 copies of a page are 200,000 pairs per band, not
five billion. Ids are hashes of the content and buckets are sets, so the order of shards has no
effect.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.near_duplicates.minhash import PERMUTATIONS, band_keys, shingles
from entropylong_assets.stages.near_duplicates.tables import DOCUMENT_SIGNATURES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

SMALL_BUCKET = 32
"""Maximum number of documents with one band key that are all compared with each other."""

_SIGNATURES_AT_ONCE = 16_384
_TEXTS_AT_ONCE = 1024
_PAIRS_AT_ONCE = 8192

_NOMINATE = f"""
INSERT INTO nominated
WITH buckets AS (SELECT DISTINCT key, doc FROM band),
several AS (SELECT key FROM buckets GROUP BY key HAVING count(*) > 1),
placed AS (
    SELECT key, doc, count(*) OVER (PARTITION BY key) AS size,
           row_number() OVER in_order AS place,
           first_value(doc) OVER in_order AS smallest,
           lag(doc) OVER in_order AS before
    FROM buckets SEMI JOIN several USING (key)
    WINDOW in_order AS (PARTITION BY key ORDER BY doc)
)
SELECT smallest, doc FROM placed WHERE place > 1 AND size > {SMALL_BUCKET}
UNION ALL
SELECT before, doc FROM placed WHERE place > 2 AND size > {SMALL_BUCKET}
UNION ALL
SELECT a.doc, b.doc FROM placed AS a JOIN placed AS b USING (key)
WHERE a.size <= {SMALL_BUCKET} AND a.doc < b.doc
"""

# Numbers have the order of ids, so that the smallest number of a cluster is its smallest id.
_CANDIDATES = """
CREATE TABLE pairs AS SELECT DISTINCT a, b FROM nominated;
DROP TABLE nominated;
CREATE TABLE candidates AS
SELECT row_number() OVER (ORDER BY doc) - 1 AS number, doc
FROM (SELECT a AS doc FROM pairs UNION SELECT b FROM pairs);
"""

_PLACES = """
SELECT a.number AS a, b.number AS b, x.start AS start_a, x.size AS size_a, y.start AS start_b,
       y.size AS size_b
FROM pairs JOIN candidates AS a ON a.doc = pairs.a JOIN candidates AS b ON b.doc = pairs.b
JOIN places AS x ON x.doc = pairs.a JOIN places AS y ON y.doc = pairs.b
"""


@dataclass(frozen=True, eq=False)
class Compared:
    """Pairs of candidates, by number. The order of numbers is that of ids."""

    candidates: pl.DataFrame
    """number, doc_id, and start and size of its shingles."""
    pairs: NDArray[np.int64]
    """Pairs that were compared, [N, 2], without order."""
    similarities: NDArray[np.float32]
    """Jaccard similarity of each, [N]."""
    n_compared: int


class ShingleFile:
    """Sets of shingles in a temporary file, which the system removes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="entropylong-shingles-")  # noqa: SIM115
        self._end = 0

    def __enter__(self) -> ShingleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, hashes: NDArray[np.uint64]) -> int:
        """Append a set; return the place of its first hash."""
        start = self._end
        self._file.write(hashes.tobytes())
        self._end += len(hashes)
        return start

    def flush(self) -> None:
        """Call after the last `add`, before the first `similarity`."""
        self._file.flush()

    def _read(self, start: int, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(os.pread(self._file.fileno(), 8 * size, 8 * start), np.uint64)

    def similarity(self, start_a: int, size_a: int, start_b: int, size_b: int) -> float:
        """Return the Jaccard similarity of two sets."""
        both = np.concatenate([self._read(start_a, size_a), self._read(start_b, size_b)])
        both.sort(kind="stable")  # two sorted runs: a merge
        shared = int(np.count_nonzero(both[1:] == both[:-1]))
        return shared / (size_a + size_b - shared)


def frame(session: duckdb.DuckDBPyConnection, sql: str) -> pl.DataFrame:
    """Return the rows of a query."""
    rows = pl.from_arrow(session.sql(sql).to_arrow_table())
    assert isinstance(rows, pl.DataFrame)
    return rows


def nominate_pairs(
    session: duckdb.DuckDBPyConnection,
    store: TableStore,
    shards: Sequence[str],
    bands: int,
    rows: int,
) -> int:
    """Fill the tables `pairs` (a, b) and `candidates` (number, doc); return the number of pairs.

    Reads the signatures once. Every band is a table of its own, dropped after its join.
    """
    for band in range(bands):
        session.execute(f"CREATE TABLE band_{band} (key UBIGINT, doc UUID)")
    for shard in shards:
        for batch in store.batches(
            DOCUMENT_SIGNATURES, shard, "signatures", ["doc_id", "signature"], _SIGNATURES_AT_ONCE
        ):
            values = batch["signature"].explode().to_numpy()
            keys = band_keys(values.reshape(-1, PERMUTATIONS), bands, rows)
            for band in range(bands):
                part = pa.table({"key": keys[band], "doc": batch["doc_id"].to_arrow()})
                session.register("part", part)
                session.execute(f"INSERT INTO band_{band} SELECT key, doc::UUID FROM part")
                session.unregister("part")
    session.execute("CREATE TABLE nominated (a UUID, b UUID)")
    for band in range(bands):
        session.execute(_NOMINATE.replace("FROM band)", f"FROM band_{band})"))
        session.execute(f"DROP TABLE band_{band}")
    session.execute(_CANDIDATES)
    row = session.execute("SELECT count(*) FROM pairs").fetchone()
    assert row is not None
    return int(row[0])


def spool_shingles(
    session: duckdb.DuckDBPyConnection,
    store: TableStore,
    shards: Sequence[str],
    n_words: int,
    file: ShingleFile,
) -> None:
    """Write the shingles of all candidates to the file, and where they are to table `places`."""
    session.execute("CREATE TABLE places (doc UUID, start UBIGINT, size UBIGINT)")
    for shard in shards:
        path = duck.parquet([duck.file_name(store, CORPUS_DOCUMENTS, shard, "documents")])
        # A document in several shards is read once.
        texts = session.sql(
            f"SELECT doc_id, text FROM {path} AS documents SEMI JOIN "
            "(SELECT doc FROM candidates ANTI JOIN places USING (doc)) AS wanted "
            "ON wanted.doc = documents.doc_id::UUID"
        ).to_arrow_reader(_TEXTS_AT_ONCE)
        rows: dict[str, list[object]] = {"doc": [], "start": [], "size": []}
        for batch in texts:
            for doc_id, text in zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True):
                hashes = shingles(text, n_words)
                rows["doc"].append(doc_id)
                rows["start"].append(file.add(hashes))
                rows["size"].append(len(hashes))
        schema = pa.schema([("doc", pa.string()), ("start", pa.uint64()), ("size", pa.uint64())])
        session.register("part", pa.table(rows, schema))
        session.execute("INSERT INTO places SELECT doc::UUID, start, size FROM part")
        session.unregister("part")
    file.flush()


def _compare(
    session: duckdb.DuckDBPyConnection, file: ShingleFile, lowest: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    reader = session.sql(_PLACES).to_arrow_reader(_PAIRS_AT_ONCE)
    for batch in reader:
        columns = [column.to_numpy() for column in batch.columns]
        similarities = np.array(
            [file.similarity(*map(int, row)) for row in zip(*columns[2:], strict=True)], np.float32
        )
        kept = similarities >= np.float32(lowest)
        yield np.stack(columns[:2], axis=1)[kept], similarities[kept]


def compare_documents(
    store: TableStore,
    shards: Sequence[str],
    session: duckdb.DuckDBPyConnection,
    file: ShingleFile,
    n_words: int,
    lowest: float,
    bands: tuple[int, int],
) -> Compared:
    """Compare the documents of these shards; return the pairs at or above the lowest threshold.

    session: empty. file: gets the shingles of the candidates. bands: as of `choose_bands`. Raises
    TableError if a table is missing or damaged.
    """
    n_compared = nominate_pairs(session, store, shards, *bands)
    spool_shingles(session, store, shards, n_words, file)
    parts = [*_compare(session, file, lowest)]
    candidates = frame(
        session,
        "SELECT number, replace(doc::VARCHAR, '-', '') AS doc_id, start::BIGINT AS start, "
        "size::BIGINT AS size FROM candidates JOIN places USING (doc) ORDER BY number",
    )
    return Compared(
        candidates=candidates,
        pairs=np.concatenate([np.zeros((0, 2), np.int64), *(pairs for pairs, _ in parts)]),
        similarities=np.concatenate([np.zeros(0, np.float32), *(part for _, part in parts)]),
        n_compared=n_compared,
    )
