"""The three audits: proof on a sample of a shard's roots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from entropylong_assets.audits.settings import AuditSettings
from entropylong_assets.audits.tables import (
    CROSS_MODEL_AUDIT,
    LONG_RANGE_AUDIT,
    NULL_CALIBRATION,
    CrossModelAuditSummary,
)
from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.embeddings.settings import QUERY_SETTINGS
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.registry import RECIPES
from entropylong_assets.stages.samples.stage import LEAK_CHECK_SETTINGS
from entropylong_assets.stages.stage import Check, Job, Markdown, Partition, Result, Stage, Step
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.duck import View

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.settings import ScoringModelSettings

_JOB = Job("audit", "Audit a sample of the roots of a verified shard.", hours=24)
_FOLDER = Path(__file__).parent / "checks"
_KINDS = frozenset({"pytorch", "parquet"})

_SAMPLED = ("seed", "audit.roots")
_SCORED = ("scoring.model", "scoring.bos", "scoring.dtype", "scoring.max_forward_tokens")
_NO_MODEL = "audit.model names no second model; name one of another family to have this audit"


def second_model(settings: Settings) -> ScoringModelSettings | None:
    """Settings of the second model: those of the first, with its name. None if none is named."""
    first: ScoringModelSettings = settings.scoring
    name = settings.audit.model
    return first.model_copy(update={"model": name}) if name else None


def _searched_index(partition: Partition) -> dict[str, Any]:
    """The index, and its shards, in which the partition's candidates were searched."""
    searched = partition.store.summary(CANDIDATE_CONTEXTS, partition.shard)
    return {"index": searched.index, "excluded_shards": sorted(searched.excluded_shards)}


def _embedder(partition: Partition) -> dict[str, Any]:
    from entropylong_assets.stages.embeddings.embedder import query_identity

    return {**query_identity(partition.corpus.embedding)}


def _model(partition: Partition) -> dict[str, Any]:
    from entropylong_assets.stages.entropy.model import model_identity

    return {"model": model_identity(partition.settings.scoring)}


def _identify_second_model(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import model_identity

    second = second_model(partition.settings)
    return {"second_model": model_identity(second) if second else None}


def _judged(settings: Settings) -> set[str]:
    """Settings that the verdicts depend on: the rules, and the settings that the rules read."""
    rules = evaluated_rules(settings.verification)
    read = {f"verification.{field}" for rule in rules.values() for field in rule.settings}
    return {"verification.rule", "verification.compared_rules", *read}


def _rule_parameters(partition: Partition) -> Mapping[str, Any]:
    verification = partition.settings.verification
    return {
        "epsilon": verification.epsilon,
        "rule": verification.rule,
        "evaluated_rules": list(evaluated_rules(verification)),
    }


# null_calibration


def _calibrate(step: Step) -> Result:
    from entropylong_assets.audits.audit_model import load_audit_model
    from entropylong_assets.audits.open_corpus import open_corpus
    from entropylong_assets.audits.shard_audits import calibrate_null
    from entropylong_assets.stages.charts import intervals

    model = load_audit_model(step.settings.scoring)
    summary, rates = calibrate_null(step, open_corpus(step), model)
    named = rates.filter(pl.col("total") > 0).select(
        "low",
        "high",
        "is_rough",
        name=pl.col("kind") + ", " + pl.col("rule"),
        value="rate",
    )
    metadata: dict[str, Any] = {"preview": rates}
    if len(named):
        picture = intervals(named.to_dicts(), "share that passes the rule")
        metadata["picture"] = Markdown(picture)
    return Result(summary, metadata)


def _null_views(partition: Partition) -> Mapping[str, View]:
    return {n: (NULL_CALIBRATION, [partition.shard], n) for n in ("trials", "rates")}


NULL_CALIBRATION_STAGE = Stage(
    tables=NULL_CALIBRATION,
    description="""How often contexts that should not help pass the rule, for a sample of roots.

Three kinds of held-out controls: random chunks, chunks on the same topic that no anchor retrieved,
and accepted chunks with their sentences shuffled. Also the smallest ε at which the rule accepts at
most a wished share of the random chunks, and the lift of retrieval over random contexts.""",
    compute=_calibrate,
    inputs=(ENTROPY_SCORES_STAGE, CANDIDATE_CONTEXTS_STAGE, VERIFIED_DEPENDENCIES_STAGE),
    sections={"audit": AuditSettings},
    determined_by=lambda settings: (
        *_SAMPLED,
        *_SCORED,
        *_judged(settings),
        *LEAK_CHECK_SETTINGS,
        "audit.controls",
        "audit.wished_false_acceptance",
        *QUERY_SETTINGS,
        "retrieval.top_k",
        "scoring.separator",
    ),
    identify=lambda partition: (
        _model(partition) | _searched_index(partition) | _embedder(partition)
    ),
    code_version=5,
    check_folder=_FOLDER,
    checks=(
        Check("null_gains_recomputed", "Gains of held-out controls follow from their entropies."),
        Check("null_rates_recounted", "Rates follow from the stored trials."),
        Check(
            "random_below_retrieved",
            "Random contexts pass less often than retrieved ones.",
            blocking=False,
            warns=True,
        ),
    ),
    views=_null_views,
    check_parameters=_rule_parameters,
    job=_JOB,
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=_KINDS,
    group="audits",
)


# cross_model_audit


def _audit_second_model(step: Step) -> Result:
    from entropylong_assets.audits.audit_model import load_audit_model
    from entropylong_assets.audits.cross_model import group_rows
    from entropylong_assets.audits.shard_audits import audit_second_model
    from entropylong_assets.stages.charts import both_gains

    second = second_model(step.settings)
    if second is None:
        return Result(CrossModelAuditSummary(skipped=_NO_MODEL))
    summary, pairs = audit_second_model(step, load_audit_model(second))
    metadata: dict[str, Any] = {"preview": pairs}
    if len(pairs):
        groups = dict(reversed(group_rows(pairs).items()))
        picture = both_gains(groups, step.settings.verification.epsilon)
        metadata["picture"] = Markdown(picture)
    return Result(summary, metadata)


def _skips_second_model(partition: Partition) -> str | None:
    return None if second_model(partition.settings) else _NO_MODEL


def _second_views(partition: Partition) -> Mapping[str, View]:
    return {
        "audited": (CROSS_MODEL_AUDIT, [partition.shard], "pairs"),
        "pairs": (VERIFIED_DEPENDENCIES, [partition.shard], "pairs"),
    }


def _second_model_determined_by(settings: Settings) -> Sequence[str]:
    if not settings.audit.model:
        return ("audit.model",)
    scored = (*_SCORED, "scoring.separator", "verification.epsilon")
    return (*_SAMPLED, *scored, "audit.model", "audit.pairs")


CROSS_MODEL_AUDIT_STAGE = Stage(
    tables=CROSS_MODEL_AUDIT,
    description="""A sample of pairs, scored again by a second model (`audit.model`).

Pairs are taken in equal numbers from those that all compared rules accept, that some accept, and
that none accepts. Shows how much of the data depends on its scoring model. Skipped without a second
model.""",
    compute=_audit_second_model,
    inputs=(ENTROPY_SCORES_STAGE, CANDIDATE_CONTEXTS_STAGE, VERIFIED_DEPENDENCIES_STAGE),
    determined_by=_second_model_determined_by,
    identify=_identify_second_model,
    skip_reason=_skips_second_model,
    code_version=3,
    check_folder=_FOLDER,
    checks=(
        Check("second_gains_recomputed", "The second model's gains follow from its entropies."),
    ),
    views=_second_views,
    check_parameters=_rule_parameters,
    job=_JOB,
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=_KINDS,
    group="audits",
)


# long_range_audit


def _audit_long_range(step: Step) -> Result:
    from entropylong_assets.audits.audit_model import load_audit_model
    from entropylong_assets.audits.audit_tables import recipe_order
    from entropylong_assets.audits.shard_audits import audit_long_range
    from entropylong_assets.stages.charts import intervals
    from entropylong_assets.stages.samples.pool import open_pool

    model = load_audit_model(step.settings.scoring)
    summary, recipes = audit_long_range(step, open_pool(step), model)
    metadata: dict[str, Any] = {"preview": recipes}
    drops = recipes.filter(measure="surprisal_drop_over_random").rename({"recipe": "name"})
    if len(drops):
        by_name = {row["name"]: row for row in drops.iter_rows(named=True)}
        ordered = [by_name[name] for name in recipe_order(by_name)]
        picture = intervals(ordered, "anchors' surprisal drop over random contexts (nats)")
        metadata["picture"] = Markdown(picture)
    return Result(summary, metadata)


def _long_range_views(partition: Partition) -> Mapping[str, View]:
    names = ("anchors", "windows", "dependencies")
    return {name: (LONG_RANGE_AUDIT, [partition.shard], name) for name in names}


def _searches(settings: Settings) -> bool:
    """Whether a compared recipe can search the index."""
    return any(RECIPES[name].needs_pool for name in settings.audit.recipes)


def _long_range_determined_by(settings: Settings) -> Sequence[str]:
    return (
        *_SAMPLED,
        *_SCORED,
        *LEAK_CHECK_SETTINGS,
        *{path for name in settings.audit.recipes for path in RECIPES[name].reads},
        *(QUERY_SETTINGS if _searches(settings) else ()),
        "audit.recipes",
        "audit.segment_pairs",
        "audit.segment_tokens",
        "audit.short_tokens",
        "samples.order",
        "scoring.separator",
        "verification.rule",
    )


def _identify_long_range(partition: Partition) -> Mapping[str, Any]:
    embedder = _embedder(partition) if _searches(partition.settings) else {}
    return _model(partition) | _searched_index(partition) | embedder


LONG_RANGE_AUDIT_STAGE = Stage(
    tables=LONG_RANGE_AUDIT,
    description="""All recipes on the same roots and token budget: how their contexts help.

Measured in the packed sequence: entropy and surprisal at anchors against random contexts of the
same length, by distance; the density of key tokens; the dependency score. Each has an interval over
roots. Natural windows have no contexts to replace: their key tokens are in `natural_documents`.""",
    compute=_audit_long_range,
    inputs=(ENTROPY_SCORES_STAGE, VERIFIED_DEPENDENCIES_STAGE),
    determined_by=_long_range_determined_by,
    identify=_identify_long_range,
    code_version=4,
    check_folder=_FOLDER,
    checks=(
        Check("windows_within_budget", "Recipes are compared on whole windows, once per root."),
        Check("in_place_scores_sound", "Scores in place are finite and not negative."),
    ),
    views=_long_range_views,
    check_parameters=_rule_parameters,
    job=_JOB,
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=_KINDS,
    group="audits",
)
