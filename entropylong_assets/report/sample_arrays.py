"""Choices from a sample of documents, and the sample as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from entropylong_assets.report.document_sample import SampledDocument, SourceSample, hash_of
from entropylong_assets.report.replicates import Rows
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.roots import drawn_share, is_drawn, root_hash

MIN_ROOTS = 6


@dataclass(frozen=True)
class Lengths:
    """Tokens of the sampled documents, and which of them can be roots."""

    tokens: Mapping[str, int]
    """Length of each document in tokens of the scoring model."""
    eligible: frozenset[str]
    """Documents whose length is within the limits of roots."""
    corpus_rows: Mapping[str, int]
    """Rows of the corpus when a shard was registered, by shard."""


def share_of(settings: Settings, source: SourceSample, lengths: Lengths) -> float:
    """Share of a source's documents that are drawn; shards of later scans have a lower one."""
    shares = [
        n * drawn_share(settings.roots, source.source, lengths.corpus_rows[shard])
        for shard, n in source.chosen.items()
    ]
    return sum(shares) / max(source.chosen_rows, 1)


def choose_roots(
    settings: Settings,
    sources: Sequence[SourceSample],
    lengths: Lengths,
    limits: tuple[int, int],
) -> list[SampledDocument]:
    """Return the roots to measure: of each source in proportion to its roots.

    They are chosen by the hash that the draw uses, so that roots of a real run are among them.
    limits: maximum number of roots, and of their tokens; at least `MIN_ROOTS` are chosen.
    """
    ordered: list[tuple[float, SampledDocument]] = []
    for source in sources:
        share = share_of(settings, source, lengths) * source.weight
        if share:
            ordered += [
                (root_hash(d.doc_id, settings.seed) / share, d)
                for d in source.all_documents()
                if d.doc_id in lengths.eligible
            ]
    ordered.sort(key=lambda pair: (pair[0], pair[1].doc_id))
    chosen: list[SampledDocument] = []
    total = 0
    for _, document in ordered[: limits[0]]:
        total += lengths.tokens[document.doc_id]
        if total > limits[1] and len(chosen) >= MIN_ROOTS:
            break
        chosen.append(document)
    return chosen


def choose_pool(
    sources: Sequence[SourceSample], root_ids: set[str], max_chars: int
) -> list[SampledDocument]:
    """Return the documents of the trial: the roots, and others by hash up to the limit."""
    documents = [(source.weight, d) for source in sources for d in source.all_documents()]
    roots = [d for _, d in documents if d.doc_id in root_ids]
    room = max_chars - sum(len(d.text) for d in roots)
    others = sorted(
        (
            (hash_of("pool", d.doc_id) / weight, d)
            for weight, d in documents
            if d.doc_id not in root_ids
        ),
        key=lambda pair: (pair[0], pair[1].doc_id),
    )
    pool = roots
    for _, document in others:
        room -= len(document.text)
        if room < 0:
            break
        pool.append(document)
    return pool


def make_rows(
    settings: Settings,
    sources: Sequence[SourceSample],
    lengths: Lengths,
    measured: dict[str, int],
) -> tuple[Rows, ...]:
    """Return the chosen rows as arrays. measured: row of each measured root, by its id."""
    result = []
    for source in sources:
        share = share_of(settings, source, lengths)
        shards, documents = [], list[SampledDocument | None]()
        for number, (shard, n) in enumerate(source.chosen.items()):
            of_shard = source.documents.get(shard, [])
            documents += [*of_shard, *[None] * (n - len(of_shard))]
            shards += [number] * max(n, len(of_shard))
        result.append(
            Rows(
                source_rows=source.rows,
                source_shards=source.shards,
                is_complete=source.is_complete,
                share=share,
                shard=np.array(shards, np.int64),
                is_document=np.array([float(d is not None) for d in documents]),
                chars=np.array([float(len(d.text)) if d else 0.0 for d in documents]),
                tokens=np.array(
                    [
                        float(lengths.tokens[d.doc_id])
                        if d and d.doc_id in lengths.eligible and share
                        else 0.0
                        for d in documents
                    ]
                ),
                is_drawn=np.array(
                    [
                        d is not None
                        and is_drawn(
                            d.doc_id,
                            settings.seed,
                            drawn_share(
                                settings.roots, source.source, lengths.corpus_rows[d.shard]
                            ),
                        )
                        for d in documents
                    ],
                    np.bool_,
                ),
                measured=np.array(
                    [measured.get(d.doc_id, -1) if d else -1 for d in documents], np.int64
                ),
            )
        )
    return tuple(result)
