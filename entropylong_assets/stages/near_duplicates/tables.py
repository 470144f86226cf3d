"""Tables of `document_signatures` and `near_duplicates`, and the summaries of their partitions."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    DOC_ID,
    FLOAT,
    IDS,
    INT,
    SOURCE,
    TEXT,
    Summary,
    TableSet,
    column,
)


class DocumentSignaturesSummary(Summary):
    """Counts of one shard."""

    documents: int
    """Documents with a signature."""
    not_compared: int
    """Documents without a letter or digit; all, if there is no threshold."""
    shingles: int
    """Distinct shingles, summed over the documents."""


DOCUMENT_SIGNATURES = TableSet(
    name="document_signatures",
    scope="corpus",
    main="signatures",
    summary=DocumentSignaturesSummary,
    schemas={
        "signatures": pa.schema(
            [
                DOC_ID,
                SOURCE,
                column("n_shingles", INT, "distinct shingles of the document"),
                column("signature", IDS, "smallest hash of the shingles under each permutation"),
            ]
        ),
    },
)


class NearDuplicatesSummary(Summary):
    """Counts over all shards, and how they were compared."""

    documents: int
    """Distinct documents with a signature."""
    candidate_pairs: int
    """Pairs that share a band of their signatures, whose shingles were compared."""
    pairs: int
    """Of these, pairs at or above the threshold."""
    clusters: int
    """Groups of documents that such pairs connect."""
    members: int
    """Documents of the clusters other than their representatives: not roots, and not indexed."""
    bands: int
    """Bands of a signature; 0 if documents are not compared."""
    rows_per_band: int
    """Permutations per band."""


NEAR_DUPLICATES = TableSet(
    name="near_duplicates",
    scope="corpus",
    main="members",
    summary=NearDuplicatesSummary,
    schemas={
        "members": pa.schema(
            [
                DOC_ID,
                SOURCE,
                column("representative", TEXT, "doc_id that stands for the cluster: the smallest"),
                column("similarity", FLOAT, "Jaccard of the shingles with the representative's"),
                column("cluster_size", INT, "documents of the cluster, representative included"),
            ]
        ),
        "sources": pa.schema(
            [
                SOURCE,
                column("threshold", FLOAT, "threshold for two documents of this source"),
                column("documents", pa.int64(), "distinct documents with a signature"),
                column("members", pa.int64(), "members of clusters, without representatives"),
            ]
        ),
    },
)
