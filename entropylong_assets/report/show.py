"""A sample as text: its segments and its strongest dependencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from entropylong_assets.report.filtered_rows import read_rows
from entropylong_assets.report.sample_tokens import read_token_ids, shard_of, some_sample_ids
from entropylong_assets.report.text import visible
from entropylong_assets.settings.section import printable
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.samples.padding import padding_note
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

_SUGGESTIONS = 8
"""Number of existing samples that an error names."""


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A root's text around an anchor, and a context, with their scores. Entropies in nats.

    Control and direction characters are shown by name, so that no text steers a terminal.
    """

    before: str
    token: str
    after: str
    context_before: str
    evidence: str
    """The evidence span, inside its context; empty if there is none."""
    context_after: str
    kind: str | None
    """Kind of the dependency; None without an evidence span."""
    entropy: float
    entropy_context: float
    gain: float
    calibrated_gain: float | None
    root_id: str
    chunk_id: str

    @property
    def context(self) -> str:
        return self.context_before + self.evidence + self.context_after


@dataclass(frozen=True, kw_only=True)
class ShownDependency(ShownPair):
    """A verified dependency of a sample."""

    distance: int
    """Number of tokens from the end of the context to the anchor."""


@dataclass(frozen=True)
class ShownSample:
    """Segments (role, start, end, doc_id, source) and the strongest dependencies of a sample."""

    sample_id: str
    shard: str
    segments: pl.DataFrame
    padding: str | None
    """Why most tokens of the shard's samples are padding; None if they are not."""
    n_dependencies: int
    dependencies: list[ShownDependency]


def show_sample(
    store: TableStore,
    load_tokenizer: Callable[[], Tokenizer],
    sample_id: str,
    strongest: int,
    window: int = 40,
) -> ShownSample:
    """Read one sample as text.

    load_tokenizer: called if the sample exists. strongest: number of dependencies shown, those of
    largest gain. window: number of root tokens shown before an anchor; half as many are shown after
    it. Raises TableError if there is no such sample; the message names a few that exist.
    """
    token_ids = read_token_ids(store, sample_id)
    if token_ids is None:
        some = some_sample_ids(store, _SUGGESTIONS, first=shard_of(sample_id))
        known = f"there are {', '.join(some)}, ..." if some else "no sample exists yet"
        raise TableError(f"no sample {printable(sample_id, 80)}; {known}")
    shard, tokenizer = shard_of(sample_id), load_tokenizer()

    summary = store.summary(LONG_CONTEXT_SAMPLES, shard)
    of_sample = pl.col("sample_id") == sample_id
    segments = read_rows(store, LONG_CONTEXT_SAMPLES, [shard], "segments", of_sample)
    segments = segments.sort("segment")
    dependencies = read_rows(store, LONG_CONTEXT_SAMPLES, [shard], "dependencies", of_sample)
    roots = {
        root_id: (start, end)
        for root_id, start, end in segments.filter(role="root")
        .select("root_id", "start", "end")
        .iter_rows()
    }
    best = dependencies.sort("gain", "chunk_id", descending=[True, False]).head(strongest)
    return ShownSample(
        sample_id,
        shard,
        segments,
        padding_note(summary.samples, summary.tokens),
        len(dependencies),
        [_shown(row, token_ids, roots, tokenizer, window) for row in best.iter_rows(named=True)],
    )


def texts_around(
    tokenizer: Tokenizer, root_ids: Sequence[int], anchor: int, window: int
) -> dict[str, str]:
    """Return `before`, `token` and `after` of an anchor: `window` tokens before, half after it."""
    return {
        "before": _text(tokenizer, root_ids[max(0, anchor - window) : anchor]),
        "token": _text(tokenizer, root_ids[anchor : anchor + 1]),
        "after": _text(tokenizer, root_ids[anchor + 1 : anchor + 1 + window // 2]),
    }


def texts_of_context(
    tokenizer: Tokenizer, context_ids: Sequence[int], start: int, end: int
) -> dict[str, str]:
    """Return `context_before`, `evidence` (tokens start to end) and `context_after`."""
    return {
        "context_before": _text(tokenizer, context_ids[:start]),
        "evidence": _text(tokenizer, context_ids[start:end]),
        "context_after": _text(tokenizer, context_ids[end:]),
    }


def _text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return visible(tokenizer.decode(list(token_ids)))


def _shown(
    row: dict[str, object],
    token_ids: Sequence[int],
    roots: dict[str, tuple[int, int]],
    tokenizer: Tokenizer,
    window: int,
) -> ShownDependency:
    root_id, position = str(row["root_id"]), int(str(row["anchor_position"]))
    start, end = roots[root_id]

    calibrated = row["calibrated_gain"]
    context_start, context_end = int(str(row["context_start"])), int(str(row["context_end"]))
    has_span = row["kind"] is not None
    evidence_start = int(str(row["evidence_start"])) if has_span else context_end
    evidence_end = int(str(row["evidence_end"])) if has_span else context_end
    return ShownDependency(
        **texts_around(tokenizer, token_ids[start:end], position - start, window),
        **texts_of_context(
            tokenizer,
            token_ids[context_start:context_end],
            evidence_start - context_start,
            evidence_end - context_start,
        ),
        kind=None if row["kind"] is None else str(row["kind"]),
        entropy=float(str(row["entropy"])),
        entropy_context=float(str(row["entropy_context"])),
        gain=float(str(row["gain"])),
        calibrated_gain=None if calibrated is None else float(str(calibrated)),
        distance=int(str(row["distance"])),
        root_id=root_id,
        chunk_id=str(row["chunk_id"]),
    )
