"""The samples of a mixture: choosing them, and yielding each as export formats receive it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.mixture import (
    Entry,
    choose,
    count_samples,
    group_of,
)
from entropylong_assets.stages.training_data.sample_details import DETAILS, join_details
from entropylong_assets.stages.training_data.samples import (
    Sample,
    domain_of,
    iterate_samples,
    make_samples,
)
from entropylong_assets.stages.training_data.settings import PARTS
from entropylong_assets.stages.training_data.split import TRAIN, VALIDATION, Split
from entropylong_assets.storage.tables import WHOLE, TableStore

_SEGMENTS = pl.Schema(LONG_CONTEXT_SAMPLES.schemas["segments"])
_NO_DEPENDENCIES = pl.DataFrame(schema=pl.Schema(LONG_CONTEXT_SAMPLES.schemas["dependencies"]))
_NO_ROOTS = pl.DataFrame(schema={"root_id": pl.String, "anchors": pl.List(pl.Int32)})
_DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True, eq=False)
class Plain:
    """A sample without roots: its tokens, and rows of the table `segments`."""

    sample_id: str
    token_ids: list[int]
    segments: list[dict[str, Any]]


def _plain(sample_id: str, bos: Sequence[int], parts: Iterable[tuple[dict, list[int]]]) -> Plain:
    """parts: role, doc_id and source of each segment, and its tokens."""
    ids, segments = list(bos), []
    if bos:
        segments.append({"role": "bos", "start": 0, "end": len(bos)})
    for origin, tokens in parts:
        segments.append({**origin, "start": len(ids), "end": len(ids) + len(tokens)})
        ids += tokens
    rows = [{"sample_id": sample_id, "segment": n} | s for n, s in enumerate(segments)]
    return Plain(sample_id, ids, rows)


def natural_samples(store: TableStore, shard: str, bos: Sequence[int]) -> Iterator[Plain]:
    """The kept windows of `natural_documents`."""
    for batch in store.batches(NATURAL_DOCUMENTS, shard, "samples", rows=16):
        for row in batch.iter_rows(named=True):
            origin = {"role": "natural", "doc_id": row["doc_id"], "source": row["source"]}
            yield _plain(row["window_id"], bos, [(origin, row["input_ids"][len(bos) :])])


def short_samples(
    store: TableStore, shard: str, settings: Settings, tokenizer: Tokenizer, limit: float
) -> Iterator[Plain]:
    """Yield at most `limit` samples, each a series of short documents of the shard.

    Documents are ordered by hash, and the last one of a sample is cut at its end. Documents longer
    than a sample, roots, copies and near-duplicates are left out.
    """
    bos, size = list(tokenizer.bos_ids), settings.samples.tokens
    excluded = set(store.read(ENTROPY_SCORES, shard, "roots", ["root_id"])["root_id"])
    for table in ("near_copies", "duplicates"):
        rows = store.read(EMBEDDING_INDEX, WHOLE, table, ["doc_id", "shard"])
        excluded |= set(rows.filter(shard=shard)["doc_id"])
    documents = store.read(CORPUS_DOCUMENTS, shard, "documents", ["doc_id", "source", "text"])
    names = [name for name in documents["doc_id"] if name not in excluded]
    at = {name: number for number, name in enumerate(documents["doc_id"])}
    ordered = sorted(names, key=lambda name: hash_key(settings.seed, "short", name))
    waiting: list[tuple[dict, list[int]]] = []
    filled, count = len(bos), 0
    for start in range(0, len(ordered), _DOCUMENTS_PER_BATCH):
        batch = documents[[at[name] for name in ordered[start : start + _DOCUMENTS_PER_BATCH]]]
        encoded = tokenizer.encode(batch["text"].to_list())
        for doc_id, source, ids in zip(batch["doc_id"], batch["source"], encoded, strict=True):
            if count >= limit:
                return
            tokens = [*ids, *tokenizer.separator_ids]
            if not ids or len(bos) + len(tokens) > size:
                continue
            origin = {"role": "short", "doc_id": doc_id, "source": source}
            waiting.append((origin, tokens[: size - filled]))
            filled += len(waiting[-1][1])
            if filled == size:
                yield _plain(f"{shard}-short-{count:06d}", bos, waiting)
                waiting, filled, count = [], len(bos), count + 1


@dataclass(frozen=True, eq=False)
class Mixture:
    """The chosen samples of all shards."""

    entries: tuple[Entry, ...]
    shares: Mapping[str, float]
    available: Mapping[str, int]
    documents: pl.DataFrame
    """sample_id and doc_id of every root, context and document of the mixture."""
    tokens: Mapping[tuple[str, str], int]
    """Tokens of natural and short samples by role and source; source is empty for BOS."""
    _settings: Settings
    _tokenizer: Tokenizer
    _short_limit: float

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter[str](entry.part for entry in self.entries)
        return {part: counted[part] for part in self.shares}

    def names(self, *parts: str) -> pl.DataFrame:
        """sample_id of the entries of these parts; a repeated one as often as it is used."""
        ids = [entry.sample_id for entry in self.entries if entry.part in parts]
        return pl.DataFrame({"sample_id": ids}, schema={"sample_id": pl.String})

    def block(self) -> dict[str, Any]:
        """The manifest's block about the mixture."""
        total = max(len(self.entries), 1)
        return {
            part: {
                "share": self.shares[part],
                "realised": round(count / total, 6),
                "samples": count,
                "available": self.available[part],
            }
            for part, count in self.counts.items()
        }

    def iterate(
        self, store: TableStore, shards: Sequence[str], provenance: bool
    ) -> Iterator[Sample]:
        """The samples, ordered by part, source and shard, and within one by id."""
        chosen: dict[tuple[str, str], dict[str, list[Entry]]] = {}
        for entry in sorted(self.entries, key=lambda e: (e.sample_id, e.copy)):
            of_shard = chosen.setdefault((entry.part, entry.shard), {})
            of_shard.setdefault(entry.sample_id, []).append(entry)
        for part in PARTS:
            for shard in shards:
                if (part, shard) not in chosen:
                    continue
                of_shard = chosen[part, shard]
                for sample in self._of_shard(store, shard, part, of_shard, provenance):
                    for entry in of_shard[sample.sample_id]:
                        yield _named(sample, entry)

    def _of_shard(
        self,
        store: TableStore,
        shard: str,
        part: str,
        chosen: Collection[str],
        provenance: bool,
    ) -> Iterator[Sample]:
        if part == "constructed":
            for sample in iterate_samples(store, [shard], provenance=provenance):
                if sample.sample_id in chosen:
                    yield sample
            return
        for plain in _plain_samples(
            store, shard, part, self._settings, self._tokenizer, self._short_limit
        ):
            if plain.sample_id in chosen:
                yield _as_sample(plain, shard, provenance)


def _named(sample: Sample, entry: Entry) -> Sample:
    """The sample under the name of its entry, with its part in the provenance."""
    provenance = sample.provenance
    if provenance is not None:
        content = json.loads(provenance) | {"sample_id": entry.name, "kind": entry.part}
        provenance = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return replace(sample, sample_id=entry.name, provenance=provenance, kind=entry.part)


def _as_sample(plain: Plain, shard: str, provenance: bool) -> Sample:
    ids = pl.DataFrame({"sample_id": [plain.sample_id]})
    segments = pl.DataFrame(plain.segments, schema=_SEGMENTS)
    tables = {"segments": segments, "dependencies": _NO_DEPENDENCIES}
    assert tables.keys() == DETAILS.keys()
    tokens = pl.Series("input_ids", [plain.token_ids], pl.List(pl.UInt32))
    (sample,) = make_samples(
        join_details(ids, tables, _NO_ROOTS), ids.with_columns(tokens), shard, provenance
    )
    return sample


def _plain_samples(
    store: TableStore,
    shard: str,
    part: str,
    settings: Settings,
    tokenizer: Tokenizer,
    limit: float,
) -> Iterator[Plain]:
    if part == "natural":
        return natural_samples(store, shard, tokenizer.bos_ids)
    return short_samples(store, shard, settings, tokenizer, limit)


def plan_mixture(store: TableStore, shards: Sequence[str], settings: Settings) -> Mixture | None:
    """Choose the samples of `export.mixture`; None if it is not set.

    Short documents are packed for as many samples as the other parts allow, in equal numbers per
    shard. Raises ExportError if a part that has a share has no sample.
    """
    shares = settings.export.mixture
    if shares is None:
        return None
    repeat, tokenizer = settings.export.mixture_repeat, load_tokenizer(settings.scoring)
    entries: dict[str, list[Entry]] = {part: [] for part in shares}
    plain: dict[str, list[dict[str, Any]]] = {}
    limit = math.inf
    for part in sorted(shares):  # constructed, natural, short
        if part == "short":
            others = {p: len(entries[p]) * repeat / s for p, s in shares.items() if s and p != part}
            total = min(others.values(), default=math.inf)
            limit = total * shares[part] / len(shards)
            limit = math.ceil(limit) if math.isfinite(limit) else limit
        for shard in shards if shares[part] else ():
            if part == "constructed":
                rows = store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])
                entries[part] += [Entry("constructed", shard, n) for n in rows["sample_id"]]
                continue
            for sample in _plain_samples(store, shard, part, settings, tokenizer, limit):
                entries[part].append(Entry(part, shard, sample.sample_id))
                plain[sample.sample_id] = sample.segments
    available = {part: len(part_entries) for part, part_entries in entries.items()}
    for part, share in shares.items():
        if share and not available[part]:
            raise ExportError(
                f"export.mixture: no sample of part '{part}', of which it wants {share:g}; "
                f"{_REMEDIES[part]}, or set its share to 0"
            )
    counts = count_samples(shares, available, repeat)
    chosen = [e for p in shares for e in choose(entries[p], counts[p], settings.seed)]
    tokens: Counter[tuple[str, str]] = Counter()
    links: list[tuple[str, str]] = []
    for entry in chosen:
        for row in plain.get(entry.sample_id, ()):
            tokens[row["role"], row.get("source") or ""] += row["end"] - row["start"]
            if row.get("doc_id"):
                links.append((entry.name, row["doc_id"]))
    return Mixture(
        tuple(chosen),
        dict(shares),
        available,
        _documents(store, shards, chosen, links),
        tokens,
        settings,
        tokenizer,
        limit,
    )


_REMEDIES = {
    "constructed": f"materialize {LONG_CONTEXT_SAMPLES.name} of more shards",
    "natural": f"set natural.keep above 0 and materialize {NATURAL_DOCUMENTS.name}",
    "short": "export more shards",
}


def _documents(
    store: TableStore,
    shards: Sequence[str],
    chosen: Sequence[Entry],
    links: Sequence[tuple[str, str]],
) -> pl.DataFrame:
    """sample_id and hash of doc_id of all chosen samples."""
    names = pl.DataFrame(
        [(e.sample_id, e.name) for e in chosen if e.part == "constructed"],
        schema={"sample_id": pl.String, "name": pl.String},
        orient="row",
    )
    own = pl.DataFrame(
        links, schema={"sample_id": pl.String, "doc_id": pl.String}, orient="row"
    ).with_columns(pl.col("doc_id").hash())
    parts = [own]
    for shard in shards:
        rows = store.read(LONG_CONTEXT_SAMPLES, shard, "segments", ["sample_id", "doc_id"])
        documents = (
            rows.drop_nulls().join(names, "sample_id").select("name", pl.col("doc_id").hash())
        )
        parts.append(documents.unique().rename({"name": "sample_id"}))
    return pl.concat(parts)


def samples_by_source(
    mixture: Mixture, split: Split, shards: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Samples per split and source of a part, in the order in which they are written."""
    counts: dict[str, dict[str, int]] = {TRAIN: {}, VALIDATION: {}}
    order = {shard: number for number, shard in enumerate(shards)}
    for entry in sorted(mixture.entries, key=lambda e: (PARTS.index(e.part), order[e.shard])):
        if (side := split.side(entry.name)) is not None:
            source = group_of(domain_of(entry.shard), entry.part)
            counts[side][source] = counts[side].get(source, 0) + 1
    return counts
