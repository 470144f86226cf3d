"""The estimator of the screen `splice`: windows before the anchors, given keys that are kept.

Keys and values of a root are computed once, and those of a chunk once for all roots of a batch that
nominate it. Exact scores see the kept keys of the chunk too, so that only the root is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kept_keys import KeptKeys, Range
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, join_scores
from entropylong_assets.stages.entropy.splice import (
    Kind,
    Segment,
    SplicedScorer,
    segments_of,
)
from entropylong_assets.stages.verification.registry import EstimatedContexts, Estimator, Key
from entropylong_assets.stages.verification.requests import ContextRequest, longest_roots

K = TypeVar("K")

KEPT_BYTES = {"cuda": 12 << 30, "cpu": 1 << 30}
"""Maximum size of kept keys and values, half of them of roots: of an 8B model in bfloat16, 98,000
tokens. A constant, so that what shares a forward pass does not depend on the machine."""

ESTIMATES: tuple[Kind, ...] = ("splice", "bare")


class SplicedEstimator(Estimator):
    """Estimates with a spliced window and a bare one per anchor."""

    def __init__(self, scorer: PackedScorer, *, is_exact: bool, kept_tokens: int | None = None):
        """is_exact: whether the scorer is that of the exact pass, which then uses its keys.

        kept_tokens: maximum number of tokens whose keys are kept; None: by `KEPT_BYTES`.
        """
        self.scorer, self.is_exact = scorer, is_exact
        self.spliced = SplicedScorer(scorer)
        if kept_tokens is None:
            per_token = self.spliced.keep([np.zeros(2, np.int64)], [0]).bytes_per_token
            kept_tokens = KEPT_BYTES.get(scorer.device.type, KEPT_BYTES["cpu"]) // per_token
        self._kept_tokens = kept_tokens

    def estimate(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        on_progress: Callable[[int], None],
    ) -> Iterator[EstimatedContexts]:
        roots = longest_roots(requests)
        bos_ids = np.asarray(self.scorer.model.tokenizer.bos_ids, np.int64)
        for root_ids in _within({r: len(t) for r, t in roots.items()}, self._kept_tokens // 2):
            sequences = [np.concatenate([bos_ids, roots[root_id]]) for root_id in root_ids]
            kept_roots = self.spliced.keep(sequences, [-len(bos_ids)] * len(sequences), on_progress)
            ranges = {
                root_id: Range(start + len(bos_ids), len(roots[root_id]))
                for root_id, start in zip(root_ids, kept_roots.starts, strict=True)
            }
            context_tokens = self._kept_tokens - kept_roots.tokens
            of_context: dict[bytes, list[Key]] = {}
            for key, request in requests.items():
                if key[0] in ranges:
                    of_context.setdefault(request.context_ids.tobytes(), []).append(key)
            sizes = {
                context: requests[keys[0]].context_tokens for context, keys in of_context.items()
            }
            for contexts in _within(sizes, context_tokens):
                chosen = [requests[of_context[context][0]].context_ids for context in contexts]
                kept = self.spliced.keep(chosen, [-len(c) for c in chosen], on_progress)
                places = {
                    key: Range(kept.starts[number], kept.lengths[number])
                    for number, context in enumerate(contexts)
                    for key in of_context[context]
                }
                yield _Group(self, requests, exact, on_progress, kept, kept_roots, places, ranges)


def _within(sizes: Mapping[K, int], budget: int) -> Iterator[list[K]]:
    """Yield keys in order, at least one and at most `budget` tokens at once."""
    group: list[K] = []
    tokens = 0
    for key, size in sizes.items():
        if group and tokens + size > budget:
            yield group
            group, tokens = [], 0
        group.append(key)
        tokens += size
    if group:
        yield group


@dataclass
class _Group:
    """Contexts whose keys are kept, and their roots."""

    estimator: SplicedEstimator
    requests: Mapping[Key, ContextRequest]
    exact: Scorer
    on_progress: Callable[[int], None]
    kept: KeptKeys
    kept_roots: KeptKeys
    places: Mapping[Key, Range]
    """Kept tokens of each context."""
    roots: Mapping[str, Range]
    estimates: Mapping[str, Mapping[Key, PositionScores]] = field(init=False)
    alone: Mapping[str, Mapping[Key, PositionScores]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.estimates = {kind: self.score(kind, list(self.places)) for kind in ESTIMATES}

    def score_exactly(self, keys: Sequence[Key]) -> dict[Key, PositionScores]:
        if self.estimator.is_exact:
            return self.score("exact", keys)
        scores = self.exact.score([self.requests[key] for key in keys], self.on_progress)
        return dict(zip(keys, scores, strict=True))

    def score(
        self, kind: Kind, keys: Sequence[Key], width: int | None = None
    ) -> dict[Key, PositionScores]:
        """Return scores of one kind. width: tokens of a window; None: the kind's own."""
        of_segments: list[tuple[Segment, Key]] = [
            (segment, key)
            for key in keys
            for segment in segments_of(
                kind,
                self.requests[key].context_ids,
                self.requests[key].root_ids,
                self.requests[key].anchors.tolist(),
                self.places[key],
                self.roots[key[0]],
                width,
            )
        ]
        # Segments that see the same keys of a root are neighbours. The order is stable.
        of_segments.sort(key=lambda both: (both[0].root.start, both[0].root.tokens))
        scores = self.estimator.spliced.score(
            [segment for segment, _ in of_segments], self.kept, self.kept_roots, self.on_progress
        )
        parts: dict[Key, list[PositionScores]] = {key: [] for key in keys}
        for (_, key), part in zip(of_segments, scores, strict=True):
            parts[key].append(part)
        return {key: join_scores(of_key) for key, of_key in parts.items()}
