"""The scoring engine: the numbers of `score_plainly`, at the speed of the hardware.

What it saves, none of it changing a score beyond rounding:
- a sequence ends before its last scored position;
- sequences are laid end to end up to a token budget, unpadded, and never see each other;
- the LM head runs on scored positions only, and its logits are reduced as they are made;
- on CUDA the repeated layer is compiled.

Each of these holds for the models of transformers at large, but not for all: some mix tokens
outside attention, some scale their logits. So an engine proves itself on the loaded model with
two short sequences when it is made, and takes the next plainer mode where a proof fails.

Legend: T tokens of a pack, S sequences, N scored positions, D hidden size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from entropylong_assets.entropy import attention
from entropylong_assets.entropy.kernels import HeadError, entropy_and_surprisal, head_of
from entropylong_assets.entropy.model import ScoringModel, Tokenizer, as_float32, score_plainly
from entropylong_assets.entropy.packing import pack
from entropylong_assets.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.entropy.usage import ModelCost, Usage, matmul_peak

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Mode = Literal["packed", "single", "plain"]
"""`packed`: many sequences a forward pass. `single`: one sequence a pass, the model's own
attention. `plain`: the definition itself."""

MODES: tuple[Mode, ...] = ("packed", "single", "plain")

PACK_TOKENS = {"cuda": 16_384, "cpu": 1024}
"""Tokens of a pack: enough to keep the device busy (benchmarks/RESULTS.md)."""

log = logging.getLogger(__name__)


class PackedScorer:
    """Scores requests on one loaded model. `mode` says how, `usage` what it took."""

    def __init__(
        self,
        model: ScoringModel,
        *,
        pack_tokens: int | None = None,
        compile_layers: bool | None = None,
        mode: Mode | None = None,
    ) -> None:
        """pack_tokens: budget of a pack; none: by the device, within the model's own limit.

        compile_layers: none: on CUDA only. mode: none: the fastest that proves right here.
        """
        self.model = model
        self.hf_model = computing_copy(model.hf_model)
        self.device = self.hf_model.device
        self.pack_tokens = pack_tokens or PACK_TOKENS.get(self.device.type, 4096)
        self.usage = Usage(ModelCost.of(self.hf_model))
        compiled = self.device.type == "cuda" if compile_layers is None else compile_layers
        self._layers: Callable[[], AbstractContextManager[None]]
        self._layers = _compiled_layers(self.hf_model) if compiled else nullcontext
        self.mode: Mode = mode or self._fastest_right_mode()

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        """Scores in the order of `requests`; `on_progress` gets the tokens of each pass."""
        empty = np.zeros(0, np.float32)
        scores = [PositionScores(empty, empty)] * len(requests)
        wanted = [i for i, request in enumerate(requests) if len(request.positions_N)]
        lengths = [int(requests[i].positions_N[-1]) for i in wanted]
        budget = self.pack_tokens if self.mode == "packed" else 1
        for members in pack(lengths, budget):
            started = time.perf_counter()
            numbers = [wanted[member] for member in members]
            parts = self._score_pack([requests[i] for i in numbers])
            for number, part in zip(numbers, parts, strict=True):
                scores[number] = part
            sizes = [lengths[member] for member in members]
            positions = sum(len(requests[i].positions_N) for i in numbers)
            self.usage.add(sizes, positions, time.perf_counter() - started)
            on_progress(sum(sizes))
        return scores

    def figures(self, before: dict[str, float]) -> dict[str, Any]:
        """What was scored since `before = usage.snapshot()`, how, and at what rate."""
        took = self.usage.since(before) | {"mode": self.mode, "device": str(self.device)}
        if self.device.type == "cuda" and "tflop_per_second" in took:
            dtype = str(self.hf_model.dtype).removeprefix("torch.")
            peak = matmul_peak(str(self.device), dtype)
            took["matmul_peak_tflop_per_second"] = round(peak, 1)
            took["share_of_matmul_peak"] = round(took["tflop_per_second"] / peak, 3)
        return took

    def _score_pack(self, requests: Sequence[ScoringRequest]) -> list[PositionScores]:
        if self.mode == "plain":
            return [score_plainly(self.model, request) for request in requests]
        return self._score_trunk(requests, packed=self.mode == "packed")

    def _score_trunk(
        self, requests: Sequence[ScoringRequest], packed: bool
    ) -> list[PositionScores]:
        import torch

        ids, positions = _lay_end_to_end(requests)
        rows = np.concatenate(
            [r.positions_N - 1 + start for r, start in zip(requests, ids.starts, strict=True)]
        )
        targets = np.concatenate([r.token_ids_T[r.positions_N] for r in requests])
        with torch.inference_mode():
            hidden_TD = self._hidden(ids.tokens_T, positions, ids.borders, packed)
            entropy_N, surprisal_N = entropy_and_surprisal(
                hidden_TD[self._tensor(rows)], self._tensor(targets), head_of(self.hf_model)
            )
            entropy, surprisal = as_float32(entropy_N), as_float32(surprisal_N)
        ends = np.cumsum([0] + [len(r.positions_N) for r in requests])
        return [PositionScores(entropy[a:b], surprisal[a:b]) for a, b in pairwise(ends)]

    def _hidden(
        self, tokens_T: np.ndarray, positions_T: np.ndarray, borders: np.ndarray, packed: bool
    ) -> Tensor:
        decoder = self.hf_model.get_decoder()
        ids_1T = self._tensor(tokens_T)[None]
        if not packed:
            return decoder(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
        # The longest is rounded up so that a compiled layer is not made anew for every pack.
        longest = 1 << int(np.diff(borders).max() - 1).bit_length()
        borders_S = self._tensor(borders.astype(np.int32))
        with attention.packed(self.hf_model), self._layers():
            return decoder(
                input_ids=ids_1T,
                position_ids=self._tensor(positions_T)[None],
                use_cache=False,
                cu_seq_lens_q=borders_S,
                cu_seq_lens_k=borders_S,
                max_length_q=longest,
                max_length_k=longest,
            ).last_hidden_state[0]

    def _tensor(self, array: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(array).to(self.device, non_blocking=True)

    # -- proof on the loaded model ---------------------------------------------------------

    def _fastest_right_mode(self) -> Mode:
        probes = _probes(self.model)
        plain = [score_plainly(self.model, probe) for probe in probes]
        for mode in MODES[:-1]:
            try:
                wrong = self._what_is_wrong(mode, probes, plain)
            except (NotImplementedError, HeadError, TypeError) as error:
                wrong = " ".join(str(error).split())[:200]
            if wrong is None:
                return mode
            log.warning("scoring mode '%s' is not used for this model: %s", mode, wrong)
        return "plain"

    def _what_is_wrong(
        self, mode: Mode, probes: Sequence[ScoringRequest], plain: Sequence[PositionScores]
    ) -> str | None:
        """None where this mode gives the plain scores, and no sequence moves another's."""
        if mode == "single":
            scores = [self._score_trunk([probe], packed=False)[0] for probe in probes]
        else:
            scores = self._score_trunk(probes, packed=True)
            other = ScoringRequest(probes[0].token_ids_T[::-1].copy(), probes[0].positions_N)
            again = self._score_trunk([other, *probes[1:]], packed=True)
            moved = _largest_difference(scores[1:], again[1:])
            if moved > 1e-6:
                return f"a sequence moves the scores of its neighbour (by {moved:.2g} nats)"
        exact = self.model.hf_model.dtype.itemsize == 4
        off = _largest_difference(scores, plain)
        # bfloat16 logits have steps of 2^-8 of their size, and the plain form rounds them so.
        if not off < (1e-3 if exact else 0.5):
            return f"its scores are off the plain definition (by {off:.2g} nats)"
        return None


def computing_copy(hf_model: PreTrainedModel) -> PreTrainedModel:
    """The model to compute with: itself, or its float32 copy on a CPU without bfloat16 units.

    There bfloat16 is emulated, several times slower than float32. The weights stay those of the
    bfloat16 model; only the rounding of activations falls away.
    """
    import copy

    import torch

    if hf_model.device.type != "cpu" or hf_model.dtype != torch.bfloat16 or cpu_has_bfloat16():
        return hf_model
    return copy.deepcopy(hf_model).float()


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16)."""
    import torch

    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


class _Laid:
    """Sequences laid end to end: tokens_T, borders [S + 1] and starts [S]."""

    def __init__(self, requests: Sequence[ScoringRequest]) -> None:
        cut = [r.token_ids_T[: r.positions_N[-1]] for r in requests]
        self.tokens_T = np.concatenate(cut)
        self.borders = np.cumsum([0] + [len(tokens) for tokens in cut])
        self.starts = self.borders[:-1]


def _lay_end_to_end(requests: Sequence[ScoringRequest]) -> tuple[_Laid, np.ndarray]:
    """Tokens up to each sequence's last scored position, and each token's place in its own."""
    laid = _Laid(requests)
    lengths = np.diff(laid.borders)
    return laid, np.arange(len(laid.tokens_T)) - np.repeat(laid.starts, lengths)


def _probes(model: ScoringModel) -> list[ScoringRequest]:
    """Two short sequences of tokens drawn by seed, every position scored."""
    draw = np.random.default_rng(0)
    longest = min(48, model.max_positions)
    return [
        ScoringRequest(draw.integers(0, model.vocab_size, n), np.arange(1, n, dtype=np.int64))
        for n in (longest, max(2, longest // 2))
    ]


def _largest_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    pairs = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    pairs += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    return max(float(np.abs(x - y).max(initial=0.0)) for x, y in pairs)


def _compiled_layers(hf_model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the decoder's repeated layer runs compiled, once for all layers."""
    import torch

    layers = list(getattr(hf_model.get_decoder(), "layers", ()))
    compiled = {
        kind: torch.compile(kind.forward, dynamic=True) for kind in {type(x) for x in layers}
    }

    @contextmanager
    def swapped() -> Iterator[None]:
        for layer in layers:
            layer.forward = compiled[type(layer)].__get__(layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    return swapped


@lru_cache(maxsize=1)
def _engine(
    hf_model: PreTrainedModel, tokenizer: Tokenizer, identity: str, longest: int
) -> PackedScorer:
    return PackedScorer(ScoringModel(hf_model, tokenizer, identity, longest))


def load_scorer(model: ScoringModel) -> PackedScorer:
    """The engine of a loaded model; a second call in the same process gives the same one."""
    return _engine(model.hf_model, model.tokenizer, model.identity, model.max_forward_tokens)
