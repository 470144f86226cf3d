"""How often contexts that should not help pass the rule: scores and rates of held-out controls.

Held-out controls (`null_contexts.py`) are judged like candidates: against the root's stored
controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from entropylong_assets.audits.audit_model import AuditModel
from entropylong_assets.audits.null_contexts import KINDS, NullContext
from entropylong_assets.audits.root_sample import ScoredRoot
from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.retrieval.anchor_text import have_words
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import (
    ANCHOR_COLUMNS,
    TEXT_COLUMNS,
    accepted_by,
    judge,
)
from entropylong_assets.stages.verification.registry import RULES
from entropylong_assets.stages.verification.requests import context_request, fits

if TYPE_CHECKING:
    from entropylong_assets.stages.verification.settings import VerificationSettings

RETRIEVED = "retrieved"
"""Kind of the roots' own candidates, with which held-out controls are compared."""

_SCORES = ("entropy", "surprisal")
_TRIALS: dict[str, Any] = {
    "root_id": pl.String,
    "anchor": pl.Int32,
    "kind": pl.String,
    "number": pl.Int32,
    "chunk_ids": pl.List(pl.String),
    "n_tokens": pl.Int32,
    **{f"{a}{b}": pl.Float32 for a in _SCORES for b in ("", "_context", "_control")},
    **TEXT_COLUMNS,
    "refusal": pl.String,
}


def score_null(
    roots: Sequence[tuple[ScoredRoot, Sequence[NullContext]]],
    model: AuditModel,
    settings: VerificationSettings,
    on_progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """Score every (anchor, held-out control) and judge it like a pair: the rows of `trials`.

    Controls that are too long for the model are left out. on_progress: called with the tokens of
    each forward pass.
    """
    bos = model.tokenizer.bos_ids
    planned = [
        (root, null)
        for root, contexts in roots
        for null in contexts
        if fits(bos, null.token_ids, null.anchors[-1], model.max_positions)
    ]
    requests = [
        context_request(bos, null.token_ids, root.token_ids, null.anchors, model.max_positions)
        for root, null in planned
    ]
    rows: list[dict[str, Any]] = []
    scored = model.scorer.score(requests, on_progress)
    for (root, null), scores in zip(planned, scored, strict=True):
        rows += _trials(root, null, scores, model.tokenizer.decode(null.token_ids))
    return judge(pl.DataFrame(rows, schema=_TRIALS), settings)


def _trials(
    root: ScoredRoot, null: NullContext, scores: PositionScores, text: str
) -> Iterator[dict[str, Any]]:
    columns = ("anchor", "entropy_control", "surprisal_control", *ANCHOR_COLUMNS)
    stored = {row["anchor"]: row for row in root.pairs.select(columns).iter_rows(named=True)}
    has_word = have_words(text, [stored[anchor]["word"] for anchor in null.anchors])
    for i, anchor in enumerate(null.anchors):
        yield {
            "root_id": root.root_id,
            "anchor": anchor,
            "kind": null.kind,
            "number": null.number,
            "chunk_ids": list(null.chunk_ids),
            "n_tokens": len(null.token_ids),
            "entropy": float(root.entropies[anchor]),
            "entropy_context": float(scores.entropy_N[i]),
            "entropy_control": stored[anchor]["entropy_control"],
            "surprisal": float(root.surprisals[anchor]),
            "surprisal_context": float(scores.surprisal_N[i]),
            "surprisal_control": stored[anchor]["surprisal_control"],
            **{name: stored[anchor][name] for name in ANCHOR_COLUMNS},
            "has_word": has_word[i],
            "refusal": None,
        }


def rates(trials: pl.DataFrame, pairs: pl.DataFrame, rules: Iterable[str]) -> list[dict[str, Any]]:
    """Share of contexts that each rule accepts, by kind of context and rule: the rows of `rates`.

    pairs: scored pairs of the same roots; their kind is `retrieved`.
    """
    rules, rows = list(rules), []
    for kind in (RETRIEVED, *KINDS):
        frame = pairs if kind == RETRIEVED else trials.filter(kind=kind)
        for rule in rules:
            rate = acceptance_rate(frame, accepted_by(rule))
            rows.append(
                {
                    "kind": kind,
                    "rule": rule,
                    "passed": rate.passed,
                    "total": rate.total,
                    "rate": rate.value if rate.total else None,
                    "low": rate.low,
                    "high": rate.high,
                    "is_rough": rate.is_rough,
                }
            )
    return rows


def holding_epsilon(gains: np.ndarray, total: int, wished: float) -> float | None:
    """Return the least ε at which at most the share `wished` of `total` trials passes (gain > ε).

    gains: of the trials that only ε can reject. Returns None if this holds at any ε.
    """
    allowed = int(np.floor(wished * total + 1e-9))
    if len(gains) <= allowed:
        return None
    return float(np.sort(gains)[::-1][allowed])


def epsilon_for(
    trials: pl.DataFrame, settings: VerificationSettings, wished: float, seed: int, draws: int = 400
) -> dict[str, float | None]:
    """The least ε at which the rule in force accepts at most a wished share of random contexts.

    Also its 95% interval, by a bootstrap over roots. All three are None if there are no random
    contexts or the rule does not read ε; one of them is None if the rate is low enough at any ε.
    """
    unknown = dict.fromkeys(("epsilon_for_rate", "epsilon_low", "epsilon_high"))
    rule = RULES[settings.rule]
    if "epsilon" not in rule.settings:
        return unknown
    free = settings.model_copy(update={"epsilon": -1e9})
    random_trials = judge(
        trials.filter(kind="random").with_columns(pl.lit(None, pl.String).alias("refusal")), free
    )
    by_root = [
        (part.filter("accepted")[rule.gain].drop_nulls().to_numpy(), len(part))
        for _, part in random_trials.sort("root_id").group_by("root_id", maintain_order=True)
    ]
    if not by_root:
        return unknown

    def held(chosen: Sequence[int]) -> float | None:
        gains = np.concatenate([by_root[i][0] for i in chosen])
        return holding_epsilon(gains, sum(by_root[i][1] for i in chosen), wished)

    rng = np.random.default_rng(seed)
    drawn = [held(rng.integers(0, len(by_root), len(by_root)).tolist()) for _ in range(draws)]
    values = np.array([-np.inf if epsilon is None else epsilon for epsilon in drawn])
    # No interpolation: some values are infinite.
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return {
        "epsilon_for_rate": held(range(len(by_root))),
        "epsilon_low": float(low) if np.isfinite(low) else None,
        "epsilon_high": float(high) if np.isfinite(high) else None,
    }


def lift(trials: pl.DataFrame, pairs: pl.DataFrame, rule: str) -> dict[str, float | None]:
    """Acceptance of retrieved over that of random contexts.

    The interval is conservative: it compares the ends of two 97.5% intervals. The upper end is None
    if no random context passed.
    """
    retrieved = acceptance_rate(pairs, accepted_by(rule), 0.975)
    random = acceptance_rate(trials.filter(kind="random"), accepted_by(rule), 0.975)
    if not retrieved.total or not random.total:
        return {"lift": None, "lift_low": None, "lift_high": None}
    return {
        "lift": retrieved.value / random.value if random.passed else None,
        "lift_low": retrieved.low / random.high,
        "lift_high": retrieved.high / random.low if random.low > 0 else None,
    }
