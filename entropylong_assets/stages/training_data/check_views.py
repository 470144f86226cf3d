"""What the checks of an export read: its tables, its manifest, and its files themselves."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import polars as pl

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS, FormatFiles
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.training_data.verify import read_manifest, verify_export
from entropylong_assets.storage.duck import View
from entropylong_assets.storage.object_storage import open_uri


def export_views(partition: Partition) -> Mapping[str, View]:
    """The views of the export that the partition's summary names.

    Files are read only for the views that a check names. Raises TableError if the stage is not
    materialized.
    """
    store, shard = partition.store, partition.shard
    uri = export_uri(partition.settings, store.summary(TRAINING_DATASET, shard).version)
    shards = store.read(TRAINING_DATASET, shard, "shards", ["shard"])["shard"].to_list()
    manifest = functools.cache(lambda: read_manifest(uri))

    def splits() -> pl.DataFrame:
        return pl.DataFrame([{"split": s, "samples": n} for s, n in manifest()["splits"].items()])

    def file_faults() -> pl.DataFrame:
        faults = verify_export(uri).faults
        return pl.DataFrame({"fault": faults}, schema={"fault": pl.String})

    return {
        "file_faults": file_faults,
        "formats": lambda: pl.DataFrame({"format": manifest()["formats"]}),
        "splits": splits,
        "unsplit": lambda: pl.DataFrame({"n_unsplit": [manifest()["left_out"]]}),
        "counted": lambda: count_samples(uri, manifest()),
        "exported_ids": lambda: documents_by_split(uri, manifest()),
        "samples": functools.partial(_mixed_samples, manifest())
        if partition.settings.export.mixture is not None
        else (LONG_CONTEXT_SAMPLES, shards, "samples"),
        "left_out": (TRAINING_DATASET, [shard], "left_out"),
    }


def _mixed_samples(manifest: Mapping[str, Any]) -> pl.DataFrame:
    """A row per sample of the mixture."""
    parts = {name: part["samples"] for name, part in manifest["mixture"].items()}
    return pl.DataFrame({"sample_id": [f"{n}-{i}" for n, k in parts.items() for i in range(k)]})


def _files(uri: str, manifest: Mapping[str, Any], name: str) -> FormatFiles:
    fs, folder = open_uri(uri)
    prefix = f"{name}/"
    paths = [file["path"] for file in manifest["files"]]
    return FormatFiles(
        fs,
        f"{folder.rstrip('/')}/{name}",
        tuple(path.removeprefix(prefix) for path in paths if path.startswith(prefix)),
    )


def count_samples(uri: str, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """format, split and samples of every part of an export, as its files say."""
    parts = [
        {"format": name, "split": split, "samples": samples}
        for name in manifest["formats"]
        for split, samples in EXPORT_FORMATS[name].count_samples(_files(uri, manifest, name))
    ]
    schema = {"format": pl.String, "split": pl.String, "samples": pl.Int64}
    return pl.DataFrame(parts, schema=schema)


def documents_by_split(uri: str, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """split and doc_id of all documents in the files; empty if no format stores them."""
    parts = [pl.DataFrame(schema={"split": pl.String, "doc_id": pl.String})]
    for name in manifest["formats"]:
        for split, doc_ids in EXPORT_FORMATS[name].read_documents(_files(uri, manifest, name)):
            ids = doc_ids.cast(pl.String).unique().alias("doc_id").to_frame()
            parts.append(ids.select(pl.lit(split).alias("split"), "doc_id"))
    return pl.concat(parts)
