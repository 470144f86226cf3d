"""The audits of one shard: reads the tables of the stages and writes those of the audits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import polars as pl

from entropylong_assets.audits import null_calibration
from entropylong_assets.audits.audit_model import AuditModel
from entropylong_assets.audits.cross_model import SecondAudit, choose_pairs, summarize
from entropylong_assets.audits.long_range import LongRange
from entropylong_assets.audits.null_contexts import Corpus, NullContexts, RootTexts
from entropylong_assets.audits.recipe_measures import measures
from entropylong_assets.audits.root_sample import ScoredRoot, sample_roots
from entropylong_assets.audits.tables import (
    CROSS_MODEL_AUDIT,
    LONG_RANGE_AUDIT,
    NULL_CALIBRATION,
    CrossModelAuditSummary,
    LongRangeAuditSummary,
    NullCalibrationSummary,
)
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.packing import Framing
from entropylong_assets.stages.samples.registry import RECIPES, Pool
from entropylong_assets.stages.samples.selection import choose_groups, has_verdicts
from entropylong_assets.stages.stage import Partition, Step
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet

SKIPPED_DRAWS = 64
"""Number of drawn passages that are skipped, because recipe `random` uses the first ones."""


def calibrate_null(
    step: Step, corpus: Corpus, model: AuditModel
) -> tuple[NullCalibrationSummary, pl.DataFrame]:
    """Write `trials` and `rates`; returns the summary and the rates."""
    settings, verification = step.settings, step.settings.verification
    roots = sample_roots(step)
    contexts = NullContexts(corpus, model.tokenizer, settings)
    planned = [
        (root, list(contexts.of_root(root, texts)))
        for root, texts in zip(roots, _texts_of(roots, step), strict=True)
    ]
    trials = null_calibration.score_null(planned, model, verification, step.progress)
    pairs = pl.concat([_no_pairs(step), *(root.pairs for root in roots)])
    rows = null_calibration.rates(trials, pairs, evaluated_rules(verification))
    step.writer.append("trials", trials)
    step.writer.append("rates", rows)
    in_force = [r for r in rows if r["rule"] == verification.rule and r["total"]]
    wished = settings.audit.wished_false_acceptance
    summary = NullCalibrationSummary(
        roots=len(roots),
        trials=len(trials),
        forward_tokens=step.progress.done,
        accepted={row["kind"]: row["rate"] for row in in_force},
        accepted_low={row["kind"]: row["low"] for row in in_force},
        accepted_high={row["kind"]: row["high"] for row in in_force},
        accepted_is_rough={row["kind"]: row["is_rough"] for row in in_force},
        **null_calibration.lift(trials, pairs, verification.rule),
        **null_calibration.epsilon_for(trials, verification, wished, settings.seed),
    )
    return summary, _frame(rows, NULL_CALIBRATION, "rates")


def _texts_of(roots: Sequence[ScoredRoot], partition: Partition) -> Iterator[RootTexts]:
    """Yield texts and chunks that are stored for each root, besides its pairs."""
    store, shard = partition.store, partition.shard
    queries = store.read(CANDIDATE_CONTEXTS, shard, "queries").sort("root_id", "anchor")
    controls = store.read(VERIFIED_DEPENDENCIES, shard, "control_contexts")
    columns = ["chunk_id", "token_ids"]
    contexts = dict(store.read(VERIFIED_DEPENDENCIES, shard, "contexts", columns).iter_rows())
    for root in roots:
        yield RootTexts(
            queries.filter(root_id=root.root_id)["query"].to_list(),
            controls.filter(root_id=root.root_id)["chunk_ids"].explode().to_list(),
            contexts,
        )


def _no_pairs(partition: Partition) -> pl.DataFrame:
    return partition.store.read(VERIFIED_DEPENDENCIES, partition.shard, "pairs").clear()


def _frame(rows: list[dict[str, Any]], tables: TableSet[Any], table: str) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=pl.Schema(tables.schemas[table]))


def audit_second_model(
    step: Step, second: AuditModel
) -> tuple[CrossModelAuditSummary, pl.DataFrame]:
    """Write `pairs` and `dropped`; returns the summary and the pairs."""
    settings = step.settings
    roots = sample_roots(step)
    columns = ["chunk_id", "text"]
    texts = dict(step.store.read(CANDIDATE_CONTEXTS, step.shard, "chunks", columns).iter_rows())
    first = load_tokenizer(settings.scoring)
    audit = SecondAudit(roots, first, second, settings.scoring.separator)
    for pair in choose_pairs(roots, settings.audit.pairs, settings.seed):
        audit.add(pair, texts[pair["chunk_id"]])
    audit.run(settings.verification.epsilon, step.progress)
    step.writer.append("pairs", audit.rows)
    step.writer.append("dropped", audit.dropped)
    pairs = _frame(audit.rows, CROSS_MODEL_AUDIT, "pairs")
    summary = CrossModelAuditSummary(
        second_model=second.identity,
        dropped=len(audit.dropped),
        forward_tokens=step.progress.done,
        **summarize(pairs),
    )
    return summary, pairs


def audit_long_range(
    step: Step, pool: Pool, model: AuditModel
) -> tuple[LongRangeAuditSummary, pl.DataFrame]:
    """Write all tables of the audit; returns the summary and the measures of the recipes."""
    settings, store, shard = step.settings, step.store, step.shard
    recipes = _audited_recipes(step)
    sampled = {root.root_id: root for root in sample_roots(step)}
    tokenizer = model.tokenizer
    framing = Framing(  # windows have no padding
        bos_ids=tokenizer.bos_ids, separator_ids=tokenizer.separator_ids, pad_id=0
    )
    audit = LongRange(settings, framing, model.max_positions)
    tables = (
        store.read(ENTROPY_SCORES, shard, "roots", ["root_id", "token_ids"]),
        store.read(VERIFIED_DEPENDENCIES, shard, "pairs"),
        store.read(VERIFIED_DEPENDENCIES, shard, "contexts"),
    )
    drawn: dict[str, list[Context]] = {}
    for recipe in recipes:
        samples = settings.samples.model_copy(update={"recipe": recipe})
        groups, _ = choose_groups(*tables, settings.model_copy(update={"samples": samples}), pool)
        for group in groups:
            if group.root_id not in sampled:
                continue
            wanted = _n_tokens(group.chosen)
            if _n_tokens(drawn.get(group.root_id, [])) < wanted:
                drawn[group.root_id] = _draw_passages(pool, group, wanted)
            audit.add(recipe, sampled[group.root_id], group, drawn.get(group.root_id, []))
    audit.run(model.scorer, step.progress)
    rows = measures(audit.anchors, audit.windows, audit.dependencies)
    step.writer.append("anchors", audit.anchors)
    step.writer.append("windows", audit.windows)
    step.writer.append("dependencies", audit.dependencies)
    step.writer.append("recipes", rows)
    summary = LongRangeAuditSummary(
        roots=len({window["root_id"] for window in audit.windows}),
        windows=len(audit.windows),
        windows_too_long=audit.left_out,
        sequences=len(audit.requests),
        forward_tokens=step.progress.done,
    )
    return summary, _frame(rows, LONG_RANGE_AUDIT, "recipes")


def _audited_recipes(step: Step) -> list[str]:
    """The recipes of `audit.recipes` by rules whose verdicts are stored; the others are logged."""
    chosen = step.settings.audit.recipes
    left_out = [name for name in chosen if not has_verdicts(RECIPES[name].rule, step.settings)]
    if left_out:
        rules = dict.fromkeys(str(RECIPES[recipe].rule) for recipe in left_out)
        step.log(
            f"recipes left out: {', '.join(left_out)}. They verify by rules whose verdicts are not "
            f"stored; to audit them, add {', '.join(rules)} to verification.compared_rules"
        )
    return [recipe for recipe in chosen if recipe not in left_out]


def _n_tokens(contexts: Sequence[Context]) -> int:
    return sum(len(context.token_ids) for context in contexts)


def _draw_passages(pool: Pool, group: Group, wanted: int) -> list[Context]:
    """Draw random passages of `wanted` tokens for the control of a window.

    They differ from the passages of recipe `random`, unless the corpus is too small.
    """
    passages: list[Context] = []
    for context in islice(pool.at_random(group), SKIPPED_DRAWS, None):
        passages.append(context)
        if _n_tokens(passages) >= wanted:
            return passages
    return list(pool.at_random(group))[::-1]
