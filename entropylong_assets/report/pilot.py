"""A pilot: a few roots of a dataset, verified in a temporary store, as text and as suggestions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import Scores, ablate
from entropylong_assets.report.corpus_sample import Sample
from entropylong_assets.report.show import ShownPair, texts_around, texts_of_context
from entropylong_assets.report.suggestions import Suggestion, suggest
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.training_data.empty_stage import first_empty_stage
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

WINDOW = 40
"""Tokens of the root shown before an anchor; half as many are shown after it."""

_CONTEXTS = pl.Schema(VERIFIED_DEPENDENCIES.schemas["contexts"])


@dataclass(frozen=True, kw_only=True)
class JudgedPair(ShownPair):
    """A verified or rejected candidate."""

    verdict: str


@dataclass(frozen=True)
class Pilot:
    """Result of a pilot."""

    funnel: list[tuple[str, int, str]]
    """Step, count, and a note on it."""
    empty: str | None
    """Why nothing was accepted; None if something was."""
    accepted: list[JudgedPair]
    rejected: list[JudgedPair]
    suggestions: list[Suggestion]


def make_pilot(sample: Sample, tokenizer: Tokenizer, shown: int, samples: int | None) -> Pilot:
    """Make a pilot of a sample whose roots were verified.

    shown: number of accepted pairs, and of rejected pairs, that are shown. samples: wished number
    of samples; None: no number of roots is suggested.
    """
    scores = scores_of(sample)
    scored = scores.pairs.filter(pl.col("entropy_context").is_not_null())
    figures = _figures(sample, scored)
    evidence = sample.verified.tables.get("evidence", pl.DataFrame())
    text_of = _as_text(sample, tokenizer, evidence)
    accepted = _distinct(scored.filter("accepted"), shown)
    rejected = _distinct(_near_misses(scored), shown)
    table = ablate(scores, sample.settings) if len(scored) else None
    return Pilot(
        funnel=_funnel(sample, figures, scored),
        empty=None if figures["pairs_accepted"] else first_empty_stage(figures, sample.settings),
        accepted=[text_of(row) for row in accepted.iter_rows(named=True)],
        rejected=[text_of(row) for row in rejected.iter_rows(named=True)],
        suggestions=suggest(sample, table, samples),
    )


def scores_of(sample: Sample) -> Scores:
    """Return the verified candidates in the form that an ablation reads."""
    tables = sample.verified.tables
    schemas = VERIFIED_DEPENDENCIES.schemas
    chunks = {c for root in sample.trial.candidates for c in root.candidates["chunk_id"]}
    contexts = pl.DataFrame(
        [
            {
                "chunk_id": c,
                "doc_id": c.rpartition("-")[0],
                "shard": "",
                "source": "",
                "start": 0,
                "end": 0,
                "token_ids": list(sample.trial.context_ids[c]),
            }
            for c in sorted(chunks)
        ],
        schema=_CONTEXTS,
    )
    return Scores(
        roots=sample.trial.table,
        pairs=tables.get("pairs", pl.DataFrame(schema=pl.Schema(schemas["pairs"]))),
        contexts=contexts,
        controls=tables.get("controls", pl.DataFrame(schema=pl.Schema(schemas["controls"]))),
    )


def _figures(sample: Sample, scored: pl.DataFrame) -> dict[str, Any]:
    """Counts of the funnel, by the names of `dataset_figures`."""
    documents = len(sample.lengths.tokens)
    roots = sample.trial.table
    return {
        "documents": documents,
        "documents_drawn": documents,
        "roots_scored": len(roots),
        "anchors": int(roots["anchors"].list.len().sum()),
        "candidates": sample.trial.candidate_rows,
        "near_duplicates_refused": sample.trial.refused_candidates,
        "pairs_scored": len(scored),
        "pairs_accepted": int(scored["accepted"].sum()),
    }


def _funnel(
    sample: Sample, figures: dict[str, Any], scored: pl.DataFrame
) -> list[tuple[str, int, str]]:
    roots, limits = sample.trial.table, sample.settings.roots
    rule = sample.settings.verification.rule
    others = [
        f"{name} {int(scored.select(pl.col('accepted_by').list.contains(name).sum()).item()):,}"
        for name in evaluated_rules(sample.settings.verification)
        if name != rule
    ]
    share = figures["pairs_accepted"] / max(figures["pairs_scored"], 1)
    return [
        ("rows looked at", sample.chosen_rows, ""),
        ("documents", figures["documents"], ""),
        (
            "of a length for roots",
            len(sample.lengths.eligible),
            f"{limits.min_tokens:,} to {limits.max_tokens:,} tokens",
        ),
        ("roots of the pilot", figures["roots_scored"], ""),
        ("their tokens", int(roots["token_ids"].list.len().sum()), ""),
        ("anchors", figures["anchors"], f"α = {sample.settings.entropy.alpha:g}"),
        ("candidates", figures["candidates"], f"of {sample.pool_documents:,} documents"),
        (
            "passed the leak check",
            figures["candidates"] - figures["near_duplicates_refused"],
            "",
        ),
        ("pairs verified", figures["pairs_scored"], "chosen at random"),
        (f"accepted by {rule}", figures["pairs_accepted"], "; ".join([f"{share:.2%}", *others])),
    ]


def _distinct(pairs: pl.DataFrame, n: int) -> pl.DataFrame:
    """Return the pairs of largest gain: one per chunk, and one per root before further ones."""
    best = pairs.sort("gain", "chunk_id", descending=[True, False], nulls_last=True)
    once = best.unique("chunk_id", keep="first", maintain_order=True)
    first = once.unique("root_id", keep="first", maintain_order=True)
    rest = once.join(
        first.select("root_id", "anchor", "chunk_id"),
        on=["root_id", "anchor", "chunk_id"],
        how="anti",
        maintain_order="left",
    )
    return pl.concat([first, rest]).head(n)


def _near_misses(scored: pl.DataFrame) -> pl.DataFrame:
    """Order rejected pairs: first the one of largest gain per reason, then those of median gain."""
    rejected = scored.filter(~pl.col("accepted")).sort("gain", descending=True, nulls_last=True)
    nearest = rejected.unique("verdict", keep="first", maintain_order=True)
    middle = rejected.slice(len(rejected) // 2, len(nearest))
    return pl.concat([nearest, middle]).unique(
        ["root_id", "anchor", "chunk_id"], keep="first", maintain_order=True
    )


def _as_text(
    sample: Sample, tokenizer: Tokenizer, evidence: pl.DataFrame
) -> Callable[[dict[str, Any]], JudgedPair]:
    token_ids: dict[str, Sequence[int]] = dict(
        sample.trial.table.select("root_id", "token_ids").iter_rows()
    )
    spans = {
        (row["root_id"], row["anchor"], row["chunk_id"]): row
        for row in evidence.iter_rows(named=True)
    }

    def shown(row: dict[str, Any]) -> JudgedPair:
        ids, at = token_ids[row["root_id"]], row["anchor"]
        context = sample.trial.context_ids[row["chunk_id"]]
        span = spans.get((row["root_id"], at, row["chunk_id"]))
        start, end = (span["token_start"], span["token_end"]) if span else (len(context),) * 2
        return JudgedPair(
            **texts_around(tokenizer, ids, at, WINDOW),
            **texts_of_context(tokenizer, context, start, end),
            verdict=row["verdict"],
            kind=span["kind"] if span else None,
            entropy=row["entropy"],
            entropy_context=row["entropy_context"],
            gain=row["gain"],
            calibrated_gain=row["calibrated_gain"],
            root_id=row["root_id"],
            chunk_id=row["chunk_id"],
        )

    return shown
