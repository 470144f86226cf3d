"""Results on the planted facts: recall of every stage, precision, and accepted decoys.

A pair is true if its anchor is in the fact's value and its chunk is of the stating document. Pairs
at other anchors are counted separately: facts of one form share their wording, so these pairs are
neither true nor false.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.audits.planted_facts import Fact
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import accepted_by
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore


def _is_in_value(tokenizer: Tokenizer, token_ids: Sequence[int], anchor: int, fact: Fact) -> bool:
    start, end = fact.span
    before = len(tokenizer.decode(token_ids[:anchor]))
    after = len(tokenizer.decode(token_ids[: anchor + 1]))
    return before < end and after > start


def values_of(
    store: TableStore, shards: Sequence[str], tokenizer: Tokenizer, facts: Sequence[Fact]
) -> pl.DataFrame:
    """Return every token of every fact's value, for facts whose needing document is a root.

    Columns: root_id, form, anchor (its position), entropy, mean, std, and stating: doc_id of the
    document that states the fact.
    """
    ids = _document_ids(store, shards)
    roots = store.read_all(ENTROPY_SCORES, shards, "roots")
    by_id = {row["root_id"]: row for row in roots.iter_rows(named=True)}
    rows = []
    for fact in facts:
        root = by_id.get(ids[fact.needing])
        if root is None:  # too short or too long to be a root
            continue
        for position, entropy in enumerate(root["entropies"]):
            if entropy is not None and _is_in_value(tokenizer, root["token_ids"], position, fact):
                rows.append(
                    {"root_id": root["root_id"], "form": fact.form}
                    | {"anchor": position, "entropy": entropy}
                    | {"mean": root["mean"], "std": root["std"], "stating": ids[fact.stating]}
                )
    schema = {"root_id": pl.String, "form": pl.String, "anchor": pl.Int32, "entropy": pl.Float64}
    numbers = {"mean": pl.Float64, "std": pl.Float64}
    return pl.DataFrame(rows, schema=schema | numbers | {"stating": pl.String})


def _document_ids(store: TableStore, shards: Sequence[str]) -> dict[str, str]:
    """Return the doc_id of each text."""
    documents = store.read_all(CORPUS_DOCUMENTS, shards, "documents", ["text", "doc_id"])
    return dict(documents.select("text", "doc_id").iter_rows())


def shortfall(values: pl.DataFrame, alpha: float) -> float | None:
    """Median over facts of τ minus the highest entropy in the fact's value (nats).

    values: from `values_of`.
    """
    short = (pl.col("mean") + alpha * pl.col("std") - pl.col("entropy")).alias("short")
    return values.group_by("root_id").agg(short.min())["short"].median()  # type: ignore[return-value]


@dataclass(frozen=True)
class PlantedFigures:
    """The figures of the planted facts on the evidence page.

    rows: result of `measure` at every α. forms: result of `count_by_form` at `forms_alpha`, the
    lowest α. shortfall: result of `shortfall` at the highest α, that of the dataset.
    """

    rows: list[dict[str, Any]]
    forms: pl.DataFrame
    forms_alpha: float
    shortfall: float | None


def measure_facts(
    pairs: pl.DataFrame, values: pl.DataFrame, alphas: Iterable[float], rules: Sequence[str]
) -> PlantedFigures:
    """Measure everything at each α. pairs: from `scored_pairs`. values: from `values_of`."""
    by_falling = sorted(set(alphas), reverse=True)
    lowest = by_falling[-1]
    return PlantedFigures(
        rows=[row for alpha in by_falling for row in measure(pairs, values, alpha, rules)],
        forms=count_by_form(pairs, values, lowest, rules),
        forms_alpha=lowest,
        shortfall=shortfall(values, by_falling[0]),
    )


def scored_pairs(
    store: TableStore,
    shards: Sequence[str],
    facts: Sequence[Fact],
    values: pl.DataFrame,
) -> pl.DataFrame:
    """Return the scored pairs of the needing documents.

    values: from `values_of`. Beside the columns of `pairs`: mean and std of the root's entropies,
    stating (null at anchors outside the value), true (the chunk is of the stating document), decoy
    (the chunk is of a decoy).
    """
    ids = _document_ids(store, shards)
    decoys = [ids[text] for fact in facts for text in fact.decoys if text in ids]
    roots = store.read_all(ENTROPY_SCORES, shards, "roots").select("root_id", "mean", "std")
    return (
        store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs")
        .filter(pl.col("root_id").is_in(values["root_id"].unique().to_list()))
        .with_columns(doc_id=pl.col("chunk_id").str.replace(r"-[^-]*$", ""))
        .join(roots, on="root_id")
        .join(values.select("root_id", "anchor", "stating"), on=["root_id", "anchor"], how="left")
        .with_columns(
            true=pl.col("doc_id") == pl.col("stating"), decoy=pl.col("doc_id").is_in(decoys)
        )
    )


def _above(alpha: float) -> pl.Expr:
    return pl.col("entropy") > pl.col("mean") + alpha * pl.col("std")


def measure(
    pairs: pl.DataFrame, values: pl.DataFrame, alpha: float, rules: Iterable[str]
) -> list[dict[str, Any]]:
    """Measure the recall of every stage, precision, accepted decoys, and pairs accepted elsewhere.

    Returns rows of measure, alpha, rule, passed, total, rate, low, high and is_rough. pairs: from
    `scored_pairs`. values: from `values_of`. alpha: at least the one that the tables were made
    with; only anchors above τ = μ + α·σ are counted. rules: names of evaluated rules.
    """
    needs = values["root_id"].unique().sort().to_list()
    pairs = pairs.filter(_above(alpha))
    at_value = pairs.filter(pl.col("stating").is_not_null())
    elsewhere = pairs.filter(pl.col("stating").is_null())

    def row(measure: str, rule: str, trials: pl.DataFrame, hit: pl.Expr) -> dict[str, Any]:
        rate = acceptance_rate(trials, hit)
        return (
            {"measure": measure, "alpha": alpha, "rule": rule}
            | {"passed": rate.passed, "total": rate.total}
            | {"rate": rate.value if rate.total else None, "low": rate.low, "high": rate.high}
            | {"is_rough": rate.is_rough}
        )

    def share_of_facts(measure: str, rule: str, hits: pl.DataFrame) -> dict[str, Any]:
        trials = pl.DataFrame({"root_id": needs}, schema={"root_id": pl.String})
        hit = pl.col("root_id").is_in(hits["root_id"].unique().to_list())
        return row(measure, rule, trials.with_columns(hit=hit), pl.col("hit"))

    true = pl.col("true")
    rows = [
        share_of_facts("facts whose value contains an anchor", "", values.filter(_above(alpha))),
        share_of_facts("facts whose statement was retrieved for it", "", at_value.filter(true)),
    ]
    for rule in rules:
        accepts = accepted_by(rule)
        accepted = at_value.filter(accepts)
        tried = at_value.filter("decoy")
        rows += [
            share_of_facts("recall: facts with an accepted true pair", rule, accepted.filter(true)),
            row("precision: accepted pairs at a value that are true", rule, accepted, true),
            row("decoys accepted at a value", rule, tried, accepts),
            row("pairs accepted at other anchors", rule, elsewhere, accepts),
        ]
    return rows


def count_by_form(
    pairs: pl.DataFrame, values: pl.DataFrame, alpha: float, rules: Iterable[str]
) -> pl.DataFrame:
    """Count the facts of each form that reach each stage.

    Columns: form, facts, anchor (the value contains one), retrieved (the stating document was
    nominated for it), and one per rule: facts with an accepted true pair. Arguments as in
    `measure`.
    """
    true = pairs.filter(_above(alpha), pl.col("true"), pl.col("stating").is_not_null())
    reached = {
        "facts": values,
        "anchor": values.filter(_above(alpha)),
        "retrieved": true,
        **{rule: true.filter(accepted_by(rule)) for rule in rules},
    }
    forms = values.select("root_id", "form").unique()
    return (
        forms.group_by("form")
        .agg(
            pl.col("root_id").is_in(rows["root_id"].unique().to_list()).sum().alias(name)
            for name, rows in reached.items()
        )
        .sort("form")
    )
