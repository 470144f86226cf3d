"""Writers of source files in every format, for the tests of this folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from entropylong_assets.project import make_project
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.documents import ingest_shard
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS, CorpusDocumentsSummary
from entropylong_assets.storage.tables import TableStore

TABLE_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".tsv")


def compress(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    elif path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    return path


def write_rows(path: Path, rows: list[dict[str, Any]], row_group_size: int = 7) -> Path:
    """Write rows to a file in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("other", pa.int64())])
        table = pa.Table.from_pylist([{"other": 1} | row for row in rows], schema=schema)
        pq.write_table(table, path, row_group_size=row_group_size)
        return path
    if ".jsonl" in path.name:
        return compress(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    text = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in path.name else ","
    writer = csv.DictWriter(text, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return compress(path, text.getvalue().encode())


def settings_for(uri: object, data: object = "data", **corpus: Any) -> Settings:
    """Settings of a corpus with one source named `s`, which takes the keys of a source."""
    source = {"name": "s", "uri": str(uri)}
    for key in SourceSettings.model_fields.keys() & corpus.keys():
        source[key] = corpus.pop(key)
    values = {"sources": [source], "min_chars": 1, **corpus}
    return make_project({"data_uri": str(data), "corpus": values}).corpus


def ingest_one(settings: Settings) -> tuple[TableStore, str]:
    """Ingest the only shard of a corpus into the store of its settings; return its key too."""
    store = TableStore(settings.data_uri, settings.name)
    (shard,) = plan_shards(settings).shards
    with store.write(CORPUS_DOCUMENTS, shard.key, fingerprint="-") as writer:
        writer.summary = ingest_shard(shard, settings, writer).model_dump(mode="json")
    return store, shard.key


def ingest(
    settings: Settings, store: TableStore
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[CorpusDocumentsSummary]]:
    """Documents, drops and summaries of all shards."""
    documents, dropped, summaries = [], [], []
    for shard in plan_shards(settings).shards:
        with store.write(CORPUS_DOCUMENTS, shard.key, fingerprint="-") as writer:
            summaries.append(ingest_shard(shard, settings, writer))
            writer.summary = summaries[-1].model_dump(mode="json")
        documents += store.read(CORPUS_DOCUMENTS, shard.key, "documents").to_dicts()
        dropped += store.read(CORPUS_DOCUMENTS, shard.key, "dropped").to_dicts()
    return documents, dropped, summaries
