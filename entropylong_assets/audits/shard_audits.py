"""One shard's audits: from the tables of the pipeline to those of the audits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import polars as pl

from entropylong_assets.audits import cross_model, null_calibration
from entropylong_assets.audits.long_range import LongRange
from entropylong_assets.audits.root_sample import clustered_mean, sample_roots
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.packing import Framing
from entropylong_assets.stages.samples.recipes import Pool, choose_groups
from entropylong_assets.storage.tables import PartitionWriter, TableStore

Progress = Callable[[int], None]


def calibrate_null(
    store: TableStore,
    shard: str,
    settings: Settings,
    corpus: null_calibration.Corpus,
    tokenizer: Tokenizer,
    scorer: Scorer,
    max_positions: int,
    writer: PartitionWriter,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Writes trials and rates; returns the figures."""
    roots = sample_roots(store, shard, settings.audit.roots, settings.seed)
    queries = store.read("candidate_contexts", shard, "queries").sort("root_id", "anchor")
    asked = {k[0]: v["query"].to_list() for k, v in queries.group_by("root_id")}
    contexts = _token_ids(store, shard)
    controls = store.read("verified_dependencies", shard, "control_contexts")
    stored = {k[0]: v["chunk_ids"].explode().to_list() for k, v in controls.group_by("root_id")}
    planned = [
        (
            root,
            list(
                null_calibration.null_contexts(
                    root,
                    asked.get(root.root_id, []),
                    stored.get(root.root_id, []),
                    contexts,
                    corpus,
                    tokenizer,
                    settings,
                    settings.audit.controls,
                )
            ),
        )
        for root in roots
    ]
    rule = settings.verification
    trials = null_calibration.score_null(
        planned, tokenizer, scorer, max_positions, rule, on_progress
    )
    empty = store.read("verified_dependencies", shard, "pairs").clear()
    pairs = pl.concat([empty, *(root.pairs for root in roots)])
    rows = null_calibration.rates(trials, pairs)
    writer.append("trials", trials)
    writer.append("rates", rows)
    figures: dict[str, Any] = {"roots": len(roots), "trials": len(trials)}
    for row in rows:
        if row["rule"] == rule.rule and row["total"]:
            for name in ("rate", "low", "high"):
                suffix = "" if name == "rate" else f"_{name}"
                figures[f"{row['kind']}_accepted{suffix}"] = row[name]
    figures |= null_calibration.lift(trials, pairs, rule.rule)
    return figures | null_calibration.epsilon_for(
        trials, rule, settings.audit.wished_false_acceptance, settings.seed
    )


def _token_ids(store: TableStore, shard: str) -> dict[str, list[int]]:
    contexts = store.read("verified_dependencies", shard, "contexts", ["chunk_id", "token_ids"])
    return dict(contexts.iter_rows())


def audit_second_model(
    store: TableStore,
    shard: str,
    settings: Settings,
    first: Tokenizer,
    second: cross_model.Second,
    writer: PartitionWriter,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Writes pairs and dropped; returns the figures."""
    roots = sample_roots(store, shard, settings.audit.roots, settings.seed)
    pairs = cross_model.choose_pairs(roots, settings.audit.pairs, settings.seed)
    texts = dict(
        store.read("candidate_contexts", shard, "chunks", ["chunk_id", "text"]).iter_rows()
    )
    rows, dropped = cross_model.audit(
        roots,
        pairs,
        texts.__getitem__,
        first,
        second,
        settings.scoring.separator,
        settings.verification.epsilon,
        on_progress,
    )
    writer.append("pairs", rows)
    writer.append("dropped", dropped)
    figures = cross_model.summarise(pl.DataFrame(rows)) if rows else {"pairs": 0}
    return figures | {"dropped": len(dropped)}


def audit_long_range(
    store: TableStore,
    shard: str,
    settings: Settings,
    pool: Pool,
    tokenizer: Tokenizer,
    scorer: Scorer,
    max_positions: int,
    writer: PartitionWriter,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Writes anchors, windows, dependencies and recipes; returns the counts."""
    sampled = {
        root.root_id: root
        for root in sample_roots(store, shard, settings.audit.roots, settings.seed)
    }
    bos = tokenizer.bos_ids[0] if tokenizer.bos_ids else None
    framing = Framing(bos_id=bos, separator_ids=tokenizer.separator_ids, pad_id=tokenizer.pad_id)
    audit = LongRange(settings, framing, max_positions, settings.audit.short_tokens)
    drawn: dict[str, list[Context]] = {}
    tables = (
        store.read("entropy_scores", shard, "roots", ["root_id", "token_ids"]),
        store.read("verified_dependencies", shard, "pairs"),
        store.read("verified_dependencies", shard, "contexts"),
    )
    for recipe in settings.audit.recipes:
        samples = settings.samples.model_copy(update={"recipe": recipe})
        groups, _ = choose_groups(*tables, settings.model_copy(update={"samples": samples}), pool)
        for group in groups:
            if group.root_id not in sampled:
                continue
            wanted = sum(len(context.token_ids) for context in group.chosen)
            known = drawn.get(group.root_id, [])
            if sum(len(c.token_ids) for c in known) < wanted:
                drawn[group.root_id] = known = _draw(pool, group, wanted)
            audit.add(recipe, sampled[group.root_id], group, known)
    audit.run(scorer, on_progress)
    writer.append("anchors", audit.anchors)
    writer.append("windows", audit.windows)
    writer.append("dependencies", audit.dependencies)
    writer.append("recipes", measures(audit.anchors, audit.windows, audit.dependencies))
    return {
        "roots": len({row["root_id"] for row in audit.windows}),
        "windows": len(audit.windows),
        "windows_too_long": audit.left_out,
        "sequences": len(audit.requests),
    }


def _draw(pool: Pool, group: Group, wanted: int, skip: int = 64) -> list[Context]:
    """Random passages for the control: other draws than those that recipe `random` takes."""
    passages: list[Context] = []
    total = 0
    for context in islice(pool.at_random(group), skip, None):
        passages.append(context)
        total += len(context.token_ids)
        if total >= wanted:
            break
    if total < wanted:  # a small corpus: what is there, from the end
        passages = list(pool.at_random(group))[::-1]
    return passages


def _recipes(windows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({window["recipe"] for window in windows})


def measures(
    anchors: Sequence[dict[str, Any]],
    windows: Sequence[dict[str, Any]],
    dependencies: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows of `recipes`: means with 95% intervals over roots, of one shard or of many.

    Of the roots that every recipe has: a window that is too long is missing under its recipe alone.
    """
    every = [{w["root_id"] for w in windows if w["recipe"] == r} for r in _recipes(windows)]
    shared = set.intersection(*every) if every else set()
    anchors, windows, dependencies = (
        [row for row in table if row["root_id"] in shared]
        for table in (anchors, windows, dependencies)
    )
    rows: list[dict[str, Any]] = []

    def row(recipe: str, measure: str, values: list[tuple[str, float]]) -> None:
        mean = clustered_mean([v for _, v in values], [r for r, _ in values])
        rows.append(
            {
                "recipe": recipe,
                "measure": measure,
                "value": mean.value,
                "low": mean.low,
                "high": mean.high,
                "trials": mean.trials,
                "roots": mean.clusters,
            }
        )

    for recipe in _recipes(windows):
        here = [a for a in anchors if a["recipe"] == recipe]
        for name in ("entropy", "surprisal"):
            falls = [(a["root_id"], a[f"{name}_random"] - a[f"{name}_in_place"]) for a in here]
            row(recipe, f"{name}_drop_over_random", falls)
        mine = [w for w in windows if w["recipe"] == recipe]
        row(
            recipe,
            "key_token_density",
            [(w["root_id"], w["key_tokens"] / w["root_tokens"]) for w in mine],
        )
        scored = [w for w in mine if w["dependency_score"] is not None]
        row(recipe, "dependency_score", [(w["root_id"], w["dependency_score"]) for w in scored])
        row(recipe, "context_tokens", [(w["root_id"], float(w["context_tokens"])) for w in mine])
        served = [d for d in dependencies if d["recipe"] == recipe]
        for where in ("near", "in_place"):
            falls = [(d["root_id"], d["surprisal"] - d[f"surprisal_{where}"]) for d in served]
            row(recipe, f"served_surprisal_drop_{where}", falls)
        falls = [(d["root_id"], d["surprisal_replaced"] - d["surprisal_in_place"]) for d in served]
        row(recipe, "served_surprisal_drop_over_replaced", falls)
    return rows
