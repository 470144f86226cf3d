"""The stage `verified_dependencies`: score every candidate and judge it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE, VERIFY
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Check, Markdown, Partition, Result, Stage, Step
from entropylong_assets.stages.verification.evidence_kinds import KINDS
from entropylong_assets.stages.verification.false_acceptance import ROUGH
from entropylong_assets.stages.verification.registry import (
    NO_SCREEN,
    SCREENS,
    evaluated_rules,
    gain_limit,
)
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.stored_scores import (
    SCORING_SETTINGS,
    StoredScores,
    find_scores,
)
from entropylong_assets.stages.verification.tables import (
    VERIFIED_DEPENDENCIES,
    VerifiedDependenciesSummary,
)
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.charts import gain_histogram
    from entropylong_assets.stages.embeddings.table import open_table
    from entropylong_assets.stages.entropy.engine import PackedScorer, load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.retrieval.chunk_universe import chunk_universe
    from entropylong_assets.stages.verification.shard_verification import (
        Verifier,
        checkpoints_key,
        verify_shard,
    )

    settings, store, shard = step.settings, step.store, step.shard
    candidates = store.summary(CANDIDATE_CONTEXTS, shard)
    model = load_scoring_model(settings.scoring)
    scored_by = store.summary(ENTROPY_SCORES, shard).model
    if scored_by != model.identity:
        raise TableError(
            f"{ENTROPY_SCORES.name}, {shard}: scored by {scored_by}, but scoring.model is "
            f"{model.identity}; materialize {ENTROPY_SCORES.name} first"
        )
    table = open_table(store, candidates.index)
    pack_tokens, screen = settings.scoring.pack_tokens, settings.verification.screen
    scorer = load_scorer(model, pack_tokens)
    screener = None if screen == NO_SCREEN else SCREENS[screen](model, pack_tokens)
    used = {"scoring": scorer, "screen": getattr(screener, "scorer", screener)}
    engines = {
        name: engine
        for name, engine in used.items()
        if isinstance(engine, PackedScorer) and (name == "scoring" or engine is not scorer)
    }
    before = {name: engine.usage.snapshot() for name, engine in engines.items()}
    finished = 0

    def on_roots(roots: int) -> None:
        nonlocal finished
        finished += roots
        if not step.progress.done:  # from an interrupted run: they took no time
            step.progress.restart()
        step.progress.reach("roots", finished, candidates.roots)

    def on_progress(tokens: int, roots_of_batch: float) -> None:
        step.progress(tokens)
        step.progress.reach("roots", finished + roots_of_batch, candidates.roots)

    step.progress.reach("roots", 0, candidates.roots)
    verified = verify_shard(
        Verifier(
            settings,
            model.tokenizer,
            model.max_positions,
            scorer,
            chunk_universe(table, candidates.excluded_shards),
            lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
            screener,
        ),
        step,
        step.writer,
        step.checkpoints(checkpoints_key(step.determinants, settings, str(scorer.device))),
        stored=_stored_scores(step),
        on_root=on_roots,
        on_progress=on_progress,
    )
    if verified.resumed_batches:
        step.log(f"{verified.resumed_batches} batches come from an interrupted run")
    summary = VerifiedDependenciesSummary(
        **verified.counts.summary(),
        forward_tokens=verified.forward_tokens,
        evidence_tokens=verified.evidence_tokens,
        model=model.identity,
        vocab_size=model.vocab_size,
        screen=verified.screen,
    )
    usage = {name: engine.figures(before[name]) for name, engine in engines.items()}
    scoring = {
        **usage.pop("scoring"),
        "resumed_batches": verified.resumed_batches,
        "evidence_tokens": summary.evidence_tokens,
        "pairs_saved_by_sharing": summary.pairs_scored - summary.contexts_scored,
        **usage,
    }
    scored = summary.pairs_scored
    histogram = gain_histogram(verified.counts.histograms, gain_limit(settings.verification))
    return Result(
        summary,
        {
            "acceptance rate": summary.accepted / scored if scored else 0.0,
            "verdicts": summary.verdicts,
            "dependencies by kind": summary.dependencies_by_kind,
            "scoring": scoring,
            "preview": verified.counts.best,
            "gains": Markdown(histogram),
        },
    )


def _stored_scores(step: Step) -> StoredScores | None:
    """Scores of the same requests, if a dataset over this corpus has them."""
    dataset = find_scores(step.store, step.shard, step.determinants)
    if dataset is None:
        return None
    step.log(f"scores that dataset {dataset} has are taken from it: only the rule differs")
    return StoredScores(TableStore(step.store.uri, step.store.corpus, dataset), step.shard)


def _determined_by(settings: Settings) -> tuple[str, ...]:
    verification: VerificationSettings = settings.verification
    own = [*SCORING_SETTINGS, "rule", "compared_rules", "evidence"]
    own += ["screen_recall"] if verification.screen != NO_SCREEN else []
    own += [name for rule in evaluated_rules(verification).values() for name in rule.settings]
    if verification.evidence:  # boilerplate is a kind of dependencies
        own += ["max_phrase_documents", "max_pair_documents", "excluded_anchors"]
    paths = [f"verification.{name}" for name in own]
    paths += [f"scoring.{n}" for n in ("model", "bos", "separator", "dtype", "max_forward_tokens")]
    if verification.controls:
        leak_check = ("leak_check", "leak_ngram_words", "max_containment")
        paths += ["seed", *(f"retrieval.{name}" for name in leak_check)]
    return tuple(dict.fromkeys(paths))


def _identify(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import model_identity

    return {
        "model": model_identity(partition.settings.scoring),
        # Controls are drawn from the version of the chunk table that the candidates come from.
        "index": partition.store.summary(CANDIDATE_CONTEXTS, partition.shard).index,
    }


def _views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard

    def summary() -> pl.DataFrame:
        """Figures of the rule in force."""
        figures = store.summary(VERIFIED_DEPENDENCIES, shard)
        rate = figures.false_acceptance.get(partition.settings.verification.rule)
        row = {
            "vocab_size": figures.vocab_size,
            "false_acceptance": rate and rate.rate,
            "false_acceptance_low": rate and rate.low,
            "false_acceptance_high": rate and rate.high,
            "interval_note": ROUGH if rate and rate.is_rough else None,
        }
        types = dict.fromkeys(row, pl.Float64) | {
            "vocab_size": pl.Int64,
            "interval_note": pl.String,
        }
        return pl.DataFrame([row], schema=types)

    return {
        "roots": (ENTROPY_SCORES, [shard], "roots"),
        "candidates": (CANDIDATE_CONTEXTS, [shard], "candidates"),
        "pairs": (VERIFIED_DEPENDENCIES, [shard], "pairs"),
        "controls": (VERIFIED_DEPENDENCIES, [shard], "controls"),
        "contexts": (VERIFIED_DEPENDENCIES, [shard], "contexts"),
        "evidence": (VERIFIED_DEPENDENCIES, [shard], "evidence"),
        "summary": summary,
    }


def _check_parameters(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.verification.evidence import MIN_KEPT
    from entropylong_assets.stages.verification.rules import COUNTED_DOCUMENTS

    settings = partition.settings.verification
    return settings.model_dump() | {
        "evaluated_rules": list(evaluated_rules(settings)),
        "min_kept": MIN_KEPT,
        "limits_hold_up_to": COUNTED_DOCUMENTS,
        "kinds": list(KINDS),
    }


VERIFIED_DEPENDENCIES_STAGE = Stage(
    tables=VERIFIED_DEPENDENCIES,
    description="""Every pair of an anchor and a candidate, with its scores and verdict.

Each pair has entropy and surprisal without a context, given the candidate and given the control
contexts; the plain and the calibrated information gain; and the verdict with its reason (paper,
section 3.3; the controls are ours). Accepted pairs also have an evidence span, the sentences that
keep the gain, and a kind.""",
    compute=_compute,
    inputs=(CANDIDATE_CONTEXTS_STAGE, ENTROPY_SCORES_STAGE),
    sections={"verification": VerificationSettings},
    determined_by=_determined_by,
    identify=_identify,
    code_version=9,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("pairs_reconcile", "Every candidate has one pair with a verdict."),
        Check(
            "scores_match_roots", f"Scores of the root alone are those of {ENTROPY_SCORES.name}."
        ),
        Check(
            "conditional_entropies_in_range",
            "Scores given contexts and controls are finite and in range.",
        ),
        Check("verdicts_recomputed", "ΔI, ΔI* and verdicts follow from scores, rule and ε."),
        Check("evidence_in_contexts", "Every accepted pair has one evidence span in its context."),
        Check(
            "controls_averaged", "Every scored anchor has its controls.", blocking=False, warns=True
        ),
        Check(
            "false_acceptance_low",
            "The rule in force accepts few control contexts.",
            blocking=False,
            warns=True,
        ),
    ),
    views=_views,
    check_parameters=_check_parameters,
    job=VERIFY,
    automation="per_shard",
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=frozenset({"pytorch", "parquet"}),
)
