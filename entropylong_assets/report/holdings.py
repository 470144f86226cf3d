"""Finding the shards, samples and exports that contain a document."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings, printable
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.records import read_record
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.check_views import documents_by_split
from entropylong_assets.stages.training_data.destination import destination_of
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.publication import MANIFEST
from entropylong_assets.stages.training_data.verify import read_manifest
from entropylong_assets.storage.object_storage import open_uri
from entropylong_assets.storage.tables import TableStore

_ROWS = 65_536
_DOC_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Holdings:
    """Shards, samples and exports that contain some documents."""

    shards: tuple[str, ...] = ()
    samples: tuple[tuple[str, str], ...] = ()
    """Name of the dataset and id of the sample."""
    exports: tuple[str, ...] = ()
    """URIs of exports that contain one of the documents."""
    doubtful_exports: tuple[str, ...] = ()
    """URIs of exports that may contain one: their formats store no ids, or their manifest can't be
    read."""


def find_doc_ids(store: TableStore, name: str) -> list[str]:
    """Return the doc_ids of a name: the name itself, or those of documents with this external id.

    Retired shards are searched as well. Raises CorpusError if no document has this external id.
    """
    if _DOC_ID.fullmatch(name):
        return [name]
    doc_ids: set[str] = set()
    for shard in _shards(store):
        for batch in _documents(store, shard, ["doc_id", "external_id"]):
            doc_ids |= set(batch.filter(pl.col("external_id") == name)["doc_id"])
    if not doc_ids:
        raise CorpusError(
            f"corpus {store.corpus}: no document has the id '{printable(name, 60)}'; give the "
            "doc_id (32 hex digits) or the source's own id"
        )
    return sorted(doc_ids)


def find_document(store: TableStore, datasets: Sequence[Settings], doc_id: str) -> Holdings:
    """Find a document in all shards, retired ones too, and in the samples of all datasets over it.

    datasets: those whose exports are searched. Reads the ids of all documents and segments.
    """
    shards = tuple(s for s in _shards(store) if _holds(store, s, {doc_id}))
    samples = list[tuple[str, str]]()
    for dataset in _datasets_over(store):
        of = TableStore(store.uri, store.corpus, dataset)
        for shard in _shards(store):
            if of.manifest(LONG_CONTEXT_SAMPLES, shard) is None:
                continue
            columns = ["sample_id", "doc_id"]
            for batch in of.batches(LONG_CONTEXT_SAMPLES, shard, "segments", columns, _ROWS):
                ids = batch.filter(pl.col("doc_id") == doc_id)["sample_id"].unique().sort()
                samples += [(dataset, sample) for sample in ids]
    exports, doubtful = _exports(store, datasets, shards, {doc_id})
    return Holdings(shards, tuple(dict.fromkeys(samples)), exports, doubtful)


def find_exports(
    store: TableStore, datasets: Sequence[Settings], shards: Sequence[str]
) -> Holdings:
    """Find exports with samples of these shards, or with any document of them."""
    exports, doubtful = _exports(store, datasets, shards, None)
    return Holdings(tuple(shards), (), exports, doubtful)


def _shards(store: TableStore) -> list[str]:
    """All shards with documents, retired ones too."""
    keys = [shard.key for shard in load_plan(store).known]
    return [key for key in keys if store.manifest(CORPUS_DOCUMENTS, key) is not None]


def _documents(store: TableStore, shard: str, columns: list[str]) -> Iterator[pl.DataFrame]:
    yield from store.batches(CORPUS_DOCUMENTS, shard, "documents", columns, _ROWS)


def _holds(store: TableStore, shard: str, doc_ids: Collection[str]) -> bool:
    wanted = list(doc_ids)
    batches = _documents(store, shard, ["doc_id"])
    return any(batch["doc_id"].is_in(wanted).any() for batch in batches)


def _datasets_over(store: TableStore) -> list[str]:
    """Names of all datasets over the corpus, of any settings file, sorted."""
    paths = store.fs.ls(store.root, detail=False) if store.fs.exists(store.root) else []
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
    records = ((name, read_record(store, name)) for name in names)
    return [n for n, r in records if r and (r.kind, r.corpus) == ("dataset", store.corpus)]


def _exports(
    store: TableStore,
    datasets: Iterable[Settings],
    shards: Sequence[str],
    doc_ids: Collection[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Exports that contain one of these documents or shards, and exports that may contain one."""
    held, doubtful = list[str](), list[str]()
    for uri in (uri for settings in datasets for uri in _export_uris(settings)):
        try:
            manifest = read_manifest(uri)
            ids = set(documents_by_split(uri, manifest)["doc_id"])
        except (ExportError, OSError):
            doubtful.append(uri)
            continue
        versions: dict[str, Any] = manifest["made_from"]["data_versions"]
        if doc_ids is None and set(shards) & versions[LONG_CONTEXT_SAMPLES.name].keys():
            held.append(uri)
        elif ids:
            hit = ids & set(doc_ids) if doc_ids else any(_holds(store, s, ids) for s in shards)
            held += [uri] if hit else []
        elif shards:
            doubtful.append(uri)
    return tuple(held), tuple(doubtful)


def _export_uris(settings: Settings) -> list[str]:
    """URIs of all exports of a dataset, sorted."""
    destination = destination_of(settings).rstrip("/")
    fs, root = open_uri(destination)
    if not fs.exists(root):
        return []
    names = [path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)]
    folders = [name for name in sorted(names) if not name.startswith(".")]
    root = root.rstrip("/")
    return [f"{destination}/{name}" for name in folders if fs.exists(f"{root}/{name}/{MANIFEST}")]
