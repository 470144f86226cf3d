"""Split samples into train and validation so that no document is in both.

Samples that share a document, as root or context, are linked; a connected component of samples
goes into one split as a whole. On a large corpus a few popular passages link most samples into one
component. Then there is a validation split only if samples between the two splits are left out;
`max_left_out` limits how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from entropylong_assets.stages.samples.ordering import hash_key

TRAIN, VALIDATION = "train", "validation"

_TRIES_PER_SAMPLE = 50
"""Samples tried per sample to hold out, before fewer are held out."""


@dataclass(frozen=True)
class Split:
    """Which samples are held out or left out; all others are in train."""

    validation: frozenset[str]
    """Ids of the samples held out."""
    left_out: frozenset[str]
    """Ids of the samples in neither split."""
    samples: int
    """Number of all samples."""
    components: int
    """Number of connected components of samples."""
    largest_component: int
    """Samples in the largest one."""

    def side(self, sample_id: str) -> str | None:
        """The split of a sample; None if it is left out."""
        if sample_id in self.left_out:
            return None
        return VALIDATION if sample_id in self.validation else TRAIN


def _whole_components(names: list[str], labels: list[int], room: int, seed: int) -> set[int]:
    """Samples of whole components, taken in an order by hash, as long as they fit."""
    members: dict[int, list[int]] = {}
    for sample, label in enumerate(labels):
        members.setdefault(label, []).append(sample)

    def key(samples: list[int]) -> bytes:
        return hash_key(seed, "validation", names[samples[0]])

    held: set[int] = set()
    for samples in sorted(members.values(), key=key):
        if len(held) + len(samples) <= room:
            held.update(samples)
    return held


def split_samples(
    documents: pl.DataFrame, fraction: float, seed: int, max_left_out: float = 0.0
) -> Split:
    """Hold out at most `fraction` of the samples.

    documents: sample_id and doc_id (or its hash) of every root and context, verified or not. Whole
    components are held out first. If they are too few, single samples follow, those with the
    fewest links first; the samples linked to them are left out of both splits, up to the share
    `max_left_out`. The same rows in any order give the same split.
    """
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import connected_components

    names = documents["sample_id"].unique().cast(pl.String).sort()
    if names.is_empty():
        return Split(frozenset(), frozenset(), 0, 0, 0)
    n, ids = len(names), names.to_list()
    sample_E = documents["sample_id"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    document_E = documents["doc_id"].rank("dense").to_numpy().astype(np.int64) - 1
    ones_E, n_documents = np.ones(len(sample_E), np.int64), int(document_E.max()) + 1
    size = n + n_documents
    edges = coo_array((ones_E, (sample_E, n + document_E)), shape=(size, size))
    labels = connected_components(edges, directed=False)[1][:n].tolist()
    wanted, budget = int(fraction * n), int(max_left_out * n)
    held = _whole_components(ids, labels, wanted, seed)
    left_out: set[int] = set()

    if len(held) < wanted and budget:
        documents_of = csr_array((ones_E, (sample_E, document_E)), shape=(n, n_documents))
        samples_of = csr_array((ones_E, (document_E, sample_E)), shape=(n_documents, n))
        links = documents_of @ np.diff(samples_of.indptr)  # counts a sample once per document
        keys = [hash_key(seed, "validation", name) for name in ids]
        order = sorted(range(n), key=lambda s: (links[s], keys[s]))
        for sample in order[: _TRIES_PER_SAMPLE * wanted]:
            if len(held) == wanted:
                break
            mine = documents_of.indices[slice(*documents_of.indptr[sample : sample + 2])]
            linked = set(samples_of[mine].indices.tolist())
            cost = (left_out | linked) - held - {sample}
            if sample not in held and len(cost) <= budget:
                held.add(sample)
                left_out = cost
    sizes = np.bincount(labels)
    return Split(
        validation=frozenset(ids[s] for s in held),
        left_out=frozenset(ids[s] for s in left_out),
        samples=n,
        components=len(sizes),
        largest_component=int(sizes.max()),
    )
