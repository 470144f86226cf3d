"""Estimates by a smaller model with the tokenizer of the scoring model.

It scores whole sequences [C; D] as the exact pass does, and each root alone: what a context changes
is measured between two scores of the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, Tokenizer, load_scoring_model
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets.stages.verification.registry import EstimatedContexts, Estimator, Key
from entropylong_assets.stages.verification.requests import ContextRequest, longest_roots


class ProxyEstimator(Estimator):
    """Estimates with the scores of a smaller model."""

    def __init__(self, scorer: Scorer, bos_ids: Sequence[int], name: str = "proxy") -> None:
        """bos_ids: what every sequence begins with. name: of the estimate, and of its features."""
        self._scorer, self._bos_ids, self._name = scorer, np.asarray(bos_ids, np.int64), name

    def estimate(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        on_progress: Callable[[int], None],
    ) -> Iterator[EstimatedContexts]:
        scores = self._scorer.score(list(requests.values()), on_progress)
        given = dict(zip(requests, scores, strict=True))
        alone = self._alone(requests, on_progress)
        yield _Estimated({self._name: given}, {self._name: alone}, requests, exact, on_progress)

    def _alone(
        self, requests: Mapping[Key, ContextRequest], on_progress: Callable[[int], None]
    ) -> dict[Key, PositionScores]:
        """Return scores of the anchors of every request without its context.

        Each root is scored once. The first token of a sequence can't be scored: it gets NaN.
        """
        roots = longest_roots(requests)
        begin = len(self._bos_ids)
        sequences = [np.concatenate([self._bos_ids, root_T]) for root_T in roots.values()]
        wanted = [np.arange(max(1, begin), len(tokens_T)) for tokens_T in sequences]
        whole = map(ScoringRequest, sequences, wanted)
        entropy_of, surprisal_of = {}, {}
        for root_id, scores in zip(
            roots, self._scorer.score(list(whole), on_progress), strict=True
        ):
            unknown = np.full(len(roots[root_id]) - len(scores.entropy_N), np.nan, np.float32)
            entropy_of[root_id] = np.concatenate([unknown, scores.entropy_N])
            surprisal_of[root_id] = np.concatenate([unknown, scores.surprisal_N])
        return {
            key: PositionScores(
                entropy_of[key[0]][request.anchors], surprisal_of[key[0]][request.anchors]
            )
            for key, request in requests.items()
        }


@dataclass(eq=False)
class _Estimated:
    """All contexts of a batch."""

    estimates: Mapping[str, Mapping[Key, PositionScores]]
    alone: Mapping[str, Mapping[Key, PositionScores]]
    requests: Mapping[Key, ContextRequest]
    exact: Scorer
    on_progress: Callable[[int], None]

    def score_exactly(self, keys: Sequence[Key]) -> dict[Key, PositionScores]:
        scores = self.exact.score([self.requests[key] for key in keys], self.on_progress)
        return dict(zip(keys, scores, strict=True))


@lru_cache(maxsize=1)
def load_proxy(model: ScoringModel, proxy: str, pack_tokens: int | None = None) -> ProxyEstimator:
    """Load a smaller model as a screen of a loaded one, for use in a `LoadScreener`.

    proxy: as `scoring.model` names models. Raises ModelError if it can't be loaded, reads other
    tokens or shorter sequences.
    """
    settings = ScoringModelSettings(
        model=proxy,
        device=str(model.hf_model.device),
        max_forward_tokens=model.max_forward_tokens,
    )
    smaller = load_scoring_model(settings)
    if fault := _mismatch(model.tokenizer, smaller.tokenizer):
        raise ModelError(f"{proxy} can't be the proxy of the scoring model: {fault}")
    if smaller.max_positions < model.max_positions:
        raise ModelError(
            f"{proxy} can't be the proxy of the scoring model: it reads {smaller.max_positions:,} "
            f"tokens at most; set scoring.max_forward_tokens to as many"
        )
    scorer = PackedScorer(smaller, pack_tokens=pack_tokens)
    return ProxyEstimator(scorer, model.tokenizer.bos_ids)


def _mismatch(own: Tokenizer, other: Tokenizer) -> str | None:
    """Return how two tokenizers differ, or None if token ids mean the same to both."""
    ours, theirs = own.hf_tokenizer.get_vocab(), other.hf_tokenizer.get_vocab()
    if ours == theirs:
        return None
    same = len(ours.items() & theirs.items())
    return f"its tokenizer is another one ({same:,} of {len(ours):,} tokens have the same id)"
