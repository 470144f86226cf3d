"""Verification of roots: plan their forward passes, score them, and judge every pair.

Paper, section 3.3; the controls are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import polars as pl

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.retrieval.anchor_text import have_words
from entropylong_assets.stages.retrieval.leak_check import PASSED
from entropylong_assets.stages.verification.controls import Control
from entropylong_assets.stages.verification.gain import (
    EXCLUDED_BY_TEXT,
    NOT_TRIED,
    SCREENED_OUT,
    TEXT_COLUMNS,
    TOO_LONG,
    judge,
)
from entropylong_assets.stages.verification.registry import Key
from entropylong_assets.stages.verification.requests import (
    ContextRequest,
    context_request,
    fits,
    is_known,
    pass_tokens,
)
from entropylong_assets.stages.verification.screening import BatchScreen
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.stored_scores import NOTHING_KNOWN, KnownScores

K = TypeVar("K")


@dataclass(frozen=True)
class RootCandidates:
    """One root and its candidates.

    token_ids: of the root. entropies, surprisals: by position, nats, None if undefined.
    candidates: this root's rows of the table `candidates`, with `TEXT_COLUMNS`.
    """

    root_id: str
    token_ids: Sequence[int]
    entropies: Sequence[float | None]
    surprisals: Sequence[float | None]
    candidates: pl.DataFrame


@dataclass
class RootPlan:
    """The forward passes of one root."""

    root: RootCandidates
    refusals: dict[str, str]
    """Why chunks are not scored, by chunk."""
    contexts: dict[str, list[int]]
    """Anchors of each chunk to be tried, ascending; the most promising chunk first."""
    controls: list[Control]
    control_anchors: list[int]
    requests: dict[str, ContextRequest] = field(default_factory=dict)
    """One per chunk in `contexts`."""
    control_requests: list[ContextRequest] = field(default_factory=list)

    @property
    def forward_tokens(self) -> int:
        """Tokens of all of these passes."""
        return sum(pass_tokens(r) for r in (*self.requests.values(), *self.control_requests))

    def known_tokens(self, known: KnownScores) -> int:
        """Return the tokens of those passes whose scores are known."""
        root_id = self.root.root_id
        scores = [(r, known.contexts.get((root_id, c))) for c, r in self.requests.items()]
        for control, request in zip(self.controls, self.control_requests, strict=True):
            scores.append((request, known.controls.get((root_id, control.number))))
        return sum(pass_tokens(r) for r, score in scores if is_known(r, score))


DrawControls = Callable[[RootCandidates, int], list[Control]]
"""(root, length in tokens) to the control contexts of the root."""


def plan_root(
    root: RootCandidates,
    context_ids: Mapping[str, Sequence[int]],
    bos_ids: Sequence[int],
    max_positions: int,
    draw: DrawControls,
    max_forward_tokens: int | None = None,
    possible: pl.Expr | None = None,
) -> RootPlan:
    """Make the requests for every distinct candidate and every control of the root.

    context_ids: token ids of each chunk as in a sample, including the separator's. With
    max_forward_tokens the controls are the same as without it, and candidates that exceed it are
    refused as not tried. With `possible`, whether a pair may be accepted, candidates without such a
    pair are refused; the controls are the same as without it, or none if no candidate is left.
    """
    refusals: dict[str, str] = {}
    contexts: dict[str, list[int]] = {}
    for chunk_id, leak_check, anchors in by_expected_yield(root.candidates).iter_rows():
        if leak_check != PASSED:
            refusals[chunk_id] = leak_check
        elif not fits(bos_ids, context_ids[chunk_id], max(anchors), max_positions):
            refusals[chunk_id] = TOO_LONG
        else:
            contexts[chunk_id] = sorted(anchors)
    anchors = sorted({t for scored in contexts.values() for t in scored})
    controls: list[Control] = []
    if anchors:
        # The longer a random text, the more often it helps by chance: no candidate may be longer.
        length = max(len(context_ids[c]) for c in contexts)
        room = max_positions - len(bos_ids) - anchors[-1] - 1
        controls = draw(root, min(length, room))
    if possible is not None:
        left = set(root.candidates.filter(possible)["chunk_id"])
        refusals |= {c: EXCLUDED_BY_TEXT for c in contexts if c not in left}
        contexts = {c: scored for c, scored in contexts.items() if c in left}
        if not contexts:
            anchors, controls = [], []
    plan = RootPlan(root, refusals, contexts, controls, anchors)
    plan.requests = {
        c: context_request(bos_ids, context_ids[c], root.token_ids, scored, max_positions)
        for c, scored in contexts.items()
    }
    plan.control_requests = [
        context_request(bos_ids, c.token_ids, root.token_ids, anchors, max_positions)
        for c in controls
    ]
    return plan if max_forward_tokens is None else _fit_to_budget(plan, max_forward_tokens)


def by_expected_yield(candidates: pl.DataFrame) -> pl.DataFrame:
    """Return chunk_id, leak_check and anchors of each distinct candidate, most promising first.

    Candidates are ordered by the number of anchors that nominate them, then by their highest
    similarity, then by their best rank, then by id.
    """
    return (
        candidates.group_by("chunk_id", "leak_check")
        .agg(
            "anchor",
            pl.len().alias("votes"),
            pl.col("similarity").max(),
            pl.col("rank").min().alias("best_rank"),
        )
        .sort(
            ["votes", "similarity", "best_rank", "chunk_id", "leak_check"],
            descending=[True, True, False, False, False],
        )
        .select("chunk_id", "leak_check", "anchor")
    )


def _fit_to_budget(plan: RootPlan, max_forward_tokens: int) -> RootPlan:
    """Drop the candidates after the budget is spent, and the controls if none is left."""
    budget = max_forward_tokens - sum(pass_tokens(r) for r in plan.control_requests)
    kept: dict[str, list[int]] = {}
    for chunk_id, anchors in plan.contexts.items():
        budget -= pass_tokens(plan.requests[chunk_id])
        if budget < 0:
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


def verify_roots(
    plans: Sequence[RootPlan],
    scorer: Scorer,
    settings: VerificationSettings,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    screen: BatchScreen | None = None,
    known: KnownScores = NOTHING_KNOWN,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Score these roots and judge every pair. Return the rows of `pairs` and `controls`.

    With `max_contexts_per_root` the candidates of a root are tried in waves, each as large as the
    number of contexts that the root still lacks; the rest is refused as not tried. known: scores
    that need no forward pass.
    """
    max_contexts = settings.max_contexts_per_root
    control_requests = {
        (plan.root.root_id, control.number): request
        for plan in plans
        for control, request in zip(plan.controls, plan.control_requests, strict=True)
    }
    of_controls = iter(_score(control_requests, known.controls, scorer, on_progress).values())
    controls = [
        _control_rows(plan, [(control, next(of_controls)) for control in plan.controls])
        for plan in plans
    ]
    scores: list[dict[str, PositionScores]] = [{} for _ in plans]

    def judge_all(by_plan: Sequence[Mapping[str, PositionScores]]) -> pl.DataFrame:
        rows = [_pair_rows(p, s, c) for p, s, c in zip(plans, by_plan, controls, strict=True)]
        return judge(pl.concat(rows), settings) if rows else pl.DataFrame()

    by_root = {plan.root.root_id: number for number, plan in enumerate(plans)}

    def judge_scored(by_key: Mapping[Key, PositionScores]) -> pl.DataFrame:
        by_plan: list[dict[str, PositionScores]] = [{} for _ in plans]
        for (root_id, chunk_id), score in by_key.items():
            by_plan[by_root[root_id]][chunk_id] = score
        return judge_all(by_plan).filter(pl.col("entropy_context").is_not_null())

    accepted = dict.fromkeys(by_root, 0)
    while wave := _wave(plans, scores, accepted, max_contexts):
        if screen is None:
            of_wave = _score(wave, known.contexts, scorer, on_progress)
        else:
            of_wave = screen.score(wave, scorer, judge_scored, on_progress)
        for (root_id, chunk_id), score in of_wave.items():
            scores[by_root[root_id]][chunk_id] = score
        for root_id, chunk_id in wave.keys() - of_wave.keys():
            plans[by_root[root_id]].refusals[chunk_id] = SCREENED_OUT
        if max_contexts is not None:
            dependencies = judge_scored(of_wave).filter("accepted")
            contexts = dependencies.select("root_id", "chunk_id").unique()
            for (root_id,), rows in contexts.group_by("root_id"):
                accepted[str(root_id)] += len(rows)
    for plan, tried in zip(plans, scores, strict=True):
        untried = (c for c in plan.contexts if c not in tried and c not in plan.refusals)
        plan.refusals |= dict.fromkeys(untried, NOT_TRIED)
    return judge_all(scores), pl.concat(controls) if controls else pl.DataFrame()


def _score(
    requests: Mapping[K, ScoringRequest],
    known: Mapping[K, PositionScores],
    scorer: Scorer,
    on_progress: Callable[[int], None],
) -> dict[K, PositionScores]:
    """Return the scores of all requests, in their order; those that are not known are scored.

    on_progress: called with the tokens of the known ones too.
    """
    found = {key: known[key] for key, r in requests.items() if is_known(r, known.get(key))}
    on_progress(sum(pass_tokens(requests[key]) for key in found))
    missing = {key: request for key, request in requests.items() if key not in found}
    scored = dict(zip(missing, scorer.score(list(missing.values()), on_progress), strict=True))
    return {key: found[key] if key in found else scored[key] for key in requests}


def _wave(
    plans: Sequence[RootPlan],
    scores: Sequence[Mapping[str, PositionScores]],
    accepted: Mapping[str, int],
    max_contexts: int | None,
) -> dict[Key, ContextRequest]:
    """Return the next candidates of all roots that still lack contexts."""
    wave: dict[Key, ContextRequest] = {}
    for plan, tried in zip(plans, scores, strict=True):
        root_id = plan.root.root_id
        lacking = None if max_contexts is None else max_contexts - accepted[root_id]
        untried = [c for c in plan.contexts if c not in tried and c not in plan.refusals]
        wave |= {(root_id, chunk_id): plan.requests[chunk_id] for chunk_id in untried[:lacking]}
    return wave


_CONTROL_SCHEMA = {
    "root_id": pl.String,
    "control": pl.Int32,
    "anchor": pl.Int32,
    "has_word": pl.Boolean,
    "entropy": pl.Float32,
    "surprisal": pl.Float32,
}


def _control_rows(plan: RootPlan, scores: Sequence[tuple[Control, PositionScores]]) -> pl.DataFrame:
    word_of = dict(plan.root.candidates.select("anchor", "word").iter_rows())
    words = [word_of[anchor] for anchor in plan.control_anchors]
    parts = [
        pl.DataFrame(
            {
                "root_id": [plan.root.root_id] * len(plan.control_anchors),
                "control": [control.number] * len(plan.control_anchors),
                "anchor": plan.control_anchors,
                "has_word": have_words(control.text, words),
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
    """Return one row per candidate of each anchor, in the order of the candidates."""
    scored = [
        (chunk_id, anchor, entropy, surprisal)
        for chunk_id, score in scores.items()
        for anchor, entropy, surprisal in zip(
            plan.contexts[chunk_id], score.entropy_N, score.surprisal_N, strict=True
        )
    ]
    given_context = pl.DataFrame(
        scored,
        schema={
            "chunk_id": pl.String,
            "anchor": pl.Int32,
            "entropy_context": pl.Float32,
            "surprisal_context": pl.Float32,
        },
        orient="row",
    )
    given_controls = controls.group_by("anchor").agg(
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
        plan.root.candidates.select(
            "root_id", "anchor", "rank", "chunk_id", "similarity", *TEXT_COLUMNS
        )
        .with_columns(pl.col("anchor").cast(pl.Int32))
        .join(given_context, on=["chunk_id", "anchor"], how="left", maintain_order="left")
        .join(given_controls, on="anchor", how="left", maintain_order="left")
        .join(alone, on="anchor", how="left", maintain_order="left")
        .with_columns(refusal.alias("refusal"))
    )
