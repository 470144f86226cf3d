"""Tables of `natural_documents`, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from entropylong_assets.storage.schemas import (
    DOC_ID,
    FLOAT,
    IDS,
    INT,
    REASON,
    SOURCE,
    TEXT,
    Summary,
    TableSet,
    column,
)


class NaturalDocumentsSummary(Summary):
    """Counts of one shard.

    documents = short + dropped + cut; windows = kept + not_kept; tokens = tokens_in_windows +
    tokens_dropped. All are 0 if `natural.keep` is 0.
    """

    documents: int = 0
    """Documents read."""
    short: int = 0
    """Documents of fewer than `natural.min_tokens` tokens."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Long documents that were not cut, by reason."""
    cut: int = 0
    """Documents cut into windows."""
    tokens: int = 0
    """Tokens of these documents."""
    tokens_dropped: int = 0
    """Tokens of them before, between and after the windows."""
    windows: int = 0
    """Windows scored."""
    not_kept: dict[str, int] = Field(default_factory=dict)
    """Windows that are not kept, by reason."""
    kept: int = 0
    """Windows kept, each a sample."""
    lowest_gain: float | None = None
    """Information gain of the last window kept (nats); None if none is kept."""
    long_tokens: int = 0
    """Length of the long window: that of a sample, or less if the model can't read a whole one."""
    short_tokens: int = 0
    """Length of the short window."""
    key_tokens: int = 0
    """Tokens of kept windows that need more than the short window."""
    key_tokens_located: int = 0
    """Number of these tokens that also occur earlier in the window, before the short window."""
    forward_tokens: int = 0
    """Tokens that went through the scoring model."""
    model: str = ""
    """Identity of the scoring model."""


_WINDOW_ID = column("window_id", TEXT, "document, a dash, number of the window in the document")

NATURAL_DOCUMENTS = TableSet(
    name="natural_documents",
    scope="dataset",
    main="windows",
    summary=NaturalDocumentsSummary,
    schemas={
        "windows": pa.schema(
            [
                _WINDOW_ID,
                DOC_ID,
                SOURCE,
                column("start", INT, "first token in the document", "token"),
                column("end", INT, "one past the last token", "token"),
                column("gain", pa.float64(), "mean of exp(-L_long)·(L_short - L_long)", "nat"),
                column("surprisal_long", FLOAT, "mean in the long window", "nat"),
                column("surprisal_short", FLOAT, "mean in the short window", "nat"),
                column("gzip_ratio", pa.float64(), "compressed by uncompressed bytes of the text"),
                column("key_tokens", INT, "tokens that need more than the short window"),
                column("reason", TEXT, "why it is not kept; null: it is kept", null=True),
            ]
        ),
        "samples": pa.schema(
            [
                _WINDOW_ID,
                DOC_ID,
                SOURCE,
                column("start", INT, "first token in the document", "token"),
                column("input_ids", IDS, "BOS, if the model has one, and the tokens of the window"),
            ]
        ),
        "evidence": pa.schema(
            [
                _WINDOW_ID,
                column("position", INT, "of a key token in the sample", "token"),
                column("surprisal_long", FLOAT, "-ln p given the long window", "nat"),
                column("surprisal_short", FLOAT, "-ln p given the short window", "nat"),
                column("short_start", INT, "first position of its short window", "token"),
                column("found_at", INT, "where the n-gram ended earlier", "token", True),
                column("ngram_tokens", INT, "length of the n-gram found", "token", True),
            ]
        ),
        "dropped": pa.schema(
            [DOC_ID, REASON, column("n_tokens", INT, "length for the scoring model", "token")]
        ),
    },
)
