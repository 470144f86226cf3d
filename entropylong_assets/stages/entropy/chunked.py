"""Scoring of sequences longer than a pass, in chunks, with keys and values of earlier tokens kept.

Memory is bounded by the keys and values of one sequence and the activations of one chunk; those of
one pass over the whole sequence grow with its length. A chunk attends to the kept keys and values,
which is what a single pass computes. Before the first use that is compared with the plain
definition; a model for which it differs is scored in one pass.

Legend: T tokens of a sequence, N scored positions, R of a chunk, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kernels import entropy_and_surprisal, head_of
from entropylong_assets.stages.entropy.model import as_float32, score_plainly
from entropylong_assets.stages.entropy.network import decoder_of
from entropylong_assets.stages.entropy.rotary import depends_on_length
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 2048
"""Minimum number of tokens per chunk: shorter ones read the weights too often."""
PROBE_POSITIONS = 64

log = logging.getLogger(__name__)


class ChunkedScorer:
    """Scores requests with an engine: short sequences as it does, longer ones in chunks."""

    def __init__(self, scorer: PackedScorer, chunk_tokens: int | None = None) -> None:
        """chunk_tokens: None: as many as the engine's passes have, at least `CHUNK_TOKENS`."""
        self._scorer = scorer
        self.chunk_tokens = chunk_tokens or max(scorer.pack_tokens, CHUNK_TOKENS)
        modules = scorer.hf_model.modules()
        self._is_exact: bool | None = False if any(map(depends_on_length, modules)) else None

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        """Return scores in the order of the requests.

        on_progress: called with the number of tokens of each forward pass.
        """
        by_number: dict[int, PositionScores] = {}
        whole: list[int] = []
        for number, request in enumerate(requests):
            if self._needs_chunks(request) and self._agrees(request):
                by_number[number] = self.score_in_chunks(request, on_progress)
            else:
                whole.append(number)
        scores = self._scorer.score([requests[i] for i in whole], on_progress)
        by_number |= dict(zip(whole, scores, strict=True))
        return [by_number[number] for number in range(len(requests))]

    def score_in_chunks(
        self, request: ScoringRequest, on_progress: Callable[[int], None] = lambda _: None
    ) -> PositionScores:
        """Score one sequence chunk by chunk."""
        from transformers import DynamicCache

        hf_model = self._scorer.hf_model
        decoder, head = decoder_of(hf_model), head_of(hf_model)
        cache = DynamicCache(config=hf_model.config)
        length = int(request.positions_N[-1]) if len(request.positions_N) else 0
        entropies: list[np.ndarray] = []
        surprisals: list[np.ndarray] = []
        for start in range(0, length, self.chunk_tokens):
            end = min(start + self.chunk_tokens, length)
            # Position t is scored from the row of t-1.
            rows = request.positions_N - 1
            rows_R = rows[(start <= rows) & (rows < end)]
            with torch.inference_mode():
                states_1TD = decoder(
                    input_ids=self._tensor(request.token_ids_T[start:end])[None],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
                targets_R = self._tensor(request.token_ids_T[rows_R + 1])
                hidden_RD = states_1TD[0, self._tensor(rows_R - start)]
                entropy_R, surprisal_R = entropy_and_surprisal(hidden_RD, targets_R, head)
            entropies.append(as_float32(entropy_R))
            surprisals.append(as_float32(surprisal_R))
            on_progress(end - start)
        empty = [np.zeros(0, np.float32)]
        return PositionScores(
            np.concatenate(entropies or empty), np.concatenate(surprisals or empty)
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._scorer.hf_model.device)

    def _needs_chunks(self, request: ScoringRequest) -> bool:
        return len(request.positions_N) > 0 and int(request.positions_N[-1]) > self.chunk_tokens

    def _agrees(self, request: ScoringRequest) -> bool:
        """Whether chunks give the plain scores; compared once, at the end of the second chunk."""
        if self._is_exact is None:
            end = min(2 * self.chunk_tokens + 1, len(request.token_ids_T))
            positions = np.arange(max(1, end - PROBE_POSITIONS), end, dtype=np.int64)
            probe = ScoringRequest(request.token_ids_T[:end], positions)
            self._is_exact = self._fault(probe) is None
        return self._is_exact

    def _fault(self, probe: ScoringRequest) -> str | None:
        try:
            chunked = self.score_in_chunks(probe).surprisal_N
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models may raise any error
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            plain = score_plainly(self._scorer.model, probe).surprisal_N
            off = np.abs(chunked - plain)
            exact = self._scorer.hf_model.dtype == torch.float32
            if off.max() <= 1e-3 if exact else off.mean() <= 0.05:
                return None
            fault = f"its scores differ from the plain definition (by {off.max():.2g} nats)"
        log.warning("sequences are not scored in chunks for this model: %s", fault)
        return fault
