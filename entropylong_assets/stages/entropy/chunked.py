"""Scoring of sequences longer than a pass, in chunks, with keys and values of earlier tokens kept.

Memory is bounded by the keys and values of one sequence and the activations of one chunk; those of
one pass over the whole sequence grow with its length. A chunk attends to the kept keys and values,
which is what a single pass computes. There are several ways to do so. Before the first use, a way
is compared with the plain definition; if it differs, the next plainer one is used, and in the end
one pass over the sequence.

Legend: T tokens of a sequence, N scored positions, R of a chunk, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.chunk_attention import ChunkAttention, cudnn_pays
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kernels import entropy_and_surprisal, head_of
from entropylong_assets.stages.entropy.model import as_float32, score_plainly
from entropylong_assets.stages.entropy.network import decoder_of
from entropylong_assets.stages.entropy.rotary import PassLengths, depends_on_length
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.self_test import Probes, largest_difference

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 2048
"""Minimum number of tokens per chunk: shorter ones read the weights too often."""
PROBE_POSITIONS = 64

Way = Literal["cudnn", "packed", "cache"]
"""`cudnn`, `packed`: the engine's packed pass, with the attention of `chunk_attention.py` by cuDNN
or by the kernels of packed passes. `cache`: the model's own pass and attention, with the keys in a
cache of transformers."""

Hidden = Callable[[int, int, np.ndarray], "Tensor"]
"""Hidden states [R, D] of the rows of the next chunk: (start, end, rows of the sequence)."""

log = logging.getLogger(__name__)


class ChunkedScorer:
    """Scores requests with an engine: short sequences as it does, longer ones in chunks."""

    def __init__(
        self,
        scorer: PackedScorer,
        chunk_tokens: int | None = None,
        ways: Sequence[Way] | None = None,
    ) -> None:
        """chunk_tokens: None: as many as the engine's passes have, at least `CHUNK_TOKENS`.

        ways: the ways to try, by preference; None: all that the model and the device allow.
        """
        self._scorer = scorer
        self.chunk_tokens = chunk_tokens or max(scorer.pack_tokens, CHUNK_TOKENS)
        self._ways = list(possible_ways(scorer) if ways is None else ways)
        self._faults: dict[Way, str | None] = {}

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
            way = self.way_for(request) if self._needs_chunks(request) else None
            if way is None:
                whole.append(number)
            else:
                by_number[number] = self.score_in_chunks(request, way, on_progress)
        scores = self._scorer.score([requests[i] for i in whole], on_progress)
        by_number |= dict(zip(whole, scores, strict=True))
        return [by_number[number] for number in range(len(requests))]

    def score_in_chunks(
        self,
        request: ScoringRequest,
        way: Way,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> PositionScores:
        """Score one sequence chunk by chunk in this way."""
        head = head_of(self._scorer.hf_model)
        length = int(request.positions_N[-1]) if len(request.positions_N) else 0
        # Position t is scored from the row of t-1.
        rows_N = request.positions_N - 1
        scores_2R: list[Tensor] = [torch.zeros(2, 0, device=self._scorer.device)]
        if way == "cache":
            passes = self._cached_passes(request)
        else:
            passes = self._packed_passes(request, length, with_cudnn=way == "cudnn")
        with torch.inference_mode(), passes as hidden:
            for start in range(0, length, self.chunk_tokens):
                end = min(start + self.chunk_tokens, length)
                rows_R = rows_N[(start <= rows_N) & (rows_N < end)]
                hidden_RD = hidden(start, end, rows_R)
                if len(rows_R):
                    targets_R = self._scorer.tensor(request.token_ids_T[rows_R + 1])
                    both = entropy_and_surprisal(hidden_RD, targets_R, head)
                    scores_2R.append(torch.stack(both))
                on_progress(end - start)
            return PositionScores(*as_float32(torch.cat(scores_2R, dim=1)))

    def way_for(self, request: ScoringRequest) -> Way | None:
        """Return the first way that gives the plain scores, or None if none does.

        Each is compared once, at the end of the second chunk of this request.
        """
        for way in self._ways:
            if way != "cache" and self._scorer.mode != "packed":
                continue
            if way not in self._faults:
                end = min(2 * self.chunk_tokens + 1, len(request.token_ids_T))
                positions = np.arange(max(1, end - PROBE_POSITIONS), end, dtype=np.int64)
                probe = ScoringRequest(request.token_ids_T[:end], positions)
                self._faults[way] = self._fault(probe, way)
            if self._faults[way] is None:
                return way
        return None

    @contextmanager
    def _packed_passes(
        self, request: ScoringRequest, length: int, with_cudnn: bool
    ) -> Iterator[Hidden]:
        scorer = self._scorer
        kept = ChunkAttention(length, with_cudnn)

        def hidden(start: int, end: int, rows_R: np.ndarray) -> Tensor:
            # The compiler treats fewer than two rows apart.
            more_R = np.append(rows_R - start, [0, 0])
            with attention.attending(kept.of_next_chunk()):
                return scorer.trunk.hidden_packed(
                    scorer.tensor(request.token_ids_T[start:end])[None],
                    scorer.tensor(np.arange(start, end))[None],
                    scorer.tensor(np.array([0, end - start], np.int32)),
                    PassLengths([end - start], [len(request.token_ids_T)]),
                    scorer.tensor(more_R),
                )[: len(rows_R)]

        with scorer.trunk.ready_packed():
            yield hidden

    @contextmanager
    def _cached_passes(self, request: ScoringRequest) -> Iterator[Hidden]:
        from transformers import DynamicCache

        scorer = self._scorer
        decoder, cache = decoder_of(scorer.hf_model), DynamicCache(config=scorer.hf_model.config)

        def hidden(start: int, end: int, rows_R: np.ndarray) -> Tensor:
            states_1RD: Tensor = decoder(
                input_ids=scorer.tensor(request.token_ids_T[start:end])[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return states_1RD[0, scorer.tensor(rows_R - start)]

        yield hidden

    def _needs_chunks(self, request: ScoringRequest) -> bool:
        return len(request.positions_N) > 0 and int(request.positions_N[-1]) > self.chunk_tokens

    def _fault(self, probe: ScoringRequest, way: Way) -> str | None:
        scorer = self._scorer
        try:
            chunked = self.score_in_chunks(probe, way)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models may raise any error
            fault = attention.line_of(error)
        else:
            plain = score_plainly(scorer.model, probe)
            if Probes(scorer.model, len(probe.token_ids_T)).agree(
                [chunked], [plain], scorer.float8
            ):
                return None
            off = largest_difference([chunked], [plain])
            fault = f"its scores differ from the plain definition (by {off:.2g} nats)"
        log.warning("sequences are not scored in chunks by '%s' for this model: %s", way, fault)
        return fault


def possible_ways(scorer: PackedScorer) -> list[Way]:
    """Return the ways to try for this model and device, the fastest first."""
    hf_model = scorer.hf_model
    ways: list[Way] = ["packed"]
    if cudnn_pays(hf_model.device, hf_model.dtype):
        ways.insert(0, "cudnn")
    # Transformers would take the length of a chunk for that of the sequence.
    if not any(map(depends_on_length, hf_model.modules())):
        ways.append("cache")
    return ways
