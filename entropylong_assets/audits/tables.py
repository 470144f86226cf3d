"""Tables of the audits, and the summaries of their partitions."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from entropylong_assets.stages.verification.tables import TEXT_FIELDS
from entropylong_assets.storage.schemas import (
    ANCHOR,
    BOOL,
    CHUNK_ID,
    FLOAT,
    INT,
    NAMES,
    REASON,
    ROOT_ID,
    TEXT,
    Summary,
    TableSet,
    column,
    entropy_and_surprisal,
)

_DOUBLE = pa.float64()
_KIND = "kind of context"
_RECIPE = column("recipe", TEXT, "recipe that chose the root's contexts")


class NullCalibrationSummary(Summary):
    """Counts and rates of one partition of `null_calibration`."""

    roots: int
    """Roots audited."""
    trials: int
    """Scored (anchor, held-out control) pairs."""
    forward_tokens: int
    """Tokens of all forward passes."""
    accepted: dict[str, float]
    """Share that the rule in force accepts, by kind of context: `retrieved`, `random`, `topical`,
    `shuffled`. Kinds without trials are missing."""
    accepted_low: dict[str, float]
    """Lower ends of the 95% intervals of `accepted`."""
    accepted_high: dict[str, float]
    """Upper ends of the 95% intervals of `accepted`."""
    accepted_is_rough: dict[str, bool]
    """Whether these intervals are rough: few roots, so that their correlation was assumed."""
    lift: float | None
    """Acceptance of retrieved over that of random contexts; None if no random context passed."""
    lift_low: float | None
    """Lower end of its 95% interval."""
    lift_high: float | None
    """Upper end of its 95% interval; None: not bounded."""
    epsilon_for_rate: float | None
    """Least ε at which at most `audit.wished_false_acceptance` of the random contexts pass; None:
    any ε does, or the rule judges by no gain."""
    epsilon_low: float | None
    """Lower end of its 95% interval; None: any ε does."""
    epsilon_high: float | None
    """Upper end of its 95% interval; None: any ε does."""


NULL_CALIBRATION = TableSet(
    name="null_calibration",
    scope="dataset",
    main="rates",
    summary=NullCalibrationSummary,
    format_version=5,
    schemas={
        "trials": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("kind", TEXT, f"{_KIND}: `random`, `topical`, `shuffled`"),
                column("number", INT, "of the held-out control, from 0"),
                column("chunk_ids", NAMES, "chunks that it was made of"),
                column("n_tokens", INT, "its length", "token"),
                column("entropy", FLOAT, "H_t of the root alone", "nat"),
                column("entropy_context", FLOAT, "H'_t given the held-out control", "nat"),
                column("entropy_control", FLOAT, "stored H^c_t", "nat", True),
                column("surprisal", FLOAT, "I(x_t) of the root alone", "nat"),
                column("surprisal_context", FLOAT, "I(x_t) given the held-out control", "nat"),
                column("surprisal_control", FLOAT, "stored mean I(x_t)", "nat", True),
                *TEXT_FIELDS,
                column("gain", _DOUBLE, "ΔI", null=True),
                column("calibrated_gain", _DOUBLE, "ΔI*", null=True),
                column("accepted_by", NAMES, "compared rules that accept it"),
            ]
        ),
        "rates": pa.schema(
            [
                column("kind", TEXT, f"{_KIND}: `retrieved`, `random`, `topical`, `shuffled`"),
                column("rule", TEXT, "compared rule"),
                column("passed", INT, "trials that pass", "trial"),
                column("total", INT, "trials", "trial"),
                column("rate", _DOUBLE, "their share", null=True),
                column("low", _DOUBLE, "of the 95% interval"),
                column("high", _DOUBLE, "of the 95% interval"),
                column("is_rough", BOOL, "few roots: their trials' correlation was assumed"),
            ]
        ),
    },
)


class CrossModelAuditSummary(Summary):
    """Counts and shares of one partition of `cross_model_audit`.

    A group of pairs has the names of the compared rules that accept them, or `none`.
    """

    second_model: str | None = None
    """Identity of the second model."""
    skipped: str | None = None
    """Why there was no audit."""
    pairs: int = 0
    """Pairs scored by the second model."""
    dropped: int = 0
    """Chosen pairs that it could not score."""
    forward_tokens: int = 0
    """Tokens of all forward passes."""
    pairs_by_group: dict[str, int] = Field(default_factory=dict)
    """Pairs scored, by group."""
    holds: dict[str, float] = Field(default_factory=dict)
    """Share of pairs whose gain exceeds ε in the second model too, by group."""
    holds_low: dict[str, float] = Field(default_factory=dict)
    """Lower ends of the 95% intervals of `holds`."""
    holds_high: dict[str, float] = Field(default_factory=dict)
    """Upper ends of the 95% intervals of `holds`."""
    surprisal_drop: dict[str, float] = Field(default_factory=dict)
    """Mean drop of the second model's surprisal given the context, by group (nats)."""
    surprisal_drop_low: dict[str, float] = Field(default_factory=dict)
    """Lower ends of its 95% intervals; groups of a single root are missing (nats)."""
    surprisal_drop_high: dict[str, float] = Field(default_factory=dict)
    """Upper ends of its 95% intervals; groups of a single root are missing (nats)."""
    gain_rank_correlation: float | None = None
    """Rank correlation (Spearman) of the gains of both models."""


CROSS_MODEL_AUDIT = TableSet(
    name="cross_model_audit",
    scope="dataset",
    main="pairs",
    summary=CrossModelAuditSummary,
    format_version=3,
    schemas={
        "pairs": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("accepted_by", NAMES, "compared rules that accept it, by the first model"),
                column("gain", _DOUBLE, "ΔI of the first model"),
                column("surprisal_drop", _DOUBLE, "of x_t, the first model's", "nat"),
                column("second_entropy", FLOAT, "H of the second model, root alone", "nat"),
                column("second_entropy_context", FLOAT, "H' of the second model", "nat"),
                column("second_surprisal", FLOAT, "I of its token there, root alone", "nat"),
                column("second_surprisal_context", FLOAT, "I given the context", "nat"),
                column("second_gain", _DOUBLE, "ΔI of the second model", null=True),
                column("holds", BOOL, "ΔI of the second model > ε"),
            ]
        ),
        "dropped": pa.schema([ROOT_ID, ANCHOR, CHUNK_ID, REASON]),
    },
)


class LongRangeAuditSummary(Summary):
    """Counts of one partition of `long_range_audit`."""

    roots: int
    """Roots with at least one window."""
    windows: int
    """Windows scored: one per root and recipe."""
    windows_too_long: int
    """Windows left out: too long for the model, or too few random chunks to compare with."""
    sequences: int
    """Different sequences scored."""
    forward_tokens: int
    """Tokens of all forward passes."""


LONG_RANGE_AUDIT = TableSet(
    name="long_range_audit",
    scope="dataset",
    main="recipes",
    summary=LongRangeAuditSummary,
    format_version=2,
    schemas={
        "anchors": pa.schema(
            [_RECIPE, ROOT_ID, ANCHOR, *entropy_and_surprisal(("in_place", "random"))]
        ),
        "windows": pa.schema(
            [
                _RECIPE,
                ROOT_ID,
                column("window_tokens", INT, "contexts and root", "token"),
                column("context_tokens", INT, "contexts", "token"),
                column("root_tokens", INT, "root", "token"),
                column("short_tokens", INT, "short window of the key tokens", "token"),
                column("key_tokens", INT, "LongPPL's key tokens of the root", "token"),
                column("segment_pairs", INT, "pairs of segments scored"),
                column("dependency_score", FLOAT, "mean relative drop of their loss", null=True),
            ]
        ),
        "dependencies": pa.schema(
            [
                _RECIPE,
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("distance", INT, "from the context's end to the anchor", "token"),
                *entropy_and_surprisal(("near", "in_place", "replaced")),
            ]
        ),
        "recipes": pa.schema(
            [
                _RECIPE,
                column("measure", TEXT, "what was averaged"),
                column("value", _DOUBLE, "its mean", null=True),
                column("low", _DOUBLE, "of the 95% interval", null=True),
                column("high", _DOUBLE, "of the 95% interval", null=True),
                column("trials", INT, "values"),
                column("roots", INT, "clusters"),
            ]
        ),
    },
)
