"""The few roots and samples that a report shows in full, and how they are chosen.

Everything else is shown as counts, so that a report stays small.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import duckdb

from entropylong_assets.report.distributions import Rows, rows
from entropylong_assets.report.examples import SampleText, dependencies_of
from entropylong_assets.report.sample_tokens import read_token_ids
from entropylong_assets.report.text import excerpt, token_texts, visible
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.storage.tables import TableStore

ROOTS = 12
"""Roots shown: half of them those with the most genuine contexts, half drawn."""
SAMPLES = 8
"""Samples shown: half of them those with the most genuine dependencies, half drawn."""
ROOT_TOKENS = 4096
"""Tokens shown of a root."""
ANCHORS = 30
"""Anchors of a root shown with all their candidates: resolved ones first, by gain, then by
entropy. The others are marked and shown with their entropy only."""
ARCS = 300
"""Dependencies drawn in a sample: genuine ones first, then by gain."""
PASSAGE_CHARS, SEGMENT_TOKENS, ANCHOR_TOKENS = 600, 48, 8

HOW_CHOSEN = (
    "Counts and charts cover all data. The examples are those of largest gain, genuine ones first: "
    "accepted by the rule `genuine`, which reads the text (docs/genuine.md); at most one per root "
    f"if there are enough roots. Shown in full are {ROOTS} roots, half of them those with the most "
    "genuine, then accepted contexts, half a random draw (the first ids, which are hashes of "
    "content), "
    f"and {SAMPLES} samples, half of them those with the most genuine, then verified dependencies, "
    "half a draw by hash. "
    f"Of a root: {ROOT_TOKENS:,} tokens, and every candidate of {ANCHORS} anchors, resolved ones "
    f"first, then by entropy. Of a context: {PASSAGE_CHARS} characters. Of a sample: all segments "
    f"and {ARCS} dependencies, genuine ones first, then by gain. In a comparison, a root chosen "
    "for one dataset is shown for both if both have it."
)

_CHOSEN = """
WITH counted AS ({counted}),
most AS (SELECT id, 'most' AS why FROM counted ORDER BY n DESC, id LIMIT {half}),
drawn AS (
    SELECT id, 'drawn' AS why FROM counted ANTI JOIN most USING (id) ORDER BY {draw} LIMIT {half}
)
FROM most UNION ALL FROM drawn
"""

_ROOTS_COUNTED = """
    SELECT root_id AS id, coalesce(any_value(p.n), [0, 0]) AS n FROM roots
    LEFT JOIN (
        SELECT root_id, [
            count(*) FILTER (accepted AND list_contains(accepted_by, 'genuine')),
            count(*) FILTER (accepted)
        ] AS n
        FROM pairs GROUP BY root_id
    ) AS p USING (root_id)
    GROUP BY root_id
"""

_SAMPLES_COUNTED = """
    SELECT s.sample_id AS id, coalesce(any_value(d.n), [0, 0]) AS n
    FROM (SELECT DISTINCT sample_id FROM segments) AS s
    LEFT JOIN (
        SELECT sample_id, [count(*) FILTER (genuine), count(*)] AS n
        FROM dependencies
        LEFT JOIN (
            SELECT root_id, anchor, chunk_id,
                bool_or(list_contains(accepted_by, 'genuine')) AS genuine
            FROM pairs WHERE accepted GROUP BY root_id, anchor, chunk_id
        ) USING (root_id, anchor, chunk_id)
        GROUP BY sample_id
    ) AS d USING (sample_id)
    GROUP BY s.sample_id
"""


def _chosen(session: duckdb.DuckDBPyConnection, counted: str, draw: str, n: int) -> dict[str, str]:
    query = _CHOSEN.format(counted=counted, draw=draw, half=n // 2)
    return {row["id"]: row["why"] for row in rows(session, query)}


def choose_roots(session: duckdb.DuckDBPyConnection, n: int = ROOTS) -> dict[str, str]:
    """Choose roots to show. Returns id to reason: `most` or `drawn`."""
    return _chosen(session, _ROOTS_COUNTED, "id", n)


def choose_samples(session: duckdb.DuckDBPyConnection, n: int = SAMPLES) -> dict[str, str]:
    """Choose samples to show. Returns id to reason: `most` or `drawn`."""
    return _chosen(session, _SAMPLES_COUNTED, "md5(id), id", n)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


_PAIR = [
    "rank",
    "chunk_id",
    "similarity",
    "entropy_context",
    "entropy_control",
    "surprisal_context",
    "surprisal_control",
    "gain",
    "calibrated_gain",
    "accepted",
    "verdict",
]


def _anchors(anchors: Sequence[int], entropies: Sequence[float], pairs: Rows) -> Rows:
    """Rows of the anchors: position and state, with candidates for anchors shown in full."""
    by_anchor: dict[int, Rows] = {}
    for pair in pairs:
        by_anchor.setdefault(pair["anchor"], []).append(pair)

    def order(t: int) -> tuple[float, float, int]:
        gains = [pair["gain"] for pair in by_anchor.get(t, []) if pair["accepted"]]
        return (-max(gains, default=0.0), -entropies[t], t)

    shown = set(sorted(anchors, key=order)[:ANCHORS])
    result = []
    for t in anchors:
        mine = by_anchor.get(t, [])
        accepted = any(pair["accepted"] for pair in mine)
        state = "resolved" if accepted else "unresolved" if mine else "no_candidates"
        row: dict[str, Any] = {"t": t, "state": state}
        if t in shown:
            row["candidates"] = [{name: _rounded(pair[name]) for name in _PAIR} for pair in mine]
        result.append(row)
    return result


def root_details(
    session: duckdb.DuckDBPyConnection, chosen: dict[str, str], tokenizer: Tokenizer
) -> tuple[Rows, dict[str, dict[str, Any]]]:
    """Return the roots as the page shows them, and the passages of their candidates by chunk id.

    Roots are in the order of `chosen`; ids that this dataset does not have are left out.
    """
    ids = list(chosen)
    scored = rows(
        session,
        "SELECT * FROM roots WHERE root_id IN (SELECT unnest(?)) "
        "QUALIFY row_number() OVER (PARTITION BY root_id ORDER BY root_id) = 1",
        ids,
    )
    about = {
        row["doc_id"]: row
        for row in rows(
            session,
            "SELECT doc_id, source, external_id FROM documents "
            "WHERE doc_id IN (SELECT unnest(?)) ORDER BY doc_id, source DESC",
            ids,
        )
    }
    pairs: dict[str, Rows] = {}
    for pair in rows(
        session,
        "SELECT * FROM pairs WHERE root_id IN (SELECT unnest(?)) ORDER BY root_id, anchor, rank",
        ids,
    ):
        pairs.setdefault(pair["root_id"], []).append(pair)
    result, used = [], set()
    for root in sorted(scored, key=lambda root: ids.index(root["root_id"])):
        root_id, document = root["root_id"], about.get(root["root_id"], {})
        anchors = _anchors(root["anchors"], root["entropies"], pairs.get(root_id, []))
        anchors = [anchor for anchor in anchors if anchor["t"] < ROOT_TOKENS]
        used |= {c["chunk_id"] for a in anchors for c in a.get("candidates", [])}
        token_ids = root["token_ids"][:ROOT_TOKENS]
        result.append(
            {
                "id": root_id,
                "why": chosen[root_id],
                "source": visible(document.get("source") or ""),
                "document": visible(document.get("external_id") or ""),
                "n_tokens": len(root["token_ids"]),
                "threshold": _rounded(root["threshold"]),
                "mean": _rounded(root["mean"]),
                "tokens": token_texts(tokenizer, token_ids),
                "entropies": [_rounded(h) for h in root["entropies"][: len(token_ids)]],
                "surprisals": [_rounded(i) for i in root["surprisals"][: len(token_ids)]],
                "anchors": anchors,
            }
        )
    return result, _passages(session, used)


def _passages(
    session: duckdb.DuckDBPyConnection, chunk_ids: Collection[str]
) -> dict[str, dict[str, Any]]:
    passages = rows(
        session,
        "SELECT DISTINCT ON (chunk_id) chunk_id, source, text FROM passages "
        "WHERE chunk_id IN (SELECT unnest(?)) ORDER BY chunk_id",
        sorted(chunk_ids),
    )
    return {
        row["chunk_id"]: {
            "source": visible(row["source"]),
            "text": excerpt(row["text"], PASSAGE_CHARS),
        }
        for row in passages
    }


_DEPENDENCY = [
    "root_id",
    "anchor",
    "chunk_id",
    "anchor_position",
    "context_start",
    "context_end",
    "distance",
    "gain",
    "calibrated_gain",
    "entropy",
    "entropy_context",
    "kind",
    "genuine",
]


def sample_details(
    session: duckdb.DuckDBPyConnection,
    store: TableStore,
    chosen: dict[str, str],
    tokenizer: Tokenizer,
) -> Rows:
    """Return the samples as the page shows them, in the order of `chosen`."""
    result = []
    of_samples = dependencies_of(session, list(chosen))
    for sample_id, why in chosen.items():
        token_ids = read_token_ids(store, sample_id)
        assert token_ids is not None
        text = SampleText(token_ids, tokenizer)
        segments = rows(
            session,
            'SELECT role, start, "end", root_id, chunk_id, source FROM segments '
            "WHERE sample_id = ? ORDER BY segment",
            sample_id,
        )
        roles: dict[str, int] = {}
        for segment in segments:
            start, end, role = segment["start"], segment["end"], segment["role"]
            roles[role] = roles.get(role, 0) + end - start
            if role != "padding":
                cut = min(end, start + SEGMENT_TOKENS)
                segment["text"] = text.between(start, cut).strip() + ("…" if cut < end else "")
        dependencies = of_samples[sample_id]
        drawn = []
        for dependency in dependencies[:ARCS]:
            t = dependency["anchor_position"]
            drawn.append(
                {name: _rounded(dependency[name]) for name in _DEPENDENCY}
                | {
                    "before": text.between(max(0, t - ANCHOR_TOKENS), t),
                    "token": text.between(t, t + 1),
                    "after": text.between(t + 1, t + 1 + ANCHOR_TOKENS),
                    "evidence": text.evidence(dependency, ANCHOR_TOKENS),
                }
            )
        result.append(
            {
                "id": sample_id,
                "why": why,
                "n_tokens": len(token_ids),
                "roles": roles,
                "segments": segments,
                "n_dependencies": len(dependencies),
                "dependencies": drawn,
            }
        )
    return result
