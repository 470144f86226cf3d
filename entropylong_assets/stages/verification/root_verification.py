"""Verifies the candidates of a shard, root by root (paper, section 3.3; controls are ours)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.verification.controls import Control
from entropylong_assets.stages.verification.gain import NOT_TRIED, TOO_LONG, judge
from entropylong_assets.stages.verification.requests import context_request, fits
from entropylong_assets.stages.verification.screen import Key, Screen

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
    """Anchors, ascending, that each chunk to be tried was nominated for; best yield first."""
    controls: list[Control]
    control_anchors: list[int]
    requests: dict[str, ScoringRequest] = field(default_factory=dict)
    """Of each chunk in `contexts`."""
    control_requests: list[ScoringRequest] = field(default_factory=list)


DrawControls = Callable[[RootCandidates, int], list[Control]]
"""(root, length in tokens) to its control contexts."""


def plan_root(
    root: RootCandidates,
    context_ids: Mapping[str, Sequence[int]],
    bos_ids: Sequence[int],
    max_positions: int,
    draw: DrawControls,
    max_forward_tokens: int | None = None,
) -> RootPlan:
    """Requests for every distinct candidate and for every control of the root.

    context_ids: token ids of each chunk as they will be packed, the separator's included. Under
    `max_forward_tokens` the controls are those that the root would have without it, and the
    candidates that no longer fit are refused as not tried.
    """
    refusals: dict[str, str] = {}
    contexts: dict[str, list[int]] = {}
    for chunk_id, guard, anchors in by_expected_yield(root.candidates).iter_rows():
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
    plan.requests = {
        c: context_request(bos_ids, context_ids[c], root.token_ids, scored)
        for c, scored in contexts.items()
    }
    plan.control_requests = [
        context_request(bos_ids, c.token_ids, root.token_ids, anchors) for c in controls
    ]
    return plan if max_forward_tokens is None else _within(plan, max_forward_tokens)


def by_expected_yield(candidates: pl.DataFrame) -> pl.DataFrame:
    """chunk_id, guard and anchors of each distinct candidate, the most promising first.

    That is the one with the most anchors behind it, then with the highest similarity, then with
    the best rank; the id decides what is still equal.
    """
    return (
        candidates.group_by("chunk_id", "guard")
        .agg(
            "anchor",
            pl.len().alias("votes"),
            pl.col("similarity").max(),
            pl.col("rank").min().alias("best_rank"),
        )
        .sort(
            ["votes", "similarity", "best_rank", "chunk_id", "guard"],
            descending=[True, True, False, False, False],
        )
        .select("chunk_id", "guard", "anchor")
    )


def _within(plan: RootPlan, max_forward_tokens: int) -> RootPlan:
    """The plan without what comes after the budget is spent; without controls if that is all."""
    left = max_forward_tokens - sum(_tokens(r) for r in plan.control_requests)
    kept: dict[str, list[int]] = {}
    for chunk_id, anchors in plan.contexts.items():
        left -= _tokens(plan.requests[chunk_id])
        if left < 0:
            break
        kept[chunk_id] = anchors
    untried = [c for c in plan.contexts if c not in kept]
    return RootPlan(
        plan.root,
        plan.refusals | dict.fromkeys(untried, NOT_TRIED),
        kept,
        plan.controls if kept else [],
        plan.control_anchors if kept else [],
        {c: plan.requests[c] for c in kept},
        plan.control_requests if kept else [],
    )


def _tokens(request: ScoringRequest) -> int:
    """What its forward pass takes: up to the last scored position."""
    return int(request.positions_N[-1])


def verify_roots(
    plans: Sequence[RootPlan],
    scorer: Scorer,
    settings: VerificationSettings,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    max_contexts: int | None = None,
    screen: Screen | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores these roots and judges every pair: rows of `pairs` and `controls`.

    Under `max_contexts` a root's candidates are tried in waves, each as large as what the root
    still lacks, so that it never gets more; the rest is refused as not tried.
    """
    of_controls = iter(scorer.score([r for p in plans for r in p.control_requests], on_progress))
    controls = [
        _control_rows(plan, [(control, next(of_controls)) for control in plan.controls])
        for plan in plans
    ]
    scores: list[dict[str, PositionScores]] = [{} for _ in plans]

    def judged(found: Sequence[Mapping[str, PositionScores]]) -> pl.DataFrame:
        rows = [_pair_rows(p, f, c) for p, f, c in zip(plans, found, controls, strict=True)]
        return judge(pl.concat(rows), settings) if rows else pl.DataFrame()

    by_root = {plan.root.root_id: number for number, plan in enumerate(plans)}

    def judged_only(of: Mapping[Key, PositionScores]) -> pl.DataFrame:
        found: list[dict[str, PositionScores]] = [{} for _ in plans]
        for (root_id, chunk_id), score in of.items():
            found[by_root[root_id]][chunk_id] = score
        return judged(found).filter(pl.col("entropy_context").is_not_null())

    accepted = dict.fromkeys(by_root, 0)
    while wave := _wave(plans, scores, accepted, max_contexts):
        if screen is None:
            new = scorer.score(list(wave.values()), on_progress)
            of_wave = dict(zip(wave, new, strict=True))
        else:
            of_wave = screen.score(wave, scorer, judged_only, on_progress)
        for (root_id, chunk_id), score in of_wave.items():
            scores[by_root[root_id]][chunk_id] = score
        if max_contexts is not None:
            served = judged_only(of_wave).filter("accepted").select("root_id", "chunk_id").unique()
            for (root_id,), rows in served.group_by("root_id"):
                accepted[str(root_id)] += len(rows)
    for plan, found in zip(plans, scores, strict=True):
        plan.refusals |= {c: NOT_TRIED for c in plan.contexts if c not in found}
    return judged(scores), pl.concat(controls) if controls else pl.DataFrame()


def _wave(
    plans: Sequence[RootPlan],
    scores: Sequence[Mapping[str, PositionScores]],
    accepted: Mapping[str, int],
    max_contexts: int | None,
) -> dict[Key, ScoringRequest]:
    """The next candidates of all roots that want more."""
    wave: dict[Key, ScoringRequest] = {}
    for plan, found in zip(plans, scores, strict=True):
        root_id = plan.root.root_id
        lacking = None if max_contexts is None else max_contexts - accepted[root_id]
        left = [chunk_id for chunk_id in plan.contexts if chunk_id not in found]
        wave |= {(root_id, chunk_id): plan.requests[chunk_id] for chunk_id in left[:lacking]}
    return wave


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
