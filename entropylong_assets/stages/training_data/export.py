"""Exports the samples of shards in the formats of trainers, as one versioned folder.

    <destination>/<version>/
      README.md                          dataset card
      manifest.json                      files, hashes, counts, settings and what it was made from
      mds/<split>/<source>/              MosaicML Streaming
      parquet/<split>-<nnnnn>.parquet    Hugging Face datasets
      megatron/<split>-<source>.bin,.idx

The version is a hash of all that determines the content; equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from entropylong_assets.settings.model import Settings, fingerprint
from entropylong_assets.stages.training_data.card import dataset_card
from entropylong_assets.stages.training_data.figures import dataset_figures
from entropylong_assets.stages.training_data.manifest import (
    FORMAT_VERSION,
    ExportError,
    encode_manifest,
    without_secrets,
)
from entropylong_assets.stages.training_data.mds import MdsWriter, encode_sample, sample_columns
from entropylong_assets.stages.training_data.megatron import MegatronWriter
from entropylong_assets.stages.training_data.parquet import ParquetWriter
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.samples import (
    ASSET,
    Sample,
    export_order,
    iterate_samples,
)
from entropylong_assets.stages.training_data.split import split_samples
from entropylong_assets.stages.training_data.verify import read_manifest
from entropylong_assets.storage.tables import TableStore

TRAIN, VALIDATION = "train", "validation"

_INPUTS = (
    "corpus_documents",
    "entropy_scores",
    "candidate_contexts",
    "verified_dependencies",
    ASSET,
)


@dataclass(frozen=True)
class Export:
    """A published export. `reused`: the same one was there already, whole."""

    uri: str
    version: str
    manifest: dict[str, Any]
    reused: bool


class _Writers:
    """The open files of an export. Files of a source are closed when the next one begins, so
    that memory does not grow with the number of sources."""

    def __init__(self, publication: Publication, settings: Settings, *, mask: bool) -> None:
        self._publication, self._settings, self._mask = publication, settings.export, mask
        self._by_source: dict[tuple[str, ...], Any] = {}
        self._by_split: dict[str, ParquetWriter] = {}
        self._domain: str | None = None

    def write(self, sample: Sample, split: str) -> None:
        if sample.domain != self._domain:
            self._close(self._by_source)
            self._domain = sample.domain
        for name in self._settings.formats:
            getattr(self, f"_{name}")(sample, split)

    def _mds(self, sample: Sample, split: str) -> None:
        export = self._settings
        weight = export.anchor_weight if export.position_weighted else None
        key = ("mds", split, sample.domain)
        if key not in self._by_source:
            columns = sample_columns(mask=self._mask, weights=weight is not None)
            self._by_source[key] = MdsWriter(
                self._publication, "/".join(key), columns, export.file_bytes
            )
        values = encode_sample(sample, mask=self._mask, anchor_weight=weight)
        self._by_source[key].write(values)

    def _megatron(self, sample: Sample, split: str) -> None:
        key = ("megatron", f"{split}-{sample.domain}")
        if key not in self._by_source:
            self._by_source[key] = MegatronWriter(self._publication, "/".join(key))
        self._by_source[key].write(sample.token_ids_T)

    def _parquet(self, sample: Sample, split: str) -> None:
        if split not in self._by_split:
            self._by_split[split] = ParquetWriter(
                self._publication, f"parquet/{split}", self._settings.file_bytes
            )
        self._by_split[split].write(sample)

    def _close(self, writers: dict[Any, Any]) -> None:
        for writer in writers.values():
            writer.close()
        writers.clear()

    def close(self) -> None:
        self._close(self._by_source)
        self._close(self._by_split)


def _made_from(store: TableStore, shards: Sequence[str], code_version: str) -> dict[str, Any]:
    """Versions of all inputs. Raises ExportError where shards were scored by different models."""
    manifests = {asset: {s: store.require(asset, s) for s in shards} for asset in _INPUTS}
    models: dict[str, str] = {}
    for shard, manifest in manifests["entropy_scores"].items():
        models.setdefault(str(manifest.summary.get("model", "unknown")), shard)
    if len(models) > 1:
        (one, shard), (other, second) = list(models.items())[:2]
        raise ExportError(
            f"{shard} was scored by {one}, {second} by {other}; one export holds one model: "
            "materialise entropy_scores and what follows for one of them again"
        )
    indexes = {
        str(m.summary.get("index", "unknown")) for m in manifests["candidate_contexts"].values()
    }
    return {
        "model": next(iter(models)),
        "indexes": sorted(indexes),
        "code_version": code_version,
        "data_versions": {
            asset: {shard: m.data_version for shard, m in by_shard.items()}
            for asset, by_shard in manifests.items()
        },
    }


def _documents(store: TableStore, shards: Sequence[str]) -> pl.DataFrame:
    """sample_id and doc_id of every root and context. Of a document its 64-bit hash: should two
    be equal, two samples stay together that could be parted."""
    names = [store.read(ASSET, shard, "samples", ["sample_id"])["sample_id"] for shard in shards]
    known = pl.Enum(pl.concat(names).sort())
    columns = ["sample_id", "doc_id"]
    return pl.concat(
        store.read(ASSET, shard, "segments", columns)
        .drop_nulls()
        .select(pl.col("sample_id").cast(known), pl.col("doc_id").hash())
        .unique()
        for shard in shards
    )


def _published(publication: Publication) -> dict[str, Any] | None:
    """The manifest of the export under this name, if it is there and no file is missing."""
    try:
        manifest = read_manifest(publication.uri)
        fs, folder = publication.fs, f"{publication.root}/{publication.name}"
        sizes = [fs.size(f"{folder}/{file['path']}") for file in manifest["files"]]
    except (ExportError, FileNotFoundError):
        return None
    return manifest if sizes == [file["bytes"] for file in manifest["files"]] else None


def export_training_data(
    store: TableStore,
    shards: Sequence[str],
    settings: Settings,
    *,
    code_version: str,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Export:
    """Exports all samples of these shards as `settings.export` says; returns what was published.

    code_version: of the code that made the tables. An export of the same inputs that is already
    there is kept, unless `overwrite`. on_progress gets samples written and samples in all.
    Raises ExportError where there is nothing to export or the shards were scored by different
    models, TableError where a table is missing.
    """
    order = export_order(shards)
    if not order:
        raise ExportError("no shard to export; materialise long_context_samples first")
    made_from = _made_from(store, order, code_version)
    chosen = without_secrets(
        settings.model_dump(
            mode="json", exclude={"data_uri": True, "cluster": True, "export": {"destination"}}
        )
    )
    name = fingerprint({"format": FORMAT_VERSION, "made_from": made_from, "settings": chosen})
    destination = settings.export.destination or f"{settings.data_uri}/exports"
    publication = Publication(destination, name)
    there = None if overwrite else _published(publication)
    if there is not None:
        return Export(publication.uri, name, there, reused=True)

    figures = dataset_figures(store, order, settings)
    total = figures["samples"]
    if not total:
        raise ExportError(
            f"no sample in {len(order)} shards ({order[0]} ...): no root has a verified context; "
            "export other shards, or lower verification.epsilon"
        )
    split = split_samples(
        _documents(store, order),
        settings.export.validation_fraction,
        settings.seed,
        settings.export.max_left_out,
    )
    assert split.samples == total, "a sample without documents"
    held, left_out = len(split.validation), len(split.left_out)
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": name,
        "formats": list(settings.export.formats),
        "splits": {TRAIN: total - held - left_out, VALIDATION: held},
        "left_out": left_out,
        "components": {"count": split.components, "largest": split.largest_component},
        "figures": figures,
        "settings": chosen,
        "made_from": made_from,
    }
    with publication:
        writers = _Writers(
            publication, settings, mask=bool(figures["tokens_by_role"].get("padding"))
        )
        samples = iterate_samples(store, order, provenance="mds" in settings.export.formats)
        for done, sample in enumerate(samples, start=1):
            if sample.sample_id not in split.left_out:
                writers.write(sample, VALIDATION if sample.sample_id in split.validation else TRAIN)
            on_progress(done, total)
        writers.close()
        with publication.file("README.md") as file:
            file.write(dataset_card(content).encode())
        files = sorted(publication.files, key=lambda file: file.path)
        content["files"] = [asdict(file) for file in files]
        publication.publish(encode_manifest(content))
    return Export(publication.uri, name, content, reused=False)
