"""The scoring engine: the numbers of `score_plainly`, at the speed of the hardware.

What it saves, none of it changing a score beyond rounding:
- a sequence ends before its last scored position;
- sequences are laid end to end up to a token budget, unpadded, and never see each other;
- the LM head runs on scored positions only, and its logits are reduced as they are made;
- on a CPU each core has a pass of its own, unless layers are compiled; on CUDA the next pass starts
  before the last is fetched;
- the trunk runs on faster equals of some of its modules (`trunk.py`).

Each of these holds for the models of transformers at large, but not for all: some mix tokens
outside attention, some scale their logits. So an engine proves itself on the loaded model with
two short sequences when it is made, and takes the next plainer mode where a proof fails.

Legend: T tokens of a pack, S sequences, N scored positions of a request, R of a pack, D hidden
size.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.batching import pack
from entropylong_assets.stages.entropy.kernels import HeadError, entropy_and_surprisal, head_of
from entropylong_assets.stages.entropy.model import ScoringModel, Tokenizer, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.trunk import Trunk
from entropylong_assets.stages.entropy.usage import ModelCost, Usage, matmul_peak

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Mode = Literal["packed", "single", "plain"]
"""`packed`: many sequences a forward pass. `single`: one sequence a pass, the model's own
attention. `plain`: the definition itself."""

MODES: tuple[Mode, ...] = ("packed", "single", "plain")

PACK_TOKENS = {"cuda": 16_384, "cpu": 512}
"""Tokens of a pack: enough to keep the device busy (benchmarks/RESULTS.md)."""

PACK_TOKENS_OF_ALL_CORES = 4096
"""The same on a CPU whose cores share a pass."""

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
        float8: bool = False,
    ) -> None:
        """pack_tokens: budget of a pack; none: by the device, within the model's own limit.

        compile_layers: none: where it pays. mode: none: the fastest that proves right here.
        float8: approximate (`trunk.py`); held to the plain definition loosely.
        """
        self.model = model
        self.hf_model = computing_copy(model.hf_model)
        self.device = self.hf_model.device
        compiled = compiling_pays(self.hf_model) if compile_layers is None else compile_layers
        shared = compiled and self.device.type == "cpu"
        usual = PACK_TOKENS_OF_ALL_CORES if shared else PACK_TOKENS.get(self.device.type, 4096)
        self.pack_tokens = pack_tokens or usual
        self.usage = Usage(ModelCost.of(self.hf_model))
        self.trunk = Trunk(self.hf_model, compiled, float8)
        self._float8 = float8
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
        started = time.perf_counter()

        def finish(numbers: Sequence[int], launched: Launched) -> None:
            nonlocal started
            for number, part in zip(numbers, launched.scores(), strict=True):
                scores[number] = part
            sizes = [int(requests[i].positions_N[-1]) for i in numbers]
            positions = sum(len(requests[i].positions_N) for i in numbers)
            now = time.perf_counter()
            self.usage.add(sizes, positions, now - started)
            started = now
            on_progress(sum(sizes))

        packs = [[wanted[member] for member in members] for members in pack(lengths, budget)]
        with self.trunk.ready() if self.mode == "packed" else nullcontext():
            for numbers, launched in self._passes(packs, requests):
                finish(numbers, launched)
        return scores

    def _passes(
        self, packs: Sequence[list[int]], requests: Sequence[ScoringRequest]
    ) -> Iterator[tuple[list[int], Launched]]:
        """Each pack with its pass, in order."""

        def launch(numbers: list[int]) -> Launched:
            return self._launch([requests[i] for i in numbers], self.mode)

        if self.device.type == "cpu" and self.mode != "plain" and not self.trunk.is_compiled:
            # A core to itself, each pass needs no barrier between the threads of one product.
            cores = torch.get_num_threads()
            workers = max(1, min(cores, len(packs)))
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
            ) as pool:
                try:
                    yield from zip(packs, pool.map(launch, packs), strict=True)
                finally:
                    pool.shutdown(cancel_futures=True)
                    torch.set_num_threads(cores)
            return
        # One pass is always ahead on the device while the one before it is fetched.
        before: tuple[list[int], Launched] | None = None
        for numbers in packs:
            launched = launch(numbers)
            if before:
                yield before
            before = numbers, launched
        if before:
            yield before

    def figures(self, before: dict[str, float]) -> dict[str, Any]:
        """What was scored since `before = usage.snapshot()`, how, and at what rate."""
        took = self.usage.since(before) | {"mode": self.mode, "device": str(self.device)}
        if self.device.type == "cuda" and "tflop_per_second" in took:
            dtype = str(self.hf_model.dtype).removeprefix("torch.")
            peak = matmul_peak(str(self.device), dtype)
            took["matmul_peak_tflop_per_second"] = round(peak, 1)
            took["share_of_matmul_peak"] = round(took["tflop_per_second"] / peak, 3)
        return took

    def _score_pack(self, requests: Sequence[ScoringRequest], mode: Mode) -> list[PositionScores]:
        with self.trunk.ready() if mode == "packed" else nullcontext():
            return self._launch(requests, mode).scores()

    def _launch(self, requests: Sequence[ScoringRequest], mode: Mode) -> Launched:
        """Starts one forward pass over all of `requests`, of which none is without positions."""
        if mode == "plain":
            plain = [score_plainly(self.model, request) for request in requests]
            return Launched.of_scores(plain)
        laid = lay_end_to_end(requests)
        with torch.inference_mode():
            ids_1T, rows_R = self._tensor(laid.tokens_T)[None], self._tensor(laid.rows_R)
            if mode == "single":
                hidden_RD = self.trunk.hidden(ids_1T)[rows_R]
            else:
                lengths = np.diff(laid.borders_S)
                # Rounded up, so that a compiled layer is not made anew for every pack.
                longest = 1 << int(lengths.max() - 1).bit_length()
                hidden_RD = self.trunk.hidden_packed(
                    ids_1T,
                    self._tensor(laid.positions_T)[None],
                    self._tensor(laid.borders_S.astype(np.int32)),
                    longest,
                    rows_R,
                )
            both_2R = torch.stack(
                entropy_and_surprisal(
                    hidden_RD, self._tensor(laid.targets_R), head_of(self.hf_model)
                )
            )
        return Launched(both_2R, [len(r.positions_N) for r in requests])

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            # From pageable memory a copy would wait for all work before it.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    # -- proof on the loaded model ---------------------------------------------------------

    def _fastest_right_mode(self) -> Mode:
        # On a CPU the compiler lays its loops out by the first lengths that it sees.
        on_cpu = self.trunk.is_compiled and self.device.type == "cpu"
        probes = _probes(self.model, 384 if on_cpu else 48)
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
            scores = [self._score_pack([probe], mode)[0] for probe in probes]
        else:
            scores = self._score_pack(probes, mode)
            other = ScoringRequest(probes[0].token_ids_T[::-1].copy(), probes[0].positions_N)
            again = self._score_pack([other, *probes[1:]], mode)
            moved = largest_difference(scores[1:], again[1:])
            if moved > 1e-4:  # a GPU's products repeat to some units in the last place only
                return f"a sequence moves the scores of its neighbour (by {moved:.2g} nats)"
        off, mean = largest_difference(scores, plain), _mean_difference(scores, plain)
        if self.model.hf_model.dtype.itemsize == 4:
            right = off < 1e-3
        elif self._float8:
            right = mean < 0.5
        else:
            right = mean < 0.05 or mean < 2 * self._rounding(probes, plain)
        return (
            None
            if right
            else (f"its scores are off the plain definition (by {off:.2g} nats, mean {mean:.2g})")
        )

    def _rounding(self, probes: Sequence[ScoringRequest], plain: Sequence[PositionScores]) -> float:
        """By how much, in the mean, two of the model's own attentions differ in its dtype (nats).

        That is how exact 16-bit scores are at all: on tokens drawn at random a small model's
        plain scores move by several hundredths of a nat.
        """
        own = self.model.hf_model.config.get_text_config()._attn_implementation
        with attention.implementation(self.model.hf_model, "sdpa" if own == "eager" else "eager"):
            other = [score_plainly(self.model, probe) for probe in probes]
        return _mean_difference(other, plain)


def computing_copy(hf_model: PreTrainedModel) -> PreTrainedModel:
    """The model to compute with: itself, or its float32 copy on a CPU without bfloat16 units.

    There bfloat16 is emulated, several times slower than float32. The weights stay those of the
    bfloat16 model; only the rounding of activations falls away.
    """
    import copy

    if hf_model.device.type != "cpu" or hf_model.dtype != torch.bfloat16 or cpu_has_bfloat16():
        return hf_model
    return copy.deepcopy(hf_model).float()


def compiling_pays(hf_model: PreTrainedModel) -> bool:
    """Whether the compiled layer is the faster one (benchmarks/RESULTS.md).

    On a CPU for bfloat16 only, and where the compiler finds a C++ compiler to work with.
    """
    if hf_model.device.type == "cpu":
        has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        return hf_model.dtype == torch.bfloat16 and has_compiler
    return hf_model.device.type == "cuda"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16)."""
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


class Launched:
    """Scores of one pass that may still be on their way from the device."""

    def __init__(self, both_2R: Tensor, counts: Sequence[int]) -> None:
        """both_2R: entropies and surprisals, float32. counts: positions of each request."""
        self._counts = counts
        self._ready: list[PositionScores] | None = None
        self._host_2R, self._arrived = both_2R, None
        if both_2R.is_cuda:
            self._host_2R = torch.empty(both_2R.shape, dtype=both_2R.dtype, pin_memory=True)
            self._host_2R.copy_(both_2R, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @classmethod
    def of_scores(cls, scores: list[PositionScores]) -> Launched:
        launched = cls(torch.empty(2, 0), [])
        launched._ready = scores
        return launched

    def scores(self) -> list[PositionScores]:
        if self._ready is not None:
            return self._ready
        if self._arrived is not None:
            self._arrived.synchronize()
        entropy_R, surprisal_R = self._host_2R.numpy().copy()
        ends = np.cumsum([0, *self._counts])
        return [PositionScores(entropy_R[a:b], surprisal_R[a:b]) for a, b in pairwise(ends)]


class Laid(NamedTuple):
    """Sequences laid end to end, each up to its last scored position."""

    tokens_T: np.ndarray
    positions_T: np.ndarray
    """Each token's place in its own sequence."""
    borders_S: np.ndarray
    """Start of each sequence, and the end of the last."""
    rows_R: np.ndarray
    """Where in the pack each scored position is predicted: one before it."""
    targets_R: np.ndarray
    """The true token at each scored position."""


def lay_end_to_end(requests: Sequence[ScoringRequest]) -> Laid:
    lengths = [int(r.positions_N[-1]) for r in requests]
    borders_S = np.cumsum([0, *lengths])
    return Laid(
        tokens_T=np.concatenate(
            [r.token_ids_T[:n] for r, n in zip(requests, lengths, strict=True)]
        ),
        positions_T=np.concatenate([np.arange(n) for n in lengths]),
        borders_S=borders_S,
        rows_R=np.concatenate(
            [r.positions_N - 1 + start for r, start in zip(requests, borders_S, strict=False)]
        ),
        targets_R=np.concatenate([r.token_ids_T[r.positions_N] for r in requests]),
    )


def _probes(model: ScoringModel, longest: int) -> list[ScoringRequest]:
    """Two short sequences of tokens drawn by seed, every position scored."""
    draw = np.random.default_rng(0)
    longest = min(longest, model.max_positions)
    return [
        ScoringRequest(draw.integers(0, model.vocab_size, n), np.arange(1, n, dtype=np.int64))
        for n in (longest, max(2, longest // 2))
    ]


def _differences(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> np.ndarray:
    pairs = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    pairs += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    return np.concatenate([np.abs(x - y) for x, y in pairs])


def largest_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Of any entropy or surprisal, nats."""
    return float(_differences(a, b).max(initial=0.0))


def _mean_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    return float(_differences(a, b).mean())


@lru_cache(maxsize=1)
def _scorer(
    hf_model: PreTrainedModel,
    tokenizer: Tokenizer,
    identity: str,
    longest: int,
    pack_tokens: int | None,
) -> PackedScorer:
    model = ScoringModel(hf_model, tokenizer, identity, longest)
    return PackedScorer(model, pack_tokens=pack_tokens)


def load_scorer(model: ScoringModel, pack_tokens: int | None = None) -> PackedScorer:
    """The engine of a loaded model; a second call in the same process gives the same one."""
    return _scorer(
        model.hf_model, model.tokenizer, model.identity, model.max_forward_tokens, pack_tokens
    )
