"""Comparison of an engine with the plain definition, on the loaded model.

What a faster mode assumes is tested on random tokens:
- other sequences in the pass don't matter: a long one, a short one, a changed one;
- a pass may end at the last scored position, before the sequence does;
- passes in several threads don't disturb each other.

First it tests what every mode assumes of the model: scores are finite, and neither later tokens nor
earlier passes change them.

Legend: T tokens of a sequence, N scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.model_files import ModelError

MAX_SCORED = 48
"""Maximum number of positions scored per probe: the LM head is most of the cost of long ones."""

FIRST = 48
"""Length of the longest probe in an engine's first test (tokens)."""

SHORTEST = 12
"""Minimum length of a probe (tokens), if the model takes as many."""


class Probes:
    """Random sequences, the same in every run, with their plain scores.

    `requests` are sequences of the longest length, half of it, a quarter, ..., and then the longest
    one scored in its first half only, its first quarter, ... So for every length at which a model
    may begin to compute otherwise, there are sequences and passes on both sides of it.
    """

    def __init__(self, model: ScoringModel, longest: int) -> None:
        self.model = model
        self.longest = longest
        draw = np.random.default_rng(0)
        lengths = [longest]
        while lengths[-1] >= 2 * SHORTEST:
            lengths.append(lengths[-1] // 2)
        sequences = [draw.integers(0, model.input_vocab_size, n) for n in lengths]
        self.whole = [ScoringRequest(s, _spread(len(s))) for s in sequences]
        self.cut = [ScoringRequest(sequences[0], _spread(n)) for n in lengths[1:]]
        self.requests = [*self.whole, *self.cut]
        thirds = longest // 3
        changed_T = np.concatenate([sequences[0][: longest - thirds], sequences[0][:thirds]])
        self.changed = ScoringRequest(changed_T, self.whole[0].positions_N)
        """The longest sequence with other tokens in its last third."""
        self.reversed = ScoringRequest(sequences[0][::-1].copy(), self.whole[0].positions_N)

    @cached_property
    def plain(self) -> list[PositionScores]:
        """Plain scores of the requests."""
        every = np.unique(np.concatenate([r.positions_N for r in (self.whole[0], *self.cut)]))
        longest = score_plainly(self.model, ScoringRequest(self.whole[0].token_ids_T, every))
        of_longest = [
            PositionScores(longest.entropy_N[chosen], longest.surprisal_N[chosen])
            for chosen in (np.isin(every, r.positions_N) for r in (self.whole[0], *self.cut))
        ]
        others = [score_plainly(self.model, request) for request in self.whole[1:]]
        return [of_longest[0], *others, *of_longest[1:]]

    def packs(self, packed: bool) -> list[list[int]]:
        """Return the numbers of the requests of each pass."""
        numbers = range(len(self.requests))
        if not packed:
            return [[number] for number in numbers]
        at = len(self.whole)
        return [pack for pack in (list(numbers[:at]), list(numbers[at:])) if pack]

    @property
    def shows_neighbours(self) -> bool:
        """Whether equal scores show by themselves that no sequence has changed another's."""
        return self.model.hf_model.dtype.itemsize == 4 and self.longest > FIRST

    def can_be_scored(self) -> bool:
        """Return whether the plain passes run through; their scores are kept if they do."""
        import torch

        try:
            return bool(self.plain)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # models may raise any error
            return False

    def check_model(self) -> None:
        """Raise ModelError unless the model has scores, which depend on earlier tokens only."""
        import torch

        name = self.model.identity.rpartition("@")[0] or self.model.identity
        try:
            fault = self._fault_of_model()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models may raise any error
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"scoring.model {name}: a forward pass over text fails "
                f"({type(error).__name__}: {reason}); name another model"
            ) from error
        if fault:
            raise ModelError(f"scoring.model {name}: {fault}")

    def _fault_of_model(self) -> str | None:
        if any(
            getattr(m, "attention_type", None) == "block_sparse"
            for m in self.model.hf_model.modules()
        ):
            return (
                "its block-sparse attention sees later tokens of long sequences; set "
                "attention_type: original_full in its config.json"
            )
        long = self.plain[0]
        if not all(np.isfinite(scores.entropy_N).all() for scores in self.plain):
            return (
                "its scores are not finite numbers; check its weights, or set scoring.dtype to "
                "float32"
            )
        again = self.whole[-1], self.plain[len(self.whole) - 1]
        if not self.agree([score_plainly(self.model, again[0])], [again[1]]):
            return (
                "it gives other scores when asked again, so that no result can be repeated; name "
                "another model"
            )
        length = self.longest
        before = self.whole[0].positions_N < length - length // 3
        other, same = (
            [PositionScores(scores.entropy_N[before], scores.surprisal_N[before])]
            for scores in (score_plainly(self.model, self.changed), long)
        )
        if not self.agree(other, same):
            return (
                f"it is not causal: later tokens change the scores of earlier ones (by "
                f"{largest_difference(other, same):.2g} nats in {length} tokens); name a causal "
                f"language model, or set is_decoder: true in its config.json if it was trained as "
                f"one"
            )
        return None

    def agree(
        self, a: Sequence[PositionScores], b: Sequence[PositionScores], float8: bool = False
    ) -> bool:
        """Return whether the scores are equal as far as the model's arithmetic is exact."""
        mean = mean_difference(a, b)
        if self.model.hf_model.dtype.itemsize == 4:
            return largest_difference(a, b) < 1e-3
        if float8:
            return mean < 0.5
        return mean < 0.05 or mean < 2 * self.rounding

    @cached_property
    def rounding(self) -> float:
        """Mean difference of two of the model's own attentions in its dtype (nats).

        It measures how exact 16-bit scores can be: on random tokens, a small model's plain scores
        differ by several hundredths of a nat.
        """
        own = self.model.hf_model.config.get_text_config()._attn_implementation
        short = Probes(self.model, min(self.longest, 384))
        with attention.implementation(self.model.hf_model, "sdpa" if own == "eager" else "eager"):
            other = [score_plainly(self.model, request) for request in short.whole]
        return mean_difference(other, short.plain[: len(other)])


def _spread(length: int) -> NDArray[np.int64]:
    """Return positions from 1 to length - 1: all of them, or MAX_SCORED at equal distances."""
    return np.linspace(1, length - 1, min(MAX_SCORED, length - 1)).astype(np.int64)


def _differences(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> np.ndarray:
    pairs = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    pairs += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    return np.concatenate([np.abs(x - y) for x, y in pairs])


def largest_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Return the largest absolute difference of any entropy or surprisal (nats)."""
    return float(_differences(a, b).max(initial=0.0))


def mean_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Return the mean absolute difference of all entropies and surprisals (nats)."""
    return float(_differences(a, b).mean())
