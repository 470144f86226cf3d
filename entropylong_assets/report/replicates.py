"""Totals of a corpus from sampled documents and roots, and their intervals by the bootstrap.

Every total is computed many times. Each replicate resamples the documents (of all sampled shards;
the shards are resampled too if the corpus has others), draws roots from them as a run does, and
resamples the measured roots and the verified candidates that give the figures of each root. The
interval is the spread of the replicates: it covers the error of the sample and the randomness of
the draw of roots.

The cost of a root depends mostly on its length: the number of contexts grows with the length, and
each pass contains the root. So the figures of a measured root are taken relative to `length ·
(context + length / 2)` (a ratio estimator), and a few roots suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_SIMULATED = 4096
"""Maximum number of roots simulated per replicate. A sample stands for a larger number."""


@dataclass(frozen=True)
class Rows:
    """The chosen rows of one source, one element per row; 0 for rows that are no documents."""

    source_rows: int
    """Rows of the whole source."""
    source_shards: int
    is_complete: bool
    """Whether all rows of the source were read."""
    share: float
    """Share of the documents that are drawn as roots."""
    shard: NDArray[np.int64]
    is_document: Array
    chars: Array
    tokens: Array
    """Tokens of documents that can be roots; 0 of others."""
    is_drawn: NDArray[np.bool_]
    """Whether a run draws the document."""
    measured: NDArray[np.int64]
    """Place of the document among the measured roots; -1 if it was not measured."""


@dataclass(frozen=True)
class Measured:
    """Measured roots: one row per root, one column per quantity of `QUANTITIES`."""

    tokens: Array
    shared: Array
    unshared: Array
    trend: float
    """Most likely value between shared (0) and unshared (1); see `root_costs`."""
    is_certain: bool
    """Whether `shared` is exact, because the trial has enough chunks."""
    context_tokens: float
    """Mean length of a context (tokens)."""
    pool_share: float = 1.0
    """Share of the corpus' chunks that were searched."""
    max_contexts: int | None = None
    """`verification.max_contexts_per_root`."""
    max_tokens: int | None = None
    """`verification.max_forward_tokens_per_root`."""


SEARCHED = ("passes", "pass_tokens", "pairs")
"""Quantities that depend on what was searched."""
QUANTITIES = ("anchors", "passes", "pass_tokens", "pairs", "control_tokens")
LINEAR = np.array([True, True, False, True, True])
"""Whether a quantity is proportional to the length of a root, and not to the work of its passes."""


@dataclass(frozen=True)
class Accepted:
    """Verified roots: one element per root."""

    contexts: Array
    contexts_accepted: Array
    accepted: Array


@dataclass(frozen=True)
class Totals:
    """Totals over the corpus: the point estimate, or one replicate."""

    documents: float
    chars: float
    drawn: float
    """Roots."""
    root_tokens: float
    anchors: float
    passes: float
    pass_tokens: float
    pairs: float
    control_tokens: float
    roots_with_dependency: float
    contexts_accepted: float
    dependencies: float
    tokens_of_roots_with_dependency: float


def point(rows: Sequence[Rows], measured: Measured, accepted: Accepted) -> Totals:
    """Return the point estimate."""
    weights = [np.full(len(r.shard), _weight(r)) for r in rows]
    lengths, counts, known = [], [], []
    for r, weight in zip(rows, weights, strict=True):
        at, times = _expected(r, weight)
        lengths.append(r.tokens[at])
        counts.append(times)
        known.append(r.measured[at])
    ratios = _ratios(measured, np.arange(len(measured.tokens)), measured.trend)
    n_roots = (np.concatenate(lengths), np.concatenate(counts), np.concatenate(known))
    each = _of_roots(measured, ratios, n_roots[0], n_roots[2], measured.trend)
    n, ok = float(accepted.contexts.sum()), float(accepted.contexts_accepted.sum())
    # One half is added as in Jeffreys' prior: a small sample without accepted contexts does not
    # mean that there are none.
    share = (ok + 0.5 * (ok == 0)) / n if n else 0.0
    each = _limited(measured, each, share)
    return _totals(rows, weights, n_roots[:2], each, (share, _per_context(accepted)))


def replicates(
    rows: Sequence[Rows], measured: Measured, accepted: Accepted, n: int, seed: int
) -> list[Totals]:
    """Return `n` replicates of all totals."""
    draw = np.random.default_rng(seed)
    return [_replicate(draw, rows, measured, accepted) for _ in range(n)]


def _replicate(
    draw: np.random.Generator, rows: Sequence[Rows], measured: Measured, accepted: Accepted
) -> Totals:
    weights = [_resample(draw, r) for r in rows]
    lengths, counts, known = [], [], []
    for r, weight in zip(rows, weights, strict=True):
        at, times = _draw_roots(draw, r, weight)
        lengths.append(r.tokens[at])
        counts.append(times)
        known.append(r.measured[at] if r.is_complete else np.full(len(at), -1))
    roots = (np.concatenate(lengths), np.concatenate(counts), np.concatenate(known))
    m = len(measured.tokens)
    again = draw.integers(0, m, m) if m else np.zeros(0, np.int64)
    trend = 0.0 if measured.is_certain else _between(draw, measured.trend)
    ratios = _ratios(measured, again, trend)
    each = _of_roots(measured, ratios, roots[0], roots[2], trend)
    if m:
        # Roots of equal length vary as much as the measured roots do.
        other = again[draw.integers(0, m, len(roots[0]))]
        noise = _deviations(measured, ratios, again, trend)[other] * _sizes(
            roots[0], measured.context_tokens
        )
        each = np.maximum(each + noise * (roots[2] < 0)[:, None], 0)
    each = _blurred(draw, measured, each, roots[2] >= 0)
    k = len(accepted.contexts)
    chosen = draw.integers(0, k, k) if k else np.zeros(0, np.int64)
    n = float(accepted.contexts[chosen].sum())
    ok = float(accepted.contexts_accepted[chosen].sum())
    share = min(1.0, float(draw.gamma(ok + 0.5)) / n) if n else 0.0
    each = _limited(measured, each, share)
    return _totals(rows, weights, roots[:2], each, (share, _per_context(accepted)))


def _blurred(
    draw: np.random.Generator, measured: Measured, each: Array, is_known: NDArray[np.bool_]
) -> Array:
    """Vary measured roots by the randomness of the sample of chunks that was searched.

    A search in the share f of the chunks finds a binomial number of n contexts, about n·f.
    """
    f = measured.pool_share
    if f >= 1 or not is_known.any():
        return each
    passes = each[:, QUANTITIES.index("passes")]
    spread = np.minimum(1, np.sqrt((1 - f) / np.maximum(f * passes, 1e-9))) * is_known
    factors = np.maximum(0, 1 + spread * draw.standard_normal(len(each)))
    is_searched = [name in SEARCHED for name in QUANTITIES]
    result: Array = each * np.where(is_searched, factors[:, None], 1.0)
    return result


def _between(draw: np.random.Generator, mode: float) -> float:
    return float(draw.triangular(0, min(max(mode, 0.0), 1.0), 1))


def _weight(rows: Rows) -> float:
    return rows.source_rows / max(len(rows.shard), 1)


def _resample(draw: np.random.Generator, rows: Rows) -> Array:
    """Weight of each row in a replicate. The weights sum to the number of rows of the source."""
    n = len(rows.shard)
    if rows.is_complete or not n:
        return np.full(n, _weight(rows))
    shards = np.unique(rows.shard)
    times = np.ones(len(shards), np.int64)
    if len(shards) < rows.source_shards:
        times = np.bincount(draw.integers(0, len(shards), len(shards)), minlength=len(shards))
    weights = np.zeros(n)
    for shard, count in zip(shards, times, strict=True):
        at = np.flatnonzero(rows.shard == shard)
        if count:
            weights[at] = draw.multinomial(len(at) * count, np.full(len(at), 1 / len(at)))
    return weights * rows.source_rows / weights.sum()


def _expected(rows: Rows, weights: Array) -> tuple[NDArray[np.int64], Array]:
    """Return rows that can be roots, and how many roots each stands for."""
    if rows.is_complete:
        at = np.flatnonzero(rows.is_drawn & (rows.tokens > 0))
        return at, np.ones(len(at))
    at = np.flatnonzero(rows.tokens > 0)
    return at, weights[at] * rows.share


def _draw_roots(
    draw: np.random.Generator, rows: Rows, weights: Array
) -> tuple[NDArray[np.int64], Array]:
    """Draw the roots of a source as a run does. Returns the same as `_expected`."""
    at, expected = _expected(rows, weights)
    if rows.is_complete or not weights[at].sum():
        return at, expected
    n = int(draw.binomial(round(weights[at].sum()), min(1.0, rows.share)))
    size = min(n, MAX_SIMULATED)
    chances = weights[at] / weights[at].sum()
    return draw.choice(at, size, p=chances), np.full(size, n / max(size, 1))


def _sizes(tokens: Array, context_tokens: float) -> Array:
    """Auxiliary size of each root per quantity, [roots, quantities]."""
    work = tokens * (context_tokens + tokens / 2)
    return np.where(LINEAR, tokens[:, None], work[:, None])


def _values(measured: Measured, trend: float) -> Array:
    return measured.shared + trend * (measured.unshared - measured.shared)


def _ratios(measured: Measured, chosen: NDArray[np.int64], trend: float) -> Array:
    """Total value of these measured roots divided by their total size, one per quantity."""
    if not len(chosen):
        return np.zeros(len(QUANTITIES))
    sizes = _sizes(measured.tokens, measured.context_tokens)
    ratios: Array = _values(measured, trend)[chosen].sum(0) / sizes[chosen].sum(0)
    return ratios


def _deviations(
    measured: Measured, ratios: Array, chosen: NDArray[np.int64], trend: float
) -> Array:
    """Deviation of each measured root's value per size from that of all roots; its mean is 0."""
    sizes = _sizes(measured.tokens, measured.context_tokens)
    deviations = _values(measured, trend) / sizes - ratios
    result: Array = deviations - deviations[chosen].mean(0)
    return result


def _of_roots(
    measured: Measured, ratios: Array, tokens: Array, known: NDArray[np.int64], trend: float
) -> Array:
    """Quantities of each root: its measured ones, or those that follow from its length."""
    each = _sizes(tokens, measured.context_tokens) * ratios
    if len(measured.tokens):
        own = _values(measured, trend)[np.maximum(known, 0)]
        each = np.where((known >= 0)[:, None], own, each)
    return each


def _limited(measured: Measured, each: Array, share: float) -> Array:
    """Apply the limits per root to passes, their tokens and pairs. share: of accepted contexts."""
    passes, tokens = (each[:, QUANTITIES.index(name)] for name in ("passes", "pass_tokens"))
    part = np.ones(len(each))
    if measured.max_contexts is not None and share:
        part = np.minimum(part, measured.max_contexts / share / np.maximum(passes, 1e-9))
    if measured.max_tokens is not None:
        room = measured.max_tokens - each[:, QUANTITIES.index("control_tokens")]
        part = np.minimum(part, np.maximum(room, 0) / np.maximum(tokens, 1e-9))
    limited = [name in SEARCHED for name in QUANTITIES]
    result: Array = each * np.where(limited, part[:, None], 1.0)
    return result


def _per_context(accepted: Accepted) -> float:
    """Dependencies per accepted context."""
    contexts = float(accepted.contexts_accepted.sum())
    return float(accepted.accepted.sum()) / contexts if contexts else 1.0


def _totals(
    rows: Sequence[Rows],
    weights: Sequence[Array],
    roots: tuple[Array, Array],
    each: Array,
    accepted: tuple[float, float],
) -> Totals:
    """Sum up. roots: length and number of each. accepted: share of contexts, pairs per context."""
    tokens, counts = roots
    share, per_context = accepted
    sums = dict(zip(QUANTITIES, (each * counts[:, None]).sum(0), strict=True))
    passes = each[:, QUANTITIES.index("passes")]
    with_dependency = 1 - (1 - min(share, 1 - 1e-9)) ** passes
    return Totals(
        documents=sum(float(w @ r.is_document) for r, w in zip(rows, weights, strict=True)),
        chars=sum(float(w @ r.chars) for r, w in zip(rows, weights, strict=True)),
        drawn=float(counts.sum()),
        root_tokens=float(counts @ tokens),
        **{name: float(value) for name, value in sums.items()},
        roots_with_dependency=float(counts @ with_dependency),
        contexts_accepted=share * float(sums["passes"]),
        dependencies=share * per_context * float(sums["passes"]),
        tokens_of_roots_with_dependency=float(counts @ (with_dependency * tokens)),
    )
