"""The approximate screen: all contexts by a cheaper scorer, the doubtful ones once more exactly.

Off unless `scoring.screen` names one. Of each batch of roots a sample of contexts, drawn by hash,
is scored both ways. One half of it gives the margin: how far a cheap gain may be off. Pairs within
that margin of ε (and, where the rule asks for it, of the surprisal's reference) are scored exactly,
the rest keeps its cheap scores. The other half, on which no margin was fitted, tells how many of
the exactly accepted pairs are kept (recall) and how many of those kept are right (precision).

Legend: N pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 64
"""Contexts of a batch that are scored both ways, at most; and at most one in four."""

QUANTILE = 0.995
"""The margin covers this share of the errors seen."""


class Deciding(NamedTuple):
    """What a verdict hangs on, of N pairs.

    gain_N: of the rule in force, NaN where undefined. surprisal_over_N: the true token's surprisal
    behind the context above the lower of its references (nats); below 0 is belief.
    """

    gain_N: NDArray[np.float64]
    surprisal_over_N: NDArray[np.float64]


class Margin(NamedTuple):
    """How far cheap scores may be off: of a gain, and of a surprisal (nats)."""

    gain: float
    surprisal: float


def deciding(pairs: pl.DataFrame, settings: VerificationSettings) -> Deciding:
    """From judged pairs."""
    import polars as pl

    column = "gain" if settings.rule == "plain" else "calibrated_gain"
    over = pl.col("surprisal_context") - pl.min_horizontal("surprisal", "surprisal_control")
    both = pairs.select(
        pl.col(column).cast(pl.Float64).fill_null(float("nan")).alias("gain"),
        over.cast(pl.Float64).fill_null(float("nan")).alias("over"),
    )
    return Deciding(both["gain"].to_numpy(), both["over"].to_numpy())


def fit_margin(cheap: Deciding, exact: Deciding) -> Margin:
    """From pairs scored both ways."""

    def covering(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        off = np.abs(a - b)
        off = off[np.isfinite(off)]
        return float(np.quantile(off, QUANTILE)) if len(off) else 0.0

    return Margin(
        covering(cheap.gain_N, exact.gain_N),
        covering(cheap.surprisal_over_N, exact.surprisal_over_N),
    )


def doubtful(cheap: Deciding, margin: Margin, settings: VerificationSettings) -> NDArray[np.bool_]:
    """Pairs whose verdict could turn within the margin."""
    above = cheap.gain_N - settings.epsilon
    near = np.abs(above) <= margin.gain
    if settings.rule == "calibrated" and settings.require_surprisal_drop:
        # Only where belief could decide; and a clear lack of it makes the gain's margin idle.
        believable = cheap.surprisal_over_N < margin.surprisal
        near &= believable
        near |= (above > 0) & (np.abs(cheap.surprisal_over_N) <= margin.surprisal)
    return near


@dataclass
class ScreenFigures:
    """Counts of one batch, and its margins; `joined` gives those of a shard."""

    contexts: int = 0
    contexts_rechecked: int = 0
    contexts_sampled: int = 0
    sample_pairs: int = 0
    sample_accepted: int = 0
    sample_kept: int = 0
    sample_wrongly_kept: int = 0
    margin_gain: float = 0.0
    margin_surprisal: float = 0.0

    def add(self, other: ScreenFigures) -> None:
        """Counts are added, of margins the largest is kept."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name.startswith("margin") else mine + value)

    def metadata(self) -> dict[str, float]:
        """With recall and precision, where the sample had an accepted pair."""
        figures: dict[str, float] = dict(vars(self))
        kept = self.sample_kept + self.sample_wrongly_kept
        if self.contexts:
            figures["rechecked_share"] = self.contexts_rechecked / self.contexts
        if self.sample_accepted:
            figures["recall"] = self.sample_kept / self.sample_accepted
        if kept:
            figures["precision"] = self.sample_kept / kept
        return figures


Key = tuple[str, str]
"""(root_id, chunk_id)."""

Judged = Callable[[dict[Key, PositionScores]], "pl.DataFrame"]
"""Judged pairs of scored contexts, one row a pair, in an order that hangs on nothing else."""


@dataclass
class Screen:
    """Screens the contexts of one batch of roots."""

    cheap: Scorer
    settings: VerificationSettings
    figures: ScreenFigures = field(default_factory=ScreenFigures)
    _margin: Margin | None = None

    def score(
        self,
        requests: dict[Key, ScoringRequest],
        exact: Scorer,
        judged: Judged,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> dict[Key, PositionScores]:
        """Scores of all contexts: exact where sampled or doubtful, else cheap."""

        def scored(scorer: Scorer, keys: Sequence[Key]) -> dict[Key, PositionScores]:
            scores = scorer.score([requests[key] for key in keys], on_progress)
            return dict(zip(keys, scores, strict=True))

        if not requests:
            return {}
        scores = scored(self.cheap, list(requests))
        exactly: dict[Key, PositionScores] = {}
        if self._margin is None:
            sample = _sample(list(requests))
            exactly = scored(exact, sample)
            self._margin = self._measure(sample, scores, exactly, judged)
        pairs = judged(scores)
        is_doubtful = doubtful(deciding(pairs, self.settings), self._margin, self.settings)
        found = pairs.filter(is_doubtful).select("root_id", "chunk_id").unique(maintain_order=True)
        doubted = [key for key in found.iter_rows() if key not in exactly]
        exactly |= scored(exact, doubted)
        self.figures.contexts += len(requests)
        self.figures.contexts_rechecked += len(doubted)
        return scores | exactly

    def _measure(
        self,
        sample: Sequence[Key],
        cheap: dict[Key, PositionScores],
        exact: dict[Key, PositionScores],
        judged: Judged,
    ) -> Margin:
        """The margin from one half of the sample; recall and precision on the other."""
        fitted, held_out = sample[0::2], sample[1::2]

        def both(keys: Sequence[Key]) -> tuple[pl.DataFrame, pl.DataFrame]:
            return judged({k: cheap[k] for k in keys}), judged({k: exact[k] for k in keys})

        margin = fit_margin(*(deciding(pairs, self.settings) for pairs in both(fitted)))
        figures = self.figures
        figures.contexts_sampled = len(sample)
        figures.margin_gain, figures.margin_surprisal = margin
        if held_out:
            of_cheap, of_exact = both(held_out)
            rechecked = doubtful(deciding(of_cheap, self.settings), margin, self.settings)
            accepted = of_exact["accepted"].to_numpy()
            kept = np.where(rechecked, accepted, of_cheap["accepted"].to_numpy())
            figures.sample_pairs = len(accepted)
            figures.sample_accepted = int(accepted.sum())
            figures.sample_kept = int((kept & accepted).sum())
            figures.sample_wrongly_kept = int((kept & ~accepted).sum())
        return margin


def _sample(keys: Sequence[Key]) -> list[Key]:
    """So many contexts, by hash: which ones depends on nothing but themselves."""
    count = min(SAMPLE, max(2, len(keys) // 4))
    by_hash = sorted(keys, key=lambda key: hashlib.sha256("\n".join(key).encode()).digest())
    return by_hash[:count]
