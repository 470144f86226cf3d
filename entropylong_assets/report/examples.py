"""Dependencies that a report shows first, and the order in which it lists all others.

Genuine dependencies are listed before those of common wording, because readers judge the data by
the first examples. A dependency is genuine if the rule `genuine` accepts its pair. If that rule was
not evaluated, dependencies are ordered by their kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from entropylong_assets.report.distributions import Rows, rows
from entropylong_assets.report.sample_tokens import read_token_ids
from entropylong_assets.report.text import visible
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.verification.evidence_kinds import BOILERPLATE, OTHER
from entropylong_assets.storage.tables import TableStore

EXAMPLES = 6
"""Dependencies shown as examples."""
BEFORE_ANCHOR, AFTER_ANCHOR, AROUND_EVIDENCE = 48, 16, 24
"""Tokens shown of the root before and after an anchor, and of a context around its evidence."""
EVIDENCE_CHARS = 300
"""Characters shown of an evidence span."""

_ORDER = f"""
genuine DESC, coalesce(kind IN ('{BOILERPLATE}', '{OTHER}'), true), {{place}} gain DESC,
sample_id, anchor_position, chunk_id
"""
_DEPENDENCIES = """
WITH chosen AS (SELECT * FROM dependencies {where}),
judged AS (
    SELECT root_id, anchor, chunk_id, bool_or(list_contains(accepted_by, 'genuine')) AS genuine
    FROM pairs SEMI JOIN chosen USING (root_id, anchor, chunk_id)
    GROUP BY root_id, anchor, chunk_id
),
marked AS (
    SELECT chosen.*, coalesce(genuine, false) AS genuine
    FROM chosen LEFT JOIN judged USING (root_id, anchor, chunk_id)
)
"""
_OF_SAMPLES = (
    _DEPENDENCIES.format(where="WHERE sample_id IN (SELECT unnest(?))")
    + f"FROM marked ORDER BY {_ORDER.format(place='')}"
)
# Lists the first dependency of each root before the second of any root.
_BEST = (
    _DEPENDENCIES.format(where="")
    + f"""
SELECT d.*, r.root_start, r.root_end, r.source AS root_source, c.source AS context_source
FROM (
    SELECT *, row_number() OVER (PARTITION BY root_id ORDER BY {_ORDER.format(place="")}) AS place
    FROM marked
) AS d
LEFT JOIN (
    SELECT sample_id, root_id, any_value(source) AS source, min(start) AS root_start,
        max("end") AS root_end
    FROM segments WHERE role = 'root' GROUP BY sample_id, root_id
) AS r USING (sample_id, root_id)
LEFT JOIN (
    SELECT sample_id, start AS context_start, any_value(source) AS source
    FROM segments WHERE chunk_id IS NOT NULL GROUP BY sample_id, start
) AS c USING (sample_id, context_start)
ORDER BY {_ORDER.format(place="place,")} LIMIT {EXAMPLES}
"""
)


def dependencies_of(
    session: duckdb.DuckDBPyConnection, sample_ids: Sequence[str]
) -> dict[str, Rows]:
    """Return the dependencies of each sample: genuine ones first, then by gain.

    Rows are those of the table `dependencies`, with a Boolean `genuine`.
    """
    by_sample: dict[str, Rows] = {sample_id: [] for sample_id in sample_ids}
    for row in rows(session, _OF_SAMPLES, list(sample_ids)):
        by_sample[row["sample_id"]].append(row)
    return by_sample


class SampleText:
    """Texts of one sample by the positions of its tokens."""

    def __init__(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self.token_ids, self._tokenizer = token_ids, tokenizer

    def between(self, start: int, end: int) -> str:
        """Return the text of the tokens from `start` to `end`, made visible."""
        return visible(self._tokenizer.decode(self.token_ids[start:end]))

    def evidence(self, dependency: Mapping[str, Any], around: int) -> list[str] | None:
        """Return the evidence span and `around` tokens of the context before and after it.

        None if the dependency has no span.
        """
        if dependency["kind"] is None:
            return None
        start, end = dependency["evidence_start"], dependency["evidence_end"]
        span = self.between(start, end)
        return [
            self.between(max(dependency["context_start"], start - around), start),
            span if len(span) <= EVIDENCE_CHARS else span[:EVIDENCE_CHARS] + "…",
            self.between(end, min(dependency["context_end"], end + around)),
        ]


_SHOWN = (
    "sample_id",
    "kind",
    "genuine",
    "gain",
    "calibrated_gain",
    "entropy",
    "entropy_context",
    "distance",
    "root_source",
    "context_source",
)


def examples(session: duckdb.DuckDBPyConnection, store: TableStore, tokenizer: Tokenizer) -> Rows:
    """Return the best dependencies of all samples as text, at most `EXAMPLES`."""
    dependencies = rows(session, _BEST)
    texts: dict[str, SampleText] = {}
    for sample_id in dict.fromkeys(row["sample_id"] for row in dependencies):
        token_ids = read_token_ids(store, sample_id)
        assert token_ids is not None
        texts[sample_id] = SampleText(token_ids, tokenizer)
    return [_example(row, texts[row["sample_id"]]) for row in dependencies]


def _example(row: Mapping[str, Any], text: SampleText) -> dict[str, Any]:
    t, end = row["anchor_position"], row["context_end"]
    context = text.evidence(row, AROUND_EVIDENCE)
    if context is None:
        start = max(row["context_start"], end - 2 * AROUND_EVIDENCE)
        context = [text.between(start, end), "", ""]
    shown = {name: row[name] for name in _SHOWN}
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in shown.items()} | {
        "before": text.between(max(row["root_start"], t - BEFORE_ANCHOR), t),
        "token": text.between(t, t + 1),
        "after": text.between(t + 1, min(row["root_end"], t + 1 + AFTER_ANCHOR)),
        "context": context,
    }
