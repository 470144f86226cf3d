"""Split samples into train and validation so that no document is in both.

Samples that share a document, as root or context, are linked; a connected component of samples
goes into one split as a whole. On a large corpus a few popular passages link most samples into one
component. Then there is a validation split only if samples between the two splits are left out;
`max_left_out` limits how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.samples.ordering import hash_key

TRAIN, VALIDATION = "train", "validation"

_EDGES_AT_ONCE = 1 << 20
"""Links of samples to documents that are sorted at once."""

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


def split_of(path: str) -> str:
    """The split of a file `<split>-<anything>`."""
    return path.partition("-")[0]


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


def _components(
    sample_E: NDArray[Any], document_E: NDArray[np.uint64], n: int
) -> NDArray[np.int64]:
    """The number of the connected component of each of `n` samples; E are edges to documents.

    The documents are taken in parts, so that little memory is needed beside the edges.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels_N = np.arange(n)
    bits = 1 + min(7, (len(sample_E) // _EDGES_AT_ONCE).bit_length())
    part_E = np.empty(len(document_E), np.uint8)  # the highest bits of a document's hash
    np.right_shift(document_E, np.uint64(64 - bits), out=part_E, casting="unsafe")
    for part in range(1 << bits):
        mine_E = part_E == part
        order = np.argsort(document_E[mine_E], kind="stable")
        samples, documents = sample_E[mine_E][order], document_E[mine_E][order]
        linked = documents[1:] == documents[:-1]
        # Links found before are kept as one to the first sample of each component.
        first_N = np.unique(labels_N, return_index=True)[1][labels_N]
        rows = np.concatenate([np.arange(n), samples[:-1][linked]])
        columns = np.concatenate([first_N, samples[1:][linked]])
        edges = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n))
        labels_N = connected_components(edges, directed=False)[1]
    return labels_N


def _incidence(sample_E: NDArray[Any], document_E: NDArray[np.uint64], n: int) -> tuple[Any, Any]:
    """Sparse matrices [samples, documents] and [documents, samples] of ones."""
    from scipy.sparse import csr_array

    number_E = np.unique(document_E, return_inverse=True)[1].astype(np.int32)
    ones_E, n_documents = np.ones(len(sample_E), np.int32), int(number_E.max()) + 1
    sample_E = sample_E.astype(np.int32)
    return (
        csr_array((ones_E, (sample_E, number_E)), shape=(n, n_documents)),
        csr_array((ones_E, (number_E, sample_E)), shape=(n_documents, n)),
    )


def split_samples(
    documents: pl.DataFrame, fraction: float, seed: int, max_left_out: float = 0.0
) -> Split:
    """Hold out at most `fraction` of the samples.

    documents: sample_id and doc_id (or its hash) of every root and context, verified or not. Whole
    components are held out first. If they are too few, single samples follow, those with the
    fewest links first; the samples linked to them are left out of both splits, up to the share
    `max_left_out`. The same rows in any order give the same split.
    """
    names = documents["sample_id"].unique().cast(pl.String).sort()
    if names.is_empty():
        return Split(frozenset(), frozenset(), 0, 0, 0)
    n, ids = len(names), names.to_list()
    sample_E = documents["sample_id"].cast(pl.Enum(names)).to_physical().to_numpy()
    of_document = documents["doc_id"]
    document_E = (of_document if of_document.dtype == pl.UInt64 else of_document.hash()).to_numpy()
    labels_N = _components(sample_E, document_E, n)
    labels = labels_N.tolist()
    wanted, budget = int(fraction * n), int(max_left_out * n)
    held = _whole_components(ids, labels, wanted, seed)
    left_out: set[int] = set()

    if len(held) < wanted and budget:
        documents_of, samples_of = _incidence(sample_E, document_E, n)
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
    sizes = np.bincount(labels_N)
    return Split(
        validation=frozenset(ids[s] for s in held),
        left_out=frozenset(ids[s] for s in left_out),
        samples=n,
        components=len(sizes),
        largest_component=int(sizes.max()),
    )
