"""Figures of natural windows, and one of them to read, for cards and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.storage.duck import View, querying, rounded, rounded_rows
from entropylong_assets.storage.tables import TableStore

# Windows that are described: kept ones, or of these the chosen.
_SHOWN = """
CREATE VIEW shown AS SELECT * FROM windows
WHERE reason IS NULL AND ($all OR window_id IN (SELECT window_id FROM chosen))
"""

_WINDOWS = """
SELECT
  (SELECT count(*) FROM windows) AS windows_scored,
  (SELECT count(*) FROM windows WHERE reason IS NULL) AS windows_kept,
  count(*) AS windows,
  count(DISTINCT doc_id) AS documents,
  coalesce(sum("end" - start), 0)::BIGINT AS tokens,
  avg(surprisal_long::DOUBLE) AS surprisal_long,
  avg(surprisal_short::DOUBLE) AS surprisal_short,
  median(gzip_ratio) AS gzip_ratio
FROM shown
"""

_GAINS = """
SELECT
  quantile_cont(gain, 0.1) AS p10, median(gain) AS median, quantile_cont(gain, 0.9) AS p90,
  max(gain) AS max
FROM {windows}
"""

_EVIDENCE = """
SELECT
  count(*) AS key_tokens,
  count(found_at) / nullif(count(*), 0) AS located,
  median(position - found_at) AS distance_median,
  quantile_cont(position - found_at, 0.9) AS distance_p90,
  max(position - found_at) AS distance_max,
  median(ngram_tokens) AS ngram_median,
  avg(evidence.surprisal_short::DOUBLE - evidence.surprisal_long) AS surprisal_drop
FROM evidence JOIN shown USING (window_id)
"""

_QUARTERS = """
SELECT least(floor(4 * found_at / ("end" - start)), 3)::INT AS quarter, count(*) AS n
FROM evidence JOIN shown USING (window_id) WHERE found_at IS NOT NULL GROUP BY quarter
"""

# The window of the highest gain that has a key token whose text occurred earlier, with the pair
# before it, and its key tokens: those of the largest drop, at most one per 32 tokens.
_EXAMPLE = """
WITH usable AS (
  SELECT shown.window_id, doc_id, source, start, gain, gzip_ratio, shown.key_tokens, position,
    found_at, ngram_tokens, e.surprisal_short AS nats_short, e.surprisal_long AS nats_long,
    e.surprisal_short - e.surprisal_long AS fall
  FROM shown JOIN evidence AS e ON shown.window_id = e.window_id AND ngram_tokens >= 2
),
best AS (SELECT window_id FROM usable ORDER BY gain DESC, window_id LIMIT 1)
SELECT * EXCLUDE (fall) FROM usable JOIN best USING (window_id)
QUALIFY row_number() OVER (PARTITION BY position // 32 ORDER BY fall DESC, position) = 1
ORDER BY fall DESC, position LIMIT 4
"""

TEXT_TOKENS = 12
"""Tokens shown before and after a key token, and before and after what it needs."""


def natural_figures(
    store: TableStore,
    shards: Sequence[str],
    tokenizer: Tokenizer,
    chosen: pl.DataFrame | None = None,
) -> dict[str, Any] | None:
    """Figures of the kept windows of these shards, and an example, as JSON values.

    chosen: window_id of those to describe; None: all kept ones. Returns None if there is none.
    Gains and surprisals are in nats, distances in tokens, shares from 0 to 1. `found_in_quarter`
    says how the places at which the needed text was found divide among the quarters of a window.
    """
    known = set(store.shards(NATURAL_DOCUMENTS))
    shards = [shard for shard in shards if shard in known]
    if not shards:
        return None
    views: dict[str, View] = {
        name: (NATURAL_DOCUMENTS, shards, name) for name in ("windows", "evidence")
    }
    views["chosen"] = pl.DataFrame(schema={"window_id": pl.String}) if chosen is None else chosen
    with querying(store, views) as session:
        session.execute("SET threads = 1")  # a fixed order of float sums
        session.execute(_SHOWN.replace("$all", str(chosen is None).lower()))

        rows = partial(rounded_rows, session)

        figures = rows(_WINDOWS)[0]
        if not figures["windows"]:
            return None
        reasons = "SELECT reason, count(*) AS n FROM windows WHERE reason IS NOT NULL GROUP BY 1"
        figures["not_kept"] = {r["reason"]: r["n"] for r in rows(f"{reasons} ORDER BY reason")}
        figures["gain"] = rows(_GAINS.format(windows="shown"))[0]
        figures["gain_of_all"] = rows(_GAINS.format(windows="windows"))[0]
        figures |= rows(_EVIDENCE)[0]
        figures["key_tokens_per_1000"] = rounded(1000 * figures["key_tokens"] / figures["tokens"])
        found = {row["quarter"]: row["n"] for row in rows(_QUARTERS)}
        total = max(sum(found.values()), 1)
        figures["found_in_quarter"] = [rounded(found.get(q, 0) / total) for q in range(4)]
        example = rows(_EXAMPLE)
    summaries = [store.summary(NATURAL_DOCUMENTS, shard) for shard in shards]
    lengths = {(s.long_tokens, s.short_tokens) for s in summaries if s.kept}
    figures["long_tokens"], figures["short_tokens"] = max(lengths)
    figures["example"] = _example(store, shards, tokenizer, example) if example else None
    return figures


def _example(
    store: TableStore,
    shards: Sequence[str],
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The window, and for each row the text around the key token and around what it needs."""
    first = rows[0]
    ids = _token_ids(store, shards, first["window_id"])

    def texts(start: int, end: int) -> list[str]:
        """The text of these tokens, with some before and after."""
        parts = ids[max(start - TEXT_TOKENS, 0) : start], ids[start:end], ids[end:][:TEXT_TOKENS]
        return [tokenizer.decode(part) for part in parts]

    tokens = []
    for row in sorted(rows, key=lambda row: row["position"]):
        at, found = row["position"], row["found_at"]
        tokens.append(
            {
                "position": at,
                "token": texts(at, at + 1),
                "found_at": found,
                "found": texts(found + 1 - row["ngram_tokens"], found + 1),
                "distance": at - found,
                "surprisal_short": row["nats_short"],
                "surprisal_long": row["nats_long"],
            }
        )
    names = ("window_id", "doc_id", "source", "start", "gain", "gzip_ratio", "key_tokens")
    return {name: first[name] for name in names} | {"tokens": tokens}


def _token_ids(store: TableStore, shards: Sequence[str], window_id: str) -> list[int]:
    for shard in shards:
        for batch in store.batches(
            NATURAL_DOCUMENTS, shard, "samples", ["window_id", "input_ids"], rows=16
        ):
            window = batch.filter(window_id=window_id)
            if not window.is_empty():
                ids: list[int] = window["input_ids"][0].to_list()
                return ids
    raise AssertionError("a kept window is a sample")


def figure_lines(figures: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """(name, value, kind) of the figures; kind: `count`, `share`, `number` or `text`."""
    gain, quarters = figures["gain"], figures["found_in_quarter"]
    return [
        ("windows scored", figures["windows_scored"], "count"),
        ("windows kept", figures["windows_kept"], "count"),
        *[(f"windows not kept: {r}", n, "count") for r, n in figures["not_kept"].items()],
        ("windows described here", figures["windows"], "count"),
        ("documents", figures["documents"], "count"),
        ("tokens", figures["tokens"], "count"),
        ("long window (tokens)", figures["long_tokens"], "count"),
        ("short window (tokens)", figures["short_tokens"], "count"),
        ("information gain, 10th percentile (nats)", gain["p10"], "number"),
        ("information gain, median", gain["median"], "number"),
        ("information gain, 90th percentile", gain["p90"], "number"),
        ("information gain, median of all scored", figures["gain_of_all"]["median"], "number"),
        ("gzip ratio, median", figures["gzip_ratio"], "number"),
        ("surprisal in the long window, mean (nats)", figures["surprisal_long"], "number"),
        ("surprisal in the short window, mean (nats)", figures["surprisal_short"], "number"),
        ("key tokens: need more than the short window", figures["key_tokens"], "count"),
        ("key tokens per 1,000 tokens", figures["key_tokens_per_1000"], "number"),
        ("their surprisal drop, mean (nats)", figures["surprisal_drop"], "number"),
        ("key tokens whose text occurred before", figures["located"], "share"),
        ("distance to that place, median (tokens)", figures["distance_median"], "count"),
        ("distance to that place, 90th percentile", figures["distance_p90"], "count"),
        ("longest equal n-gram, median (tokens)", figures["ngram_median"], "number"),
        *[
            (f"found in quarter {number} of the window", share, "share")
            for number, share in enumerate(quarters, start=1)
        ],
    ]
