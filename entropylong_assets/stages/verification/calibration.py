"""The calibrated decision: which contexts can be rejected by their estimates alone.

A logistic regression is fitted to pairs that were both estimated and scored exactly. It predicts
which pairs are accepted. A context is scored exactly if any of its pairs reaches a threshold, which
limits the share of contexts with an accepted pair that are missed. The regression is cross-fitted
by root, and the threshold follows from a confidence bound, because errors of estimates have heavy
tails.

Legend: N pairs, F features, C contexts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import beta, binom

from entropylong_assets.stages.verification.false_acceptance import Rate, acceptance_rate
from entropylong_assets.stages.verification.logistic import Logistic, fit

KEY = ["root_id", "chunk_id"]
NOT_FEATURES = (*KEY, "anchor", "accepted", "is_audit", "is_kept")
"""Columns of a pair that are not features."""

FOLDS = 5
CONFIDENCE = 0.9
"""One-sided confidence that no larger share of the accepted contexts lies below the threshold."""
MAX_SHARE = 0.5
"""Share of contexts to be scored exactly above which estimates do not pay."""
AUDITED = 16
"""One root in this many is always scored exactly, even after a decision is known."""
DRIFT = 0.01
"""Probability of the misses among audited roots below which the decision is given up."""


def needed_contexts(recall: float) -> int:
    """Return the number of accepted contexts from which a threshold for this recall is known."""
    if recall >= 1:
        raise ValueError("a recall of 1 can't be promised from a sample")
    return int(np.ceil(np.log(1 - CONFIDENCE) / np.log(recall)))


def allowed_misses(contexts: int, recall: float) -> int | None:
    """Return how many of these accepted contexts may lie below the threshold; None: too few.

    It is the largest number for which the Clopper-Pearson bound of the missed share is at most
    1 - recall.
    """
    misses = None
    for count in range(contexts):
        if beta.ppf(CONFIDENCE, count + 1, contexts - count) > 1 - recall:
            break
        misses = count
    return misses


def fold_of(root_id: str) -> int:
    return _hash(root_id) % FOLDS


def is_audited(root_id: str) -> bool:
    return _hash(f"audit {root_id}") % AUDITED == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True, eq=False)
class Decision:
    """A regression, and the logit from which a pair must be scored exactly."""

    features: tuple[str, ...]
    model: Logistic
    threshold: float
    missed: float
    """Share of the accepted contexts that lie below the threshold, cross-fitted."""
    share: float
    """Share of contexts that lie above it, cross-fitted."""

    def keeps(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return root_id and chunk_id of the contexts to be scored exactly, in order."""
        logits = self.model.logits(rows.select(self.features).to_numpy())
        above = rows.select(KEY).filter(logits >= self.threshold)
        return above.unique(maintain_order=True)


def decide(rows: pl.DataFrame, recall: float) -> Decision | None:
    """Fit a decision, or return None if too few are accepted or it would reject too little.

    rows: pairs that were estimated and scored exactly: KEY, `accepted`, and features (float64).
    """
    accepted = rows.filter("accepted").select(KEY).n_unique()
    misses = allowed_misses(accepted, recall)
    if misses is None:
        return None
    decision = decide_at(rows, misses / accepted)
    return decision if decision.share <= MAX_SHARE else None


def _folds(rows: pl.DataFrame) -> NDArray[np.int64]:
    return np.array([fold_of(root_id) for root_id in rows["root_id"]], np.int64)


def decide_at(rows: pl.DataFrame, missed: float) -> Decision:
    """Choose the threshold below which this share of the accepted contexts lies, cross-fitted."""
    features = tuple(name for name in rows.columns if name not in NOT_FEATURES)
    folds_N = _folds(rows)
    values_NF, accepted_N = rows.select(features).to_numpy(), rows["accepted"].to_numpy()
    logits = np.zeros(len(rows))
    for fold in np.unique(folds_N):
        others = folds_N != fold
        if others.any():
            logits[~others] = fit(values_NF[others], accepted_N[others]).logits(values_NF[~others])
    by_context = (
        rows.select(*KEY, "accepted")
        .with_columns(logit=pl.Series(logits))
        .group_by(KEY, maintain_order=True)
        .agg(pl.col("accepted").any(), pl.col("logit").max())
    )
    of_accepted = by_context.filter("accepted")["logit"].sort().to_numpy()
    threshold = float(of_accepted[int(missed * len(of_accepted) + 1e-9)])
    below = float((of_accepted < threshold).mean())
    share = float((by_context["logit"] >= threshold).mean())  # type: ignore[arg-type]
    return Decision(features, fit(values_NF, accepted_N), threshold, below, share)


def held_out_recall(rows: pl.DataFrame, missed: float) -> tuple[Rate, float]:
    """Return the recall of accepted pairs, and the share of contexts scored exactly, held out.

    Each fold of roots is decided by a regression and a threshold from the other folds, whose own
    cross-fitted threshold misses the same share of accepted contexts. The interval of the recall is
    that of clusters, the roots.
    """
    kept, folds_N = [], _folds(rows)
    for fold in range(FOLDS):
        held, others = rows.filter(folds_N == fold), rows.filter(folds_N != fold)
        if held.is_empty() or not others["accepted"].any():
            kept.append(held.select(KEY).unique(maintain_order=True))
            continue
        kept.append(decide_at(others, missed).keeps(held))
    chosen = pl.concat(kept).with_columns(is_kept=pl.lit(True))
    marked = rows.select(*KEY, "accepted").join(chosen, on=KEY, how="left", maintain_order="left")
    marked = marked.with_columns(pl.col("is_kept").fill_null(False))
    contexts = rows.select(KEY).n_unique()
    share = len(chosen) / contexts if contexts else 0.0
    return acceptance_rate(marked.filter("accepted"), "is_kept"), share


class Calibration:
    """What a shard has learned from its contexts so far, batch by batch.

    Until a decision is known, all contexts are estimated and scored exactly. Later one root in
    `AUDITED` still is. If the decision misses more of its accepted contexts than is likely,
    the corpus has changed: all that was learned is dropped, and the shard begins again. If half of
    the roots are verified without a decision, it is too late for one to pay, and estimating ends.
    """

    def __init__(self, recall: float, roots: int) -> None:
        """recall: target share of accepted contexts that are scored exactly. roots: of the shard,
        including those that have no candidates."""
        self.recall, self._roots = recall, roots
        self.decision: Decision | None = None
        self.is_off = False
        self.drifts = 0
        self.rows = pl.DataFrame()
        """Pairs that the next decision is fitted to."""
        self._fitted = self._verified = 0
        self._audit_contexts = self._audit_missed = 0
        """Accepted contexts of audited roots since a decision was last given up, and those that
        the decision missed."""
        self._audited_accepted = self._audited_kept = 0

    def decides(self, root_id: str) -> bool:
        """Return whether estimates decide on this root: not all of its contexts are exact."""
        return self.decision is not None and not is_audited(root_id)

    def add(self, rows: pl.DataFrame, roots: int) -> None:
        """Learn from a batch of this many roots.

        rows: its pairs that were estimated and scored exactly, as for `decide`, with is_audit, and
        is_kept: whether the decision in force would have kept the context.
        """
        self._verified += roots
        if len(rows):
            self.rows = pl.concat([self.rows, rows]) if len(self.rows) else rows
            self._audit(rows.filter("is_audit"))
        # Few new rows change the regression little.
        if len(self.rows) > 1.1 * self._fitted:
            self._fitted = len(self.rows)
            self.decision = decide(self.rows, self.recall)
        self.is_off = self.decision is None and 2 * self._verified >= self._roots

    def _audit(self, rows: pl.DataFrame) -> None:
        """Count accepted pairs of audited roots, and give up a decision that misses too many."""
        if rows.is_empty():
            return
        self._audited_accepted += int(rows["accepted"].sum())
        self._audited_kept += int((rows["accepted"] & rows["is_kept"]).sum())
        contexts = rows.filter("accepted").unique(KEY)
        self._audit_contexts += len(contexts)
        self._audit_missed += len(contexts) - int(contexts["is_kept"].sum())
        missed, total = self._audit_missed, self._audit_contexts
        probability = float(binom.sf(missed - 1, total, 1 - self.recall)) if missed else 1.0
        if probability < DRIFT:
            self.drifts += 1
            self.decision, self.rows, self._fitted = None, pl.DataFrame(), 0
            self._audit_contexts = self._audit_missed = 0

    def metadata(self) -> dict[str, float]:
        """Return the decision in force, and its recall as far as it was measured."""
        figures: dict[str, float] = {"drifts": self.drifts, "is_off": float(self.is_off)}
        figures |= {
            "audited_accepted": self._audited_accepted,
            "audited_kept": self._audited_kept,
        }
        if len(self.rows):
            figures["calibration_contexts"] = self.rows.select(KEY).n_unique()
            figures["calibration_accepted"] = int(self.rows["accepted"].sum())
        if self.decision is None:
            return figures
        rate, share = held_out_recall(self.rows, self.decision.missed)
        model = self.decision.model
        figures |= {
            "recall": rate.value,
            "recall_low": rate.low,
            "recall_high": rate.high,
            "held_out_share": share,
            "threshold": self.decision.threshold,
            "intercept": model.intercept,
        }
        parts = zip(
            self.decision.features, model.weight_F, model.mean_F, model.scale_F, strict=True
        )
        for name, weight, mean, scale in parts:
            figures |= {f"weight_{name}": weight, f"mean_{name}": mean, f"scale_{name}": scale}
        return {name: float(value) for name, value in figures.items()}
