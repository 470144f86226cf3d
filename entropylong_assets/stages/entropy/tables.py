"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    FLOATS,
    IDS,
    INT,
    INTS,
    REASON,
    ROOT_ID,
    Summary,
    TableSet,
    column,
)


class EntropyScoresSummary(Summary):
    """Counts of one partition of `entropy_scores`.

    documents = not_drawn + drawn; drawn = roots + dropped.
    """

    documents: int
    """Documents of the shard."""
    not_drawn: int
    """Documents that the draw of roots did not select."""
    drawn: int
    """Documents that the draw of roots selected."""
    roots: int
    """Roots scored."""
    dropped: dict[str, int]
    """Drawn documents that are no roots, by reason."""
    anchors: int
    """Anchors of all roots."""
    anchors_by_surprisal: int = 0
    """Those of them that their surprisal alone makes anchors."""
    forward_tokens: int
    """Tokens that went through the scoring model."""
    model: str
    """Identity of the scoring model: reference, content hash and dtype."""
    vocab_size: int
    """Entries of the scoring model's vocabulary, |V|."""


ENTROPY_SCORES = TableSet(
    name="entropy_scores",
    scope="dataset",
    main="roots",
    summary=EntropyScoresSummary,
    format_version=3,
    schemas={
        "roots": pa.schema(
            [
                ROOT_ID,
                column("token_ids", IDS, "tokens of the scoring model, without special tokens"),
                column("entropies", FLOATS, "H_t; null where no prefix exists", "nat"),
                column("surprisals", FLOATS, "I(x_t); null where no prefix exists", "nat"),
                column("mean", pa.float64(), "μ of the entropies", "nat"),
                column("std", pa.float64(), "σ of the entropies", "nat"),
                column("threshold", pa.float64(), "τ = μ + α·σ", "nat"),
                column("surprisal_mean", pa.float64(), "μ of the surprisals", "nat"),
                column("surprisal_std", pa.float64(), "σ of the surprisals", "nat"),
                column("anchors", INTS, "positions with H_t > τ, or by surprisal", "token"),
                column("by_surprisal", INTS, "anchors with H_t ≤ τ, by surprisal", "token"),
            ]
        ),
        "dropped": pa.schema(
            [ROOT_ID, REASON, column("n_tokens", INT, "length for the scoring model", "token")]
        ),
    },
)
