"""Pack an export of text (format `jsonl`) again, to samples of another tokenizer.

Roots and contexts are tokenized again and packed as in the stage of samples, by the order, layout
and fill of the export. Roots stay in their split and shard. No context is cut. What does not fit is
dropped and counted. Gains stay those that the first scoring model measured.

    <out>/<version>/   like any export: README.md, LICENSE.md, manifest.json, a folder per format

Everything is computed twice: once for the counts that formats need before their first sample, once
to be written. Memory is bounded by the largest shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.entropy.tokenizer_facts import tokenizer_facts
from entropylong_assets.stages.model_files import locate
from entropylong_assets.stages.samples.sample_rows import SampleRows
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.card import facts_of, license_file, retokenized_card
from entropylong_assets.stages.training_data.export import Export, published_manifest, require_masks
from entropylong_assets.stages.training_data.front_matter import LICENSES
from entropylong_assets.stages.training_data.jsonl import JSONL
from entropylong_assets.stages.training_data.manifest import (
    FORMAT_VERSION,
    ExportError,
    encode_manifest,
    without_secrets,
)
from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ID_DTYPE,
    FormatFolder,
)
from entropylong_assets.stages.training_data.repacking import LaidOut, Repacking, Report
from entropylong_assets.stages.training_data.sample_details import DETAILS, join_details
from entropylong_assets.stages.training_data.samples import (
    Sample,
    domain_of,
    make_samples,
    mask_fillers,
)
from entropylong_assets.stages.training_data.verify import read_manifest

_SAMPLES_AT_ONCE = 16


def _samples(laid_out: Iterator[LaidOut], provenance: bool) -> Iterator[tuple[str, Sample]]:
    """Each sample with its split."""
    batch: list[LaidOut] = []
    for sample in laid_out:
        if batch and (sample.shard != batch[0].shard or len(batch) == _SAMPLES_AT_ONCE):
            yield from _make(batch, provenance)
            batch = []
        batch.append(sample)
    if batch:
        yield from _make(batch, provenance)


def _make(batch: Sequence[LaidOut], provenance: bool) -> Iterator[tuple[str, Sample]]:
    rows, shard = SampleRows(), batch[0].shard
    for sample in batch:
        rows.add(sample.sample_id, sample.segments, domain_of(shard))
    ids = pl.DataFrame({"sample_id": [sample.sample_id for sample in batch]})
    tables = {
        name: pl.DataFrame(
            getattr(rows, name), schema=pl.Schema(LONG_CONTEXT_SAMPLES.schemas[name])
        )
        for name in DETAILS
    }
    anchors = {
        root_id: positions for sample in batch for root_id, positions in sample.anchors.items()
    }
    roots = pl.DataFrame(
        {"root_id": list(anchors), "anchors": list(anchors.values())},
        schema={"root_id": pl.String, "anchors": pl.List(pl.Int32)},
    )
    token_ids_ST = np.stack([row["input_ids"] for row in rows.samples])
    tokens = ids.with_columns(pl.Series("input_ids", token_ids_ST).arr.to_list())
    details = join_details(ids, tables, roots)
    samples = make_samples(details, tokens, shard, provenance)
    yield from zip([sample.split for sample in batch], samples, strict=True)


def formats_of(uri: str) -> tuple[str, ...]:
    """The formats of an export of text other than text, or `parquet`. Raises ExportError."""
    formats = tuple(name for name in _read(uri)["formats"] if name != JSONL)
    return formats or ("parquet",)


def export_settings_of(uri: str) -> dict[str, Any]:
    """The section `export` of the settings that an export was made with. Raises ExportError."""
    return dict(_read(uri)["settings"]["export"])


def _read(uri: str) -> dict[str, Any]:
    source = read_manifest(uri)
    if JSONL not in source["formats"]:
        raise ExportError(
            f"{uri}: it has no text; export it again with `{JSONL}` among export.formats"
        )
    if "mixture" in source:
        raise ExportError(
            f"{uri}: it is a mixture, whose natural and short samples have no roots to pack again; "
            "export without export.mixture"
        )
    return source


def retokenize(
    uri: str, model: str, tokens: int, settings: Settings, out: str, *, overwrite: bool = False
) -> Export:
    """Pack the export of text at `uri` again, to samples of exactly `tokens` tokens.

    model: whose tokenizer it is, as `scoring.model` names models. settings: their section `export`
    names the formats. out: folder or URI in which the new export gets a folder of its own; one of
    the same content that exists already is kept, unless `overwrite`. Raises ExportError if there is
    no text, a format needs text or nothing fits, ModelError if there is no such tokenizer.
    """
    source = _read(uri)
    formats: Sequence[str] = settings.export.formats
    for name in formats:
        if EXPORT_FORMATS[name].needs_texts:
            raise ExportError(f"format {name}: it is text already; name formats of token ids")
    recorded = source["settings"]["scoring"]
    # Not the setting of the first model: another tokenizer may lack its special tokens.
    bos = "never" if recorded["bos"] == "never" else "auto"
    scoring = ScoringModelSettings(model=model, bos=bos, separator=recorded["separator"])
    tokenizer = load_tokenizer(scoring)
    facts = tokenizer_facts(
        tokenizer, scoring, vocab_size=len(tokenizer.hf_tokenizer), sample_tokens=tokens
    )
    content = _content(source, asdict(facts), locate(model).identity, settings)
    publication = Publication(out, content["version"])
    existing = None if overwrite else published_manifest(publication)
    if existing is not None:
        return Export(publication.uri, content["version"], existing, reused=True)
    repacking, report = Repacking(uri, source, tokenizer, facts), Report()
    for _ in repacking.laid_out(report):
        pass
    if not report.packed["samples"]:
        raise ExportError(f"no root and its contexts fit into {tokens} tokens; raise --tokens")
    content |= report.content(source["figures"]["licenses"])
    require_masks(settings, content["figures"])
    with publication:
        writers = [
            EXPORT_FORMATS[name](FormatFolder(publication, name), settings, facts_of(content))
            for name in formats
        ]
        again = Report()
        provenance = any(writer.needs_provenance for writer in writers)
        for split, sample in _samples(repacking.laid_out(again), provenance):
            learnt = sample if settings.export.learn_fillers else mask_fillers(sample)
            for writer in writers:
                writer.write(learnt, split)
        for writer in writers:
            writer.close()
        assert again == report, "the second pass packed other samples"
        with publication.file(LICENSES) as file:
            file.write(license_file(content).encode())
        with publication.file("README.md") as file:
            file.write(retokenized_card(content).encode())
        files = sorted(publication.files, key=lambda file: file.path)
        content["files"] = [asdict(file) for file in files]
        publication.publish(encode_manifest(content))
    return Export(publication.uri, content["version"], content, reused=False)


def _content(
    source: Mapping[str, Any], tokenizer: dict[str, Any], identity: str, settings: Settings
) -> dict[str, Any]:
    """The manifest's content before anything is packed. identity: of the tokenizer's model."""
    recorded = source["settings"]
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "formats": list(settings.export.formats),
        "tokenizer": without_secrets(tokenizer | {"dtype": ID_DTYPE}),
        "settings": {
            "name": recorded["name"],
            "seed": recorded["seed"],
            "samples": recorded["samples"] | {"tokens": tokenizer["sample_tokens"]},
            "export": settings.export.model_dump(mode="json", exclude={"destination"}),
        },
        "made_from": {
            "export": source["version"],
            "gains_measured_by": source["made_from"]["model"],
            "sample_tokens": source["tokenizer"]["sample_tokens"],
            "tokenizer": without_secrets(identity),
        },
        "left_out": 0,
    }
    return content | {"version": fingerprint(content)}
