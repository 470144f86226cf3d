"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from entropylong_assets.stages.diversity import Spread
from entropylong_assets.storage.schemas import (
    ANCHOR,
    BOOL,
    CHUNK_ID,
    DOC_ID,
    END,
    FLOAT,
    IDS,
    INT,
    NAMES,
    ROOT_ID,
    SHARD,
    SOURCE,
    START,
    TEXT,
    Summary,
    TableSet,
    column,
)

TEXT_FIELDS = (
    column("word", TEXT, "word at the anchor", null=True),
    column("anchor_kind", TEXT, "kind of the anchor's line or token", null=True),
    column("phrase_documents", INT, "documents with the three words that end with it", null=True),
    column("pair_documents", INT, "documents with the word and the next", null=True),
    column("counted_documents", INT, "documents in which phrases were counted", null=True),
    column("has_word", BOOL, "whether the context contains the word", null=True),
)
"""What is known of the text of a pair. All but has_word belong to the anchor. Numbers are null if
no documents were counted."""


class FalseAcceptance(BaseModel):
    """Share of (anchor, control) pairs that a rule accepts, with its 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    low: float
    high: float
    is_rough: bool = False
    """Too few roots for the correlation of their trials to be estimated: one was assumed."""


class VerifiedDependenciesSummary(Summary):
    """Counts and figures of one partition of `verified_dependencies`."""

    pairs: int
    """(anchor, candidate) pairs."""
    pairs_scored: int
    """Pairs whose context was scored; the verdict of the others says why not."""
    contexts_scored: int
    """Distinct (root, chunk) scored: anchors of a root share a forward pass."""
    accepted: int
    """Pairs that the rule in force accepts."""
    accepted_by: dict[str, int]
    """Pairs that each evaluated rule accepts."""
    mean_gain: float | None
    """Mean ΔI of the accepted pairs; None if there are none."""
    mean_calibrated_gain: float | None
    """Mean ΔI* of the accepted pairs that have one."""
    diversity: dict[str, Spread] = Field(default_factory=dict)
    """How the accepted pairs are spread over `anchors`, `roots`, `contexts` and `documents`; empty
    if there are none."""
    verdicts: dict[str, int]
    """Pairs by verdict."""
    control_trials: int
    """(anchor, control) pairs, each judged like a candidate against the other controls."""
    false_acceptance: dict[str, FalseAcceptance]
    """Share of the control trials that each evaluated rule accepts; empty without trials."""
    forward_tokens: int
    """Tokens of candidates and controls that went through the scoring model, in either
    arithmetic."""
    evidence_tokens: int = 0
    """Tokens that went through the scoring model to find evidence spans."""
    dependencies_by_kind: dict[str, int] = Field(default_factory=dict)
    """Accepted pairs by kind; empty without evidence spans."""
    evidence_kept: float | None = None
    """Median share of the gain that an evidence span alone keeps; None if there are none."""
    evidence_removed: float | None = None
    """Median share of the gain that is removed with an evidence span."""
    model: str
    """Identity of the scoring model: reference, content hash and dtype."""
    vocab_size: int
    """Entries of the scoring model's vocabulary, |V|."""
    screen: dict[str, float] | None
    """Counts of the screen, with its recall and precision; None without a screen."""


VERIFIED_DEPENDENCIES = TableSet(
    name="verified_dependencies",
    scope="dataset",
    main="pairs",
    summary=VerifiedDependenciesSummary,
    format_version=4,
    schemas={
        "pairs": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("rank", INT, "of the candidate, from 1"),
                CHUNK_ID,
                column("similarity", FLOAT, "cosine of query and chunk"),
                *TEXT_FIELDS,
                column("entropy", FLOAT, "H_t of the root alone", "nat"),
                column("entropy_context", FLOAT, "H'_t given the context", "nat", null=True),
                column(
                    "entropy_control", FLOAT, "H^c_t, mean given the controls", "nat", null=True
                ),
                column("surprisal", FLOAT, "I(x_t) of the root alone", "nat"),
                column("surprisal_context", FLOAT, "I(x_t) given the context", "nat", null=True),
                column("surprisal_control", FLOAT, "mean I(x_t) given the controls", "nat", True),
                column("gain", pa.float64(), "ΔI = (H - H') / H", null=True),
                column("calibrated_gain", pa.float64(), "ΔI* = (min(H, H^c) - H') / H", null=True),
                column("accepted_by", NAMES, "evaluated rules that accept the pair"),
                column("accepted", BOOL, "whether the rule in force accepts it"),
                column("verdict", TEXT, "`accepted`, or the reason of the rejection"),
            ]
        ),
        "evidence": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("kind", TEXT, "kind of the dependency (evidence_kinds.py)"),
                column("start", INT, "first character of the span in the chunk"),
                column("end", INT, "one past its last character"),
                column("token_start", INT, "first token of the span in the context", "token"),
                column("token_end", INT, "one past its last token", "token"),
                column("measure", TEXT, "gain measured: `surprisal` or `entropy`"),
                column("kept", FLOAT, "share of the gain that the span alone keeps", null=True),
                column("removed", FLOAT, "share of the gain removed with the span", null=True),
            ]
        ),
        "contexts": pa.schema(
            [
                CHUNK_ID,
                DOC_ID,
                SHARD,
                SOURCE,
                START,
                END,
                column("token_ids", IDS, "tokens as scored, including the separator's"),
            ]
        ),
        "controls": pa.schema(
            [
                ROOT_ID,
                column("control", INT, "number of the control context, from 0"),
                ANCHOR,
                column("has_word", BOOL, "whether the control contains the word", null=True),
                column("entropy", FLOAT, "H of the anchor given this control", "nat"),
                column("surprisal", FLOAT, "I(x_t) given this control", "nat"),
            ]
        ),
        "control_contexts": pa.schema(
            [
                ROOT_ID,
                column("control", INT, "number of the control context, from 0"),
                column("chunk_ids", NAMES, "chunks that it was cut from"),
                column("token_ids", IDS, "tokens as scored, including the separator's"),
            ]
        ),
    },
)
