"""Figures of an export, from the tables of the exported shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.diversity import spreads, use_keys
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.mixed_samples import Mixture
from entropylong_assets.stages.verification.false_acceptance import pooled_false_acceptance
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.duck import View, querying, rounded, rounded_rows
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

_TABLES: Mapping[str, tuple[TableSet[Any], str]] = {
    "documents": (CORPUS_DOCUMENTS, "documents"),
    "roots": (ENTROPY_SCORES, "roots"),
    "candidates": (CANDIDATE_CONTEXTS, "candidates"),
    "pairs": (VERIFIED_DEPENDENCIES, "pairs"),
    "samples": (LONG_CONTEXT_SAMPLES, "samples"),
    "segments": (LONG_CONTEXT_SAMPLES, "segments"),
    "dependencies": (LONG_CONTEXT_SAMPLES, "dependencies"),
}

_OF_SAMPLES = ("samples", "segments", "dependencies")

_COUNTS = """
SELECT
  (SELECT count(*) FROM documents) AS documents,
  (SELECT count(*) FROM roots) AS roots_scored,
  (SELECT coalesce(sum(len(anchors)), 0)::BIGINT FROM roots) AS anchors,
  (SELECT count(*) FROM candidates) AS candidates,
  (SELECT count(*) FROM candidates WHERE leak_check = 'near_duplicate') AS near_duplicates_refused,
  (SELECT count(*) FROM samples) AS samples,
  (SELECT count(*) FROM dependencies) AS dependencies
"""

# Of pairs that were scored. Gains and surprisals are of those that the rule in force accepted.
_PAIRS = """
SELECT
  count(*) AS pairs_scored,
  count(*) FILTER (accepted) AS pairs_accepted,
  count(*) FILTER (accepted) / nullif(count(*), 0) AS acceptance_rate,
  avg(gain::DOUBLE) FILTER (accepted) AS mean_gain,
  avg(calibrated_gain::DOUBLE) FILTER (accepted) AS mean_calibrated_gain,
  avg(surprisal::DOUBLE - surprisal_context) FILTER (accepted) AS mean_surprisal_drop_nats,
  count(*) FILTER (accepted AND surprisal_context > surprisal)
    / nullif(count(*) FILTER (accepted), 0) AS accepted_with_surprisal_rise
FROM pairs WHERE entropy_context IS NOT NULL
"""

_PAIRS_BY_RULE = """
SELECT rule, count(*) AS pairs
FROM (SELECT unnest(accepted_by) AS rule FROM pairs WHERE entropy_context IS NOT NULL)
GROUP BY rule ORDER BY rule
"""

_BY_KIND = """
SELECT kind, count(*) AS dependencies FROM dependencies
WHERE kind IS NOT NULL GROUP BY kind ORDER BY kind
"""

_PER_ROOT = """
SELECT avg(n) AS mean, median(n) AS median, max(n) AS max
FROM (SELECT count(*) AS n FROM dependencies GROUP BY root_id)
"""

_DISTANCES = """
SELECT
  quantile_cont(distance, 0.5) AS median,
  quantile_cont(distance, 0.9) AS p90,
  max(distance) AS max,
  count(*) FILTER (distance > 32768) / nullif(count(*), 0) AS share_beyond_32k,
  count(*) FILTER (distance > 65536) / nullif(count(*), 0) AS share_beyond_64k
FROM dependencies
"""

_ROLES = (
    'SELECT role, sum("end" - start)::BIGINT AS tokens FROM segments GROUP BY role ORDER BY role'
)

_SOURCES = """
SELECT source, sum("end" - start)::BIGINT AS tokens FROM segments
WHERE source IS NOT NULL GROUP BY source ORDER BY source
"""

_LICENSES = """
SELECT source, license, count(*) AS documents FROM documents
GROUP BY source, license ORDER BY source, license
"""


def _false_acceptance(
    store: TableStore, shards: Sequence[str], settings: Settings
) -> dict[str, dict[str, float]]:
    """By rule: the fields of `tables.FalseAcceptanceRate`, over all shards."""
    rates = pooled_false_acceptance(store, shards, settings.verification)
    return {
        rule: {
            "rate": round(rate.value, 6),
            "low": round(rate.low, 6),
            "high": round(rate.high, 6),
            "trials": rate.total,
            "is_rough": rate.is_rough,
        }
        for rule, rate in rates.items()
    }


def _diversity(store: TableStore, shards: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By `diversity.THINGS`: the fields of `diversity.Spread`, over the dependencies in samples."""
    columns = ["root_id", "anchor", "chunk_id"]
    keys = [
        use_keys(batch)
        for shard in shards
        for batch in store.batches(LONG_CONTEXT_SAMPLES, shard, "dependencies", columns)
    ]
    return {
        thing: {name: rounded(value) for name, value in spread.model_dump().items()}
        for thing, spread in spreads(keys).items()
    }


def _with_source_licenses(
    rows: Sequence[Mapping[str, Any]], exported: Mapping[str, int], settings: Settings
) -> dict[str, dict[str, int]]:
    """Documents per source and licence.

    A context can belong to a source of which no shard is exported: its licence is that of the
    settings, with 0 documents.
    """
    licenses: dict[str, dict[str, int]] = {}
    for row in rows:
        licenses.setdefault(row["source"], {})[row["license"]] = row["documents"]
    for source in settings.corpus.sources:
        if source.name in exported:
            licenses.setdefault(source.name, {source.license: 0})
    return dict(sorted(licenses.items()))


def _with_mixture(
    mixture: Mixture, roles: Mapping[str, int], sources: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens by role and by source, with those of natural and short samples."""
    by_role, by_source = Counter(roles), Counter(sources)
    for (role, source), tokens in mixture.tokens.items():
        by_role[role] += tokens
        if source:
            by_source[source] += tokens
    return dict(sorted(by_role.items())), dict(sorted(by_source.items()))


def dataset_figures(
    store: TableStore,
    shards: Sequence[str],
    settings: Settings,
    mixture: Mixture | None = None,
) -> dict[str, Any]:
    """All figures, as JSON values. Those of samples are of the mixture, if there is one.

    Shares are from 0 to 1, gains and distances as in the tables, entropies and surprisals in nats,
    distances in tokens. Raises TableError if a table of a shard is missing or damaged,
    ConnectionError if the store does not answer.
    """
    views: dict[str, View] = {name: (t, shards, table) for name, (t, table) in _TABLES.items()}
    if mixture is not None:
        views |= {f"all_{name}": views.pop(name) for name in _OF_SAMPLES}
        views["chosen"] = mixture.names("constructed")
    with querying(store, views) as session:
        for name in _OF_SAMPLES if mixture is not None else ():
            session.execute(
                f"CREATE VIEW {name} AS SELECT * FROM all_{name} JOIN chosen USING (sample_id)"
            )
        session.execute("SET threads = 1")  # a fixed order of float sums: the same figures again

        rows = partial(rounded_rows, session)

        figures = rows(_COUNTS)[0] | rows(_PAIRS)[0]
        accepted = {row["rule"]: row["pairs"] for row in rows(_PAIRS_BY_RULE)}
        figures["dependencies_by_kind"] = {r["kind"]: r["dependencies"] for r in rows(_BY_KIND)}
        figures["dependencies_per_root"] = rows(_PER_ROOT)[0]
        figures["distance_tokens"] = rows(_DISTANCES)[0]
        tokens = {row["role"]: row["tokens"] for row in rows(_ROLES)}
        sources = {row["source"]: row["tokens"] for row in rows(_SOURCES)}
        if mixture is not None:
            figures["samples"] = len(mixture.entries)
            tokens, sources = _with_mixture(mixture, tokens, sources)
        licenses = _with_source_licenses(rows(_LICENSES), sources, settings)
    total = sum(tokens.values())
    drawn = sum(store.summary(ENTROPY_SCORES, shard).drawn for shard in shards)
    rules = evaluated_rules(settings.verification)
    return figures | {
        "documents_drawn": drawn,
        "pairs_accepted_by": {rule: accepted.get(rule, 0) for rule in rules},
        "tokens": total,
        "tokens_by_role": tokens,
        "share_by_role": {role: round(n / total, 6) for role, n in tokens.items()},
        "tokens_by_source": sources,
        "licenses": licenses,
        "false_acceptance": _false_acceptance(store, shards, settings),
        "diversity": _diversity(store, shards),
    }
