"""Tables of this stage, and the summary of an export."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from entropylong_assets.stages.diversity import Spread
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.storage.schemas import (
    REASON,
    TEXT,
    Summary,
    TableSet,
    column,
)


class FalseAcceptanceRate(BaseModel):
    """Share of held-out controls that a rule accepts, with its 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    low: float
    high: float
    trials: int
    """(anchor, control) pairs judged."""
    is_rough: bool = False
    """Whether there are too few roots to estimate the correlation of their trials, so that it was
    assumed."""


class TrainingDatasetSummary(Summary):
    """The export that was made last, and its figures.

    Shares are from 0 to 1, gains as in the tables, distances in tokens. A figure is None if it
    can't be computed, e.g. the calibrated gain without controls.
    """

    version: str
    """Name of the export's folder; `destination.export_uri` returns its URI."""
    formats: tuple[str, ...]
    """Formats that the samples are written in."""
    splits: dict[str, int]
    """Samples per split."""
    left_out_of_splits: int
    """Samples in neither split, because they share documents with both."""
    files: int
    """Files of the export, without its manifest."""
    bytes: int
    """Bytes of these files."""
    reused: bool
    """Whether the same export existed already and was kept."""
    model: str
    """Identity of the scoring model."""
    tokenizer: TokenizerFacts
    """Its tokenizer, the padding, and the length of the samples."""
    shards: int
    """Shards exported."""
    shards_left_out: int
    """Shards not exported; the table `left_out` has the reasons."""
    samples: int
    """Samples of the exported shards."""
    tokens: int
    """Tokens of these samples."""
    documents: int
    """Documents of the exported shards."""
    roots_scored: int
    """Roots of the exported shards."""
    anchors: int
    """High-entropy positions of these roots."""
    dependencies: int
    """Verified dependencies in the samples."""
    dependencies_by_kind: dict[str, int]
    """Those with an evidence span, by kind."""
    near_duplicates_refused: int
    """Candidates that the leak check rejected."""
    acceptance_rate: float | None
    """Share of scored pairs that the rule accepted."""
    mean_gain: float | None
    """Mean ΔI of accepted pairs."""
    mean_calibrated_gain: float | None
    """Mean ΔI* of accepted pairs."""
    mean_surprisal_drop_nats: float | None
    """Mean drop of the true token's surprisal in accepted pairs (nats)."""
    accepted_with_surprisal_rise: float | None
    """Share of accepted pairs whose true token became less likely."""
    dependencies_per_root: dict[str, float | None]
    """Mean, median and maximum."""
    distance_tokens: dict[str, float | None]
    """Distance of dependencies: median, 90th percentile, maximum, shares beyond 32K and 64K."""
    share_by_role: dict[str, float]
    """Share of tokens per role in the sample."""
    tokens_by_source: dict[str, int]
    """Tokens per source."""
    licenses: dict[str, dict[str, int]]
    """Documents per source and licence."""
    diversity: dict[str, Spread] = Field(default_factory=dict)
    """How the dependencies in the samples are spread over `anchors`, `roots`, `contexts` and
    `documents`; empty if there are none."""
    false_acceptance: dict[str, FalseAcceptanceRate]
    """By evaluated rule; empty without controls."""


TRAINING_DATASET = TableSet(
    name="training_dataset",
    scope="dataset",
    main="shards",
    summary=TrainingDatasetSummary,
    format_version=3,
    schemas={
        "shards": pa.schema(
            [
                column("shard", TEXT, "exported shard"),
                column("data_version", TEXT, "version of its samples"),
                column("n_samples", pa.int64(), "samples of the shard", "row"),
                column("export", TEXT, "version of the export that contains them"),
            ]
        ),
        "left_out": pa.schema(
            [
                column("shard", TEXT, "shard that is not exported"),
                REASON,
            ]
        ),
    },
)
