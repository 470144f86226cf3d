"""What stands in the files of an export, read from the files themselves for the checks."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from entropylong_assets.storage.object_storage import open_uri

_IDX_COUNT = struct.Struct("<9sQBQ")


def _split_of(path: str) -> str:
    """`<format>/<split>/...` or `<format>/<split>-...`."""
    return path.split("/")[1].partition("-")[0]


def count_samples(uri: str, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """format, split and samples of every part: from MDS indexes, Parquet footers and .idx heads."""
    fs, folder = open_uri(uri)
    parts = []
    for file in manifest["files"]:
        path, full = file["path"], f"{folder}/{file['path']}"
        name = path.partition("/")[0]
        if path.endswith("/index.json"):
            samples = sum(shard["samples"] for shard in json.loads(fs.cat_file(full))["shards"])
        elif path.endswith(".parquet"):
            with fs.open(full, "rb") as stream:
                samples = pq.ParquetFile(stream).metadata.num_rows
        elif path.endswith(".idx"):
            with fs.open(full, "rb") as stream:
                samples = _IDX_COUNT.unpack(stream.read(_IDX_COUNT.size))[3]
        else:
            continue
        parts.append({"format": name, "split": _split_of(path), "samples": samples})
    schema = {"format": pl.String, "split": pl.String, "samples": pl.Int64}
    return pl.DataFrame(parts, schema=schema)


def documents_by_split(uri: str, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """split and doc_id of all segments, from the Parquet form; empty where it wasn't asked for."""
    fs, folder = open_uri(uri)
    parts = [pl.DataFrame(schema={"split": pl.String, "doc_id": pl.String})]
    for file in manifest["files"]:
        if file["path"].endswith(".parquet"):
            with fs.open(f"{folder}/{file['path']}", "rb") as stream:
                column = pq.read_table(stream, columns=["segments"])["segments"]
            doc_ids = pl.Series("doc_id", column).list.eval(pl.element().struct.field("doc_id"))
            found = doc_ids.explode().unique().cast(pl.String).to_frame()
            split = pl.lit(_split_of(file["path"])).alias("split")
            parts.append(found.select(split, "doc_id"))
    return pl.concat(parts)
