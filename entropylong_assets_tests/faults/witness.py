"""A reader of data that killed processes write: every partition must be missing or complete."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import polars as pl

TEMPORARY = (".staging-", ".put-", ".batches-", ".tmp-", "staging-")
"""Prefixes of files and folders that exist only while something is written."""


def rows_of(data: str, shard: str | None = None, tag: str | None = None) -> dict[str, str]:
    """Hash of the rows of each shard of the LanceDB table: all columns, sorted by id.

    Empty if there is no table.
    """
    from entropylong_assets.stages.embeddings.table import open_table
    from entropylong_assets.storage.manifest import TableError
    from entropylong_assets.storage.tables import TableStore

    columns = ["chunk_id", "doc_id", "shard", "source", "start", "end", "text", "vector"]
    try:
        rows = pl.concat(
            [pl.DataFrame(), *open_table(TableStore(data), tag).scan(columns, shard)],
            how="diagonal",
        )
    except TableError:
        return {}
    if rows.is_empty():
        return {}
    result = {}
    for (name,), part in rows.group_by("shard"):
        stream = io.BytesIO()
        part.select(columns).sort("chunk_id").write_ipc(stream)
        result[str(name)] = hashlib.sha256(stream.getvalue()).hexdigest()
    return result


def tree_of(data: Path, *others: Path) -> dict[str, str]:
    """Hash of every file, except those of LanceDB.

    Leaves out what legitimately differs: the path of the folder, and the number of commits to the
    LanceDB table. others: earlier paths of the folder.
    """
    hashes = {}
    for path in sorted(data.rglob("*")):
        if path.is_file() and "lancedb" not in path.relative_to(data).parts:
            content = path.read_bytes()
            for name in (data, *others):
                content = content.replace(str(name).encode(), b"DATA")
            if path.parts[-3:] == ("embedding_index", "all", "manifest.json"):
                content = re.sub(rb'"table_version": \d+', b"", content)
            hashes[str(path.relative_to(data))] = hashlib.sha256(content).hexdigest()
    return hashes


def leftovers(data: Path) -> list[str]:
    """Temporary files and folders of killed writers, which a rerun must remove."""
    return [
        str(path.relative_to(data))
        for path in data.rglob("*")
        if path.name.startswith(TEMPORARY) and "lancedb" not in path.relative_to(data).parts
    ]


def _tables(data: str, whole: Mapping[str, str], counts: Counter[str]) -> list[str]:
    """Faults of the partitions. whole: expected version of each, by `asset/shard`."""
    from entropylong_assets.storage.tables import TableStore
    from entropylong_assets_tests.stage_names import BY_NAME

    faults, store = [], TableStore(data)
    for name, version in whole.items():
        asset, shard = name.split("/")
        tables = BY_NAME[asset].tables
        manifest = store.manifest(tables, shard)
        if manifest is None:
            counts["absent"] += 1
            continue
        if manifest.data_version != version:
            faults.append(f"{name}: version {manifest.data_version}")
        for table, file in manifest.tables.items():
            content = store.fs.cat_file(f"{store.folder(tables, shard)}/{file.file}")
            rows = len(store.read(tables, shard, table))
            if hashlib.sha256(content).hexdigest() != file.sha256 or rows != file.rows:
                faults.append(f"{name}: table {table} differs from its manifest")
        counts["whole"] += 1
    return faults


def _exports(data: str, counts: Counter[str]) -> list[str]:
    """Faults of exports, reports and the plan of shards."""
    from entropylong_assets.stages.training_data.verify import verify_export

    faults, dataset = [], Path(data) / "dataset"
    for path in (*dataset.glob("exports/*"), *dataset.glob("reports/*")):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            faults += verify_export(str(path)).faults
        elif not path.read_bytes().rstrip().endswith(b"</html>"):
            faults.append(f"{path.name} is incomplete")
        counts["whole"] += 1
    plan = Path(data) / "corpus" / "shards.json"
    if plan.exists():
        json.loads(plan.read_bytes())
        counts["whole"] += 1
    return faults


def watch(
    data: str, whole: Mapping[str, str], rows: Mapping[str, list[str]], pipe: Connection
) -> None:
    """Target of a process: read everything repeatedly until the signal to end; send the results.

    rows: hashes that the rows of each shard in the LanceDB table may have.
    """
    os.environ["RUST_BACKTRACE"] = "0"
    counts: Counter[str] = Counter()
    faults: list[str] = []
    table = Path(data) / "corpus" / "lancedb" / "chunks.lance"
    pipe.send("watching")
    last = False
    while True:
        counts["looks"] += 1
        try:
            faults += _tables(data, whole, counts)
            faults += _exports(data, counts)
            if table.exists():
                for shard, digest in rows_of(data).items():
                    counts["whole"] += 1
                    if digest not in rows.get(shard, ()):
                        faults.append(f"LanceDB: rows of {shard} are incomplete")
        except Exception as error:  # any error of a reader is a fault
            faults.append(f"{type(error).__name__}: {error}")
        if last or faults[50:]:
            break
        last = pipe.poll(0.05)
    pipe.send({"faults": faults, **counts})


Seen = dict[str, Any]
