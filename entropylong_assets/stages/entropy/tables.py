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
    """High-entropy positions of all roots."""
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
    format_version=2,
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
                column("anchors", INTS, "positions with H_t > τ", "token"),
            ]
        ),
        "dropped": pa.schema(
            [ROOT_ID, REASON, column("n_tokens", INT, "length for the scoring model", "token")]
        ),
    },
)
