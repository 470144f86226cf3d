"""Export the samples of shards in the formats of trainers, as one versioned folder.

    <destination>/<version>/
      README.md        dataset card
      LICENSE.md       licences of the sources
      manifest.json    files, hashes, counts, settings and what it was made from
      <format>/...     one folder per format, e.g. `mds/train/<source>/`

The version is a hash of everything that determines the content; equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.natural_documents.figures import natural_figures
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.card import dataset_card, facts_of, license_file
from entropylong_assets.stages.training_data.corpus_facts import (
    DOCUMENTS,
    cleaning,
    document_lines,
)
from entropylong_assets.stages.training_data.destination import destination_of
from entropylong_assets.stages.training_data.empty_stage import first_empty_stage
from entropylong_assets.stages.training_data.figures import dataset_figures
from entropylong_assets.stages.training_data.front_matter import LICENSES
from entropylong_assets.stages.training_data.manifest import (
    FORMAT_VERSION,
    ExportError,
    encode_manifest,
    without_secrets,
)
from entropylong_assets.stages.training_data.mixed_samples import (
    plan_mixture,
    samples_by_source,
)
from entropylong_assets.stages.training_data.mixture import sampling_weights
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ID_DTYPE,
    ExportFormat,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import (
    Sample,
    domain_of,
    export_order,
    iterate_samples,
    mask_fillers,
)
from entropylong_assets.stages.training_data.segment_texts import add_texts
from entropylong_assets.stages.training_data.split import (
    TRAIN,
    VALIDATION,
    Split,
    split_samples,
)
from entropylong_assets.stages.training_data.verify import read_manifest
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage.tables import TableStore

_INPUTS = (
    CORPUS_DOCUMENTS,
    ENTROPY_SCORES,
    CANDIDATE_CONTEXTS,
    VERIFIED_DEPENDENCIES,
    LONG_CONTEXT_SAMPLES,
    NATURAL_DOCUMENTS,
)
"""Tables that figures and samples are read from."""


@dataclass(frozen=True)
class Export:
    """A published export."""

    uri: str
    version: str
    manifest: dict[str, Any]
    reused: bool
    """The same export existed already, with all its files, and was kept."""


def _made_from(store: TableStore, shards: Sequence[str], code_version: str) -> dict[str, Any]:
    """Versions of all inputs. Raises ExportError if different models scored the shards."""
    models: dict[str, str] = {}
    for shard in shards:
        models.setdefault(store.summary(ENTROPY_SCORES, shard).model, shard)
    if len(models) > 1:
        (one, shard), (other, second) = list(models.items())[:2]
        raise ExportError(
            f"{shard} was scored by {one}, {second} by {other}; one export contains one model: "
            f"materialize {ENTROPY_SCORES.name} and what follows again for one of them"
        )
    return {
        "model": next(iter(models)),
        "indexes": sorted({store.summary(CANDIDATE_CONTEXTS, shard).index for shard in shards}),
        "code_version": code_version,
        "data_versions": {
            tables.name: {shard: store.require(tables, shard).data_version for shard in shards}
            for tables in _INPUTS
        },
    }


def _tokenizer(store: TableStore, shards: Sequence[str]) -> dict[str, Any]:
    """The manifest's block `tokenizer`. Raises ExportError if the samples of two shards differ."""
    first, *others = shards
    tokenizer = store.summary(LONG_CONTEXT_SAMPLES, first).tokenizer
    for shard in others:
        if store.summary(LONG_CONTEXT_SAMPLES, shard).tokenizer != tokenizer:
            raise ExportError(
                f"the samples of {first} and {shard} differ in tokenizer, padding or length; "
                f"materialize {LONG_CONTEXT_SAMPLES.name} again for one of them"
            )
    block: dict[str, Any] = without_secrets(asdict(tokenizer) | {"dtype": ID_DTYPE})
    return block


def _recorded_settings(settings: Settings) -> dict[str, Any]:
    """The settings that determine the samples and their export, nested as in a settings file.

    Values are JSON. Others, e.g. of audits, are left out: they don't change an export. Neither does
    the order of the sources, so they are sorted by name.
    """
    by_name = sorted(settings.corpus.sources, key=lambda source: source.name)
    sources = [source.model_dump(mode="json") for source in by_name]
    corpus: dict[str, Any] = {"name": settings.corpus.name, "sources": sources}
    recorded: dict[str, Any] = {"name": settings.name, "seed": settings.seed, "corpus": corpus}
    for stage in (*LONG_CONTEXT_SAMPLES_STAGE.upstream(), LONG_CONTEXT_SAMPLES_STAGE):
        of_corpus = stage.scope == "corpus"
        scope, place = (settings.corpus, corpus) if of_corpus else (settings, recorded)
        for path, value in determining_settings(stage, scope).items():
            *sections, name = path.split(".")
            reduce(lambda inner, key: inner.setdefault(key, {}), sections, place)[name] = value
    recorded["export"] = settings.export.model_dump(mode="json", exclude={"destination"})
    published: dict[str, Any] = without_secrets(recorded)
    return published


def _documents(store: TableStore, shards: Sequence[str]) -> pl.DataFrame:
    """sample_id, and the 64-bit hash of doc_id, of every root and context.

    Should two hashes be equal, two samples stay in one split that could be separated.
    """
    names = [
        store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])["sample_id"]
        for shard in shards
    ]
    known = pl.Enum(pl.concat(names).sort())
    columns = ["sample_id", "doc_id"]
    return pl.concat(
        batch.drop_nulls().select(pl.col("sample_id").cast(known), pl.col("doc_id").hash()).unique()
        for shard in shards
        for batch in store.batches(LONG_CONTEXT_SAMPLES, shard, "segments", columns, rows=65_536)
    )


def _samples_by_source(
    store: TableStore, shards: Sequence[str], split: Split
) -> dict[str, dict[str, int]]:
    """Samples per split and source, sources in the order in which they are written."""
    counts: dict[str, dict[str, int]] = {TRAIN: {}, VALIDATION: {}}
    for shard in shards:
        source = domain_of(shard)
        for name in store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])["sample_id"]:
            if (side := split.side(name)) is not None:
                counts[side][source] = counts[side].get(source, 0) + 1
    return counts


def published_manifest(publication: Publication) -> dict[str, Any] | None:
    """The manifest of the export under this name, if it exists and no file is missing."""
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
    """Export all samples of these shards as `settings.export` says.

    code_version: of the code that made the tables. An export of the same inputs that exists
    already is kept, unless `overwrite`. on_progress: called with the number of samples written and
    the number of all samples. Raises ExportError if there is nothing to export or different models
    scored the shards, TableError if a table is missing.
    """
    order = export_order(shards)
    if not order:
        raise ExportError(f"no shard to export; materialize {LONG_CONTEXT_SAMPLES.name} first")
    made_from = _made_from(store, order, code_version)
    if settings.export.mixture is not None:  # its short documents are those in the index
        made_from[EMBEDDING_INDEX.name] = store.require(EMBEDDING_INDEX).data_version
    chosen = _recorded_settings(settings)
    name = fingerprint({"format": FORMAT_VERSION, "made_from": made_from, "settings": chosen})
    publication = Publication(destination_of(settings), name)
    existing = None if overwrite else published_manifest(publication)
    if existing is not None:
        return Export(publication.uri, name, existing, reused=True)

    mixture = plan_mixture(store, order, settings)
    figures = dataset_figures(store, order, settings, mixture)
    if not figures["samples"]:
        raise ExportError(
            f"no sample in {len(order)} shards ({order[0]} ...): "
            f"{first_empty_stage(figures, settings)}"
        )
    split = split_samples(
        _documents(store, order) if mixture is None else mixture.documents,
        settings.export.validation_fraction,
        settings.seed,
        settings.export.max_left_out,
    )
    require_masks(settings, figures)
    assert split.samples == figures["samples"], "a sample without documents"
    sources = (
        _samples_by_source(store, order, split)
        if mixture is None
        else samples_by_source(mixture, split, order)
    )
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": name,
        "formats": list(settings.export.formats),
        "splits": {side: sum(counts.values()) for side, counts in sources.items()},
        "sources": sources,
        "left_out": len(split.left_out),
        "tokenizer": _tokenizer(store, order),
        "components": {"count": split.components, "largest": split.largest_component},
        "figures": figures,
        "cleaning": cleaning(store),
        "settings": chosen,
        "made_from": made_from,
    }
    if mixture is not None:
        content["mixture"] = mixture.block()
        content["natural"] = natural_figures(
            store,
            order,
            load_tokenizer(settings.scoring),
            mixture.names("natural").unique().rename({"sample_id": "window_id"}),
        )
        content["sampling_weights"] = sampling_weights(mixture.shares, sources[TRAIN])
    with publication:
        formats = [
            EXPORT_FORMATS[kind](FormatFolder(publication, kind), settings, facts_of(content))
            for kind in settings.export.formats
        ]
        provenance = any(each.needs_provenance for each in formats)
        samples = (
            iterate_samples(store, order, provenance=provenance)
            if mixture is None
            else mixture.iterate(store, order, provenance)
        )
        if not settings.export.learn_fillers:
            samples = map(mask_fillers, samples)
        if any(each.needs_texts for each in formats):
            samples = add_texts(store, load_tokenizer(settings.scoring), samples)
        _write_samples(samples, formats, split, on_progress)
        _write_documents(store, order, publication)
        with publication.file("README.md") as file:
            file.write(dataset_card(content).encode())
        with publication.file(LICENSES) as file:
            file.write(license_file(content).encode())
        files = sorted(publication.files, key=lambda file: file.path)
        content["files"] = [asdict(file) for file in files]
        publication.publish(encode_manifest(content))
    return Export(publication.uri, name, content, reused=False)


def _write_documents(store: TableStore, shards: Sequence[str], publication: Publication) -> None:
    """Write the metadata of the documents, if they have any."""
    lines = document_lines(store, shards)
    first = next(lines, None)
    if first is not None:
        with publication.file(DOCUMENTS) as file:
            file.write(first)
            for more in lines:
                file.write(more)


def require_masks(settings: Settings, figures: Mapping[str, Any]) -> None:
    """Raise ExportError if fillers are not to be learnt and a format can't say so."""
    if settings.export.learn_fillers or not figures["tokens_by_role"].get("filler"):
        return
    for name in settings.export.formats:
        if not EXPORT_FORMATS[name].has_mask:
            raise ExportError(
                f"format {name} has no mask, so fillers would be learnt; set export.learn_fillers "
                "to true, or leave the format out of export.formats"
            )


def _write_samples(
    samples: Iterable[Sample],
    formats: Sequence[ExportFormat],
    split: Split,
    on_progress: Callable[[int, int], None],
) -> None:
    """Write the samples of both splits in all formats."""
    for done, sample in enumerate(samples, start=1):
        if (side := split.side(sample.sample_id)) is not None:
            for each in formats:
                each.write(sample, side)
        on_progress(done, split.samples)
    for each in formats:
        each.close()
