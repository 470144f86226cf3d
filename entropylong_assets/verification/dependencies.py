"""Verifies the candidates of a shard, root by root (paper, section 3.3; controls are ours)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.settings import VerificationSettings
from entropylong_assets.verification.controls import Control
from entropylong_assets.verification.gain import TOO_LONG, judge
from entropylong_assets.verification.planning import context_request, fits

PASSED = "passed"


@dataclass(frozen=True)
class RootCandidates:
    """One root and what was nominated for it.

    token_ids: of the root. entropies, surprisals: by position, nats, None where undefined.
    candidates: rows of the table `candidates`, this root's.
    """

    root_id: str
    token_ids: Sequence[int]
    entropies: Sequence[float | None]
    surprisals: Sequence[float | None]
    candidates: pl.DataFrame


@dataclass
class RootPlan:
    """The forward passes of one root, before and after they are scored."""

    root: RootCandidates
    refusals: dict[str, str]
    """Chunks that are not scored, and why."""
    contexts: dict[str, list[int]]
    """Anchors, ascending, that each scored chunk was nominated for."""
    controls: list[Control]
    control_anchors: list[int]
    requests: list[ScoringRequest] = field(default_factory=list)


DrawControls = Callable[[RootCandidates, int], list[Control]]
"""(root, length in tokens) to its control contexts."""


def plan_root(
    root: RootCandidates,
    context_ids: Mapping[str, Sequence[int]],
    bos_ids: Sequence[int],
    max_positions: int,
    draw: DrawControls,
) -> RootPlan:
    """Requests for every distinct candidate, then for every control of the root.

    context_ids: token ids of each chunk as they will be packed, the separator's included.
    """
    refusals: dict[str, str] = {}
    contexts: dict[str, list[int]] = {}
    nominated = root.candidates.group_by("chunk_id", "guard", maintain_order=True).agg("anchor")
    for chunk_id, guard, anchors in nominated.iter_rows():
        if guard != PASSED:
            refusals[chunk_id] = guard
        elif not fits(bos_ids, context_ids[chunk_id], max(anchors), max_positions):
            refusals[chunk_id] = TOO_LONG
        else:
            contexts[chunk_id] = sorted(anchors)
    anchors = sorted({t for scored in contexts.values() for t in scored})
    controls: list[Control] = []
    if anchors:
        length = round(statistics.median(len(context_ids[c]) for c in contexts))
        room = max_positions - len(bos_ids) - anchors[-1] - 1
        controls = draw(root, min(length, room))
    plan = RootPlan(root, refusals, contexts, controls, anchors)
    plan.requests = [
        context_request(bos_ids, context_ids[c], root.token_ids, scored)
        for c, scored in contexts.items()
    ] + [context_request(bos_ids, c.token_ids, root.token_ids, anchors) for c in controls]
    return plan


def verify_roots(
    plans: Sequence[RootPlan],
    scorer: Scorer,
    settings: VerificationSettings,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores all requests of these roots and judges every pair: rows of `pairs` and `controls`."""
    scores = iter(scorer.score([r for plan in plans for r in plan.requests], on_progress))
    all_pairs, all_controls = [], []
    for plan in plans:
        by_chunk = {chunk_id: next(scores) for chunk_id in plan.contexts}
        by_control = [(control, next(scores)) for control in plan.controls]
        controls = _control_rows(plan, by_control)
        all_controls.append(controls)
        all_pairs.append(_pair_rows(plan, by_chunk, controls))
    pairs = judge(pl.concat(all_pairs), settings) if all_pairs else pl.DataFrame()
    return pairs, pl.concat(all_controls) if all_controls else pl.DataFrame()


_CONTROL_SCHEMA = {
    "root_id": pl.String,
    "control": pl.Int32,
    "anchor": pl.Int32,
    "entropy": pl.Float32,
    "surprisal": pl.Float32,
}


def _control_rows(plan: RootPlan, scores: Sequence[tuple[Control, PositionScores]]) -> pl.DataFrame:
    parts = [
        pl.DataFrame(
            {
                "root_id": [plan.root.root_id] * len(plan.control_anchors),
                "control": [control.number] * len(plan.control_anchors),
                "anchor": plan.control_anchors,
                "entropy": score.entropy_N,
                "surprisal": score.surprisal_N,
            },
            schema=_CONTROL_SCHEMA,
        )
        for control, score in scores
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=_CONTROL_SCHEMA)


def _pair_rows(
    plan: RootPlan, scores: Mapping[str, PositionScores], controls: pl.DataFrame
) -> pl.DataFrame:
    """One row for each candidate of each anchor, in the order of the candidates."""
    scored = [
        (chunk_id, anchor, entropy, surprisal)
        for chunk_id, score in scores.items()
        for anchor, entropy, surprisal in zip(
            plan.contexts[chunk_id], score.entropy_N, score.surprisal_N, strict=True
        )
    ]
    behind = pl.DataFrame(
        scored,
        schema={
            "chunk_id": pl.String,
            "anchor": pl.Int32,
            "entropy_context": pl.Float32,
            "surprisal_context": pl.Float32,
        },
        orient="row",
    )
    mean = controls.group_by("anchor").agg(
        pl.col("entropy").cast(pl.Float64).mean().cast(pl.Float32).alias("entropy_control"),
        pl.col("surprisal").cast(pl.Float64).mean().cast(pl.Float32).alias("surprisal_control"),
    )
    alone = pl.DataFrame(
        {
            "anchor": np.arange(len(plan.root.token_ids), dtype=np.int32),
            "entropy": pl.Series(plan.root.entropies, dtype=pl.Float32),
            "surprisal": pl.Series(plan.root.surprisals, dtype=pl.Float32),
        }
    )
    refusal = pl.col("chunk_id").replace_strict(plan.refusals, default=None, return_dtype=pl.String)
    return (
        plan.root.candidates.select("root_id", "anchor", "rank", "chunk_id", "similarity")
        .with_columns(pl.col("anchor").cast(pl.Int32))
        .join(behind, on=["chunk_id", "anchor"], how="left", maintain_order="left")
        .join(mean, on="anchor", how="left", maintain_order="left")
        .join(alone, on="anchor", how="left", maintain_order="left")
        .with_columns(refusal.alias("refusal"))
    )


def summarise(pairs: pl.DataFrame) -> dict[str, Any]:
    """Counts by verdict, acceptance under both rules, and mean gains of accepted pairs."""
    counts: Counter[str] = Counter(dict(pairs["verdict"].value_counts().iter_rows()))
    accepted = pairs.filter("accepted")
    scored = pairs.filter(pl.col("entropy_context").is_not_null())
    return {
        "pairs": len(pairs),
        "pairs_scored": len(scored),
        "accepted": len(accepted),
        "accepted_plain": int(pairs["accepted_plain"].sum()),
        "accepted_calibrated": int(pairs["accepted_calibrated"].sum()),
        "mean_gain": accepted["gain"].mean(),
        "mean_calibrated_gain": accepted["calibrated_gain"].mean(),
        "verdicts": dict(sorted(counts.items())),
    }
