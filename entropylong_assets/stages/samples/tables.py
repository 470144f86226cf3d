"""Tables of the stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.storage.schemas import (
    ANCHOR,
    CHUNK_ID,
    DOC_ID,
    END,
    FLOAT,
    IDS,
    INT,
    REASON,
    ROOT_ID,
    SHARD,
    SOURCE,
    START,
    TEXT,
    Summary,
    TableSet,
    column,
)


class LongContextSamplesSummary(Summary):
    """Counts that reconcile: every root and dependency is packed, or dropped with a reason."""

    samples: int
    roots: int
    """Roots of the shard."""
    roots_packed: int
    roots_dropped: dict[str, int]
    """Roots by reason."""
    contexts_dropped: dict[str, int]
    """Contexts of packed roots, by reason."""
    dependencies: int
    """Dependencies that the recipe's rule verified; 0 for a recipe that verifies nothing."""
    dependencies_packed: int
    dependencies_dropped: dict[str, int]
    """Dependencies of dropped roots and contexts, by reason."""
    negatives_available: int
    """Hard negatives of packed roots."""
    negatives_packed: int
    tokens: dict[str, int]
    """Tokens of all samples by role."""
    utilisation: float | None
    """Share of tokens that are not padding; None without samples."""
    tokenizer: TokenizerFacts
    """The scoring model's tokenizer, its padding, and the length of the samples."""


LONG_CONTEXT_SAMPLES = TableSet(
    name="long_context_samples",
    scope="dataset",
    main="samples",
    summary=LongContextSamplesSummary,
    optional=frozenset({"passages"}),
    format_version=4,
    schemas={
        # Passages that no anchor nominated; written only if a recipe takes such, or as fillers.
        "passages": pa.schema(
            [
                CHUNK_ID,
                DOC_ID,
                SHARD,
                SOURCE,
                START,
                END,
                column("text", pa.large_string(), "text of the passage"),
                column("token_ids", IDS, "tokens, the separator's included; a filler can be cut"),
            ]
        ),
        "samples": pa.schema(
            [
                column("sample_id", TEXT, "shard, a dash, number in the shard"),
                column("input_ids", IDS, "tokens of the sample"),
                column("n_root", INT, "tokens in roots", "token"),
                column("n_verified", INT, "tokens in verified contexts", "token"),
                column("n_negative", INT, "tokens in other contexts and fillers", "token"),
                column("n_padding", INT, "tokens of padding, masked from the loss", "token"),
            ]
        ),
        "segments": pa.schema(
            [
                column("sample_id", TEXT, "sample that holds it"),
                column("segment", INT, "number in the sample, from 0"),
                column("role", TEXT, "`bos`, `root`, `padding`, or a context's"),
                column("start", INT, "first position in the sample", "token"),
                column("end", INT, "one past the last position", "token"),
                column("root_id", TEXT, "root that it belongs to", null=True),
                column("doc_id", TEXT, "document that it was cut from", null=True),
                column("chunk_id", TEXT, "passage, if it is a context", null=True),
                column("source", TEXT, "name of the source", null=True),
            ]
        ),
        "dependencies": pa.schema(
            [
                column("sample_id", TEXT, "sample that holds it"),
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("rank", INT, "of the candidate, from 1"),
                column("anchor_position", INT, "of the anchor, in the sample", "token"),
                column("context_start", INT, "of the context, in the sample", "token"),
                column("context_end", INT, "one past the context's end", "token"),
                column("distance", INT, "from the context's end to the anchor", "token"),
                column("gain", pa.float64(), "ΔI"),
                column("calibrated_gain", pa.float64(), "ΔI*", null=True),
                column("entropy", FLOAT, "H_t of the root alone", "nat"),
                column("entropy_context", FLOAT, "H'_t given the context", "nat"),
                column("kind", TEXT, "kind of the dependency; null: no evidence span", null=True),
                column("evidence_start", INT, "of its evidence span", "token", null=True),
                column("evidence_end", INT, "one past the span's end", "token", null=True),
            ]
        ),
        "dropped": pa.schema(
            [
                ROOT_ID,
                column("chunk_id", TEXT, "context; null: the whole root", null=True),
                REASON,
                column("n_dependencies", INT, "verified dependencies dropped with it"),
            ]
        ),
    },
)
