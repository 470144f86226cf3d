"""The scoring engine: the scores of `score_plainly`, computed faster.

It differs from the plain definition as follows, none of which changes a score beyond rounding:
- a sequence ends before its last scored position;
- sequences are concatenated up to a token budget, without padding, and don't attend to each other;
- the LM head runs on scored positions only, and its logits are reduced block by block;
- on a CPU each core computes its own pass, unless layers are compiled; on CUDA the next pass starts
  before the scores of the last are copied;
- some modules of the trunk are replaced by faster ones (`trunk.py`).

This is right for most models of transformers, but not for all: some mix tokens outside attention,
some scale their logits. Therefore an engine compares itself with the plain definition
(`self_test.py`) when it is made, on short sequences, and again whenever a sequence is longer than
all before it, at that length and with the first layers of the model. If it differs, it uses the
next plainer mode.

Legend: T tokens of a pack, S sequences, N scored positions of a request, R of a pack, D hidden
size.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from entropylong_assets.stages.entropy.attention import line_of
from entropylong_assets.stages.entropy.batching import pack
from entropylong_assets.stages.entropy.kernels import entropy_and_surprisal, head_of
from entropylong_assets.stages.entropy.model import ScoringModel, Tokenizer, score_plainly
from entropylong_assets.stages.entropy.network import first_layers, has_changed, state_of
from entropylong_assets.stages.entropy.passes import LaunchedPass, concatenate
from entropylong_assets.stages.entropy.rotary import PassLengths
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.self_test import (
    FIRST,
    Probes,
    largest_difference,
    mean_difference,
)
from entropylong_assets.stages.entropy.trunk import Trunk
from entropylong_assets.stages.entropy.usage import ModelCost, Usage, matmul_peak

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Mode = Literal["packed", "single", "plain"]
"""`packed`: many sequences per forward pass. `single`: one sequence per pass, with the model's own
attention. `plain`: the definition itself."""

MODES: tuple[Mode, ...] = ("packed", "single", "plain")

PACK_TOKENS = {"cuda": 16_384, "cpu": 512}
"""Tokens per pack: enough to keep the device busy (benchmarks/RESULTS.md)."""

PACK_TOKENS_ALL_CORES = 4096
"""The same on a CPU if its cores share a pass."""

log = logging.getLogger(__name__)


class PackedScorer:
    """Scores requests on one loaded model. `mode` says how, `usage` counts passes and tokens."""

    def __init__(
        self,
        model: ScoringModel,
        *,
        pack_tokens: int | None = None,
        compile_layers: bool | None = None,
        mode: Mode | None = None,
        float8: bool = False,
    ) -> None:
        """pack_tokens: maximum number of tokens per pack; None: chosen by the device.

        compile_layers: None: if it is faster. mode: None: the fastest that gives the right scores.
        float8: approximate (`trunk.py`), so the comparison with the plain definition is loose.
        """
        self.model = model
        self.hf_model = computing_copy(model.hf_model)
        self.device = self.hf_model.device
        compiled = compiling_pays(self.hf_model) if compile_layers is None else compile_layers
        shared = compiled and self.device.type == "cpu"
        usual = PACK_TOKENS_ALL_CORES if shared else PACK_TOKENS.get(self.device.type, 4096)
        self.pack_tokens = pack_tokens or usual
        self.usage = Usage(ModelCost.of(self.hf_model))
        self.trunk = Trunk(self.hf_model, compiled, float8)
        self.float8 = float8
        self.is_concurrent = self.device.type == "cpu" and not compiled
        self._tested_tokens: float = math.inf
        self.mode: Mode = mode or MODES[0]
        if mode is None:
            # On a CPU the compiler arranges its loops for the first lengths that it sees.
            longest = min(384 if shared else FIRST, model.max_positions)
            self._test(Probes(model, longest))
            self._tested_tokens = longest

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        """Return scores in the order of the requests.

        on_progress: called with the number of tokens of each forward pass.
        """
        scores = [PositionScores(*np.zeros((2, 0), np.float32))] * len(requests)
        scored = [i for i, request in enumerate(requests) if len(request.positions_N)]
        lengths = [int(requests[i].positions_N[-1]) for i in scored]
        self.test_up_to(max((len(requests[i].token_ids_T) for i in scored), default=0))

        def launch(members: list[int]) -> LaunchedPass:
            return self._launch([requests[scored[member]] for member in members])

        for members, parts in self.run(lengths, launch, on_progress):
            for member, part in zip(members, parts, strict=True):
                scores[scored[member]] = part
        return scores

    def run(
        self,
        lengths: Sequence[int],
        launch: Callable[[list[int]], LaunchedPass],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[list[int], list[PositionScores]]]:
        """Pack sequences of these lengths, launch each pack, and count the passes in `usage`.

        Yields, per pass, the indices of its sequences and their scores. launch: starts the pass
        over the sequences with these indices; called in several threads if the engine
        `is_concurrent`.
        """
        started = time.perf_counter()
        packs = pack(lengths, self.pack_tokens if self.mode == "packed" else 1)
        for numbers, launched in self._passes(packs, launch):
            scores = launched.scores()
            sizes = [lengths[i] for i in numbers]
            now = time.perf_counter()
            self.usage.add(sizes, sum(len(s.entropy_N) for s in scores), now - started)
            started = now
            on_progress(sum(sizes))
            yield numbers, scores

    def _passes(
        self, packs: Sequence[list[int]], launch: Callable[[list[int]], LaunchedPass]
    ) -> Iterator[tuple[list[int], LaunchedPass]]:
        """Yield each pack with its forward pass, in order."""
        with self.ready():
            if self.is_concurrent and self.mode != "plain":
                yield from zip(packs, self._launch_in_threads(packs, launch), strict=True)
                return
            # The device computes the next pass while the scores of the last one are copied.
            previous: tuple[list[int], LaunchedPass] | None = None
            for numbers in packs:
                launched = launch(numbers)
                if previous:
                    yield previous
                previous = numbers, launched
            if previous:
                yield previous

    def _launch_in_threads(
        self, packs: Sequence[list[int]], launch: Callable[[list[int]], LaunchedPass]
    ) -> Iterator[LaunchedPass]:
        """Compute one pass per core: no barriers between the threads of a matrix product."""
        cores = torch.get_num_threads()
        workers = max(1, min(cores, len(packs)))
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(cores // workers,)
        ) as pool:
            try:
                yield from pool.map(launch, packs)
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(cores)

    def ready(self) -> AbstractContextManager[None]:
        """Let the model run in the present mode; afterwards it is as before."""
        if self.mode == "plain":
            return nullcontext()
        return self.trunk.ready_packed() if self.mode == "packed" else self.trunk.ready_single()

    def figures(self, before: dict[str, float]) -> dict[str, Any]:
        """Return counts, rates and mode of what was scored since `before = usage.snapshot()`."""
        figures = self.usage.since(before) | {"mode": self.mode, "device": str(self.device)}
        if self.device.type == "cuda" and "tflop_per_second" in figures:
            dtype = str(self.hf_model.dtype).removeprefix("torch.")
            peak = matmul_peak(str(self.device), dtype)
            figures["matmul_peak_tflop_per_second"] = round(peak, 1)
            figures["share_of_matmul_peak"] = round(figures["tflop_per_second"] / peak, 3)
        return figures

    def _launch(self, requests: Sequence[ScoringRequest]) -> LaunchedPass:
        """Start one forward pass over these requests, none of which is without positions.

        Call it within `ready` only.
        """
        if self.mode == "plain":
            plain = [score_plainly(self.model, request) for request in requests]
            return LaunchedPass.of_scores(plain)
        sequences = concatenate(requests)
        lengths = PassLengths(
            [int(r.positions_N[-1]) for r in requests], [len(r.token_ids_T) for r in requests]
        )
        with torch.inference_mode():
            ids_1T, rows_R = self.tensor(sequences.tokens_T)[None], self.tensor(sequences.rows_R)
            if self.mode == "single":
                hidden_RD = self.trunk.hidden(ids_1T, lengths)[rows_R]
            else:
                hidden_RD = self.trunk.hidden_packed(
                    ids_1T,
                    self.tensor(sequences.positions_T)[None],
                    self.tensor(sequences.borders_S.astype(np.int32)),
                    lengths,
                    rows_R,
                )
            both_2R = torch.stack(
                entropy_and_surprisal(
                    hidden_RD, self.tensor(sequences.targets_R), head_of(self.hf_model)
                )
            )
        return LaunchedPass(both_2R, [len(r.positions_N) for r in requests])

    def tensor(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device, without waiting for earlier work."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            # A copy from pageable memory would wait for all earlier work.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def test_up_to(self, tokens: int) -> None:
        """Compare with the plain definition for sequences of up to this length.

        `score` does it for the sequences that occur. A test with more tokens than the device has
        memory for is left out, with a line in the log.
        """
        if tokens <= self._tested_tokens:
            return
        # Rounded up, so that longer and longer sequences cause few tests.
        rounded = 1 << (tokens - 1).bit_length()
        longest = max(tokens, min(rounded, self.model.max_positions))
        probes = Probes(self.model, longest)
        try:
            with ExitStack() as stack:
                stack.enter_context(first_layers(self.model.hf_model))
                stack.enter_context(first_layers(self.hf_model))
                if not probes.can_be_scored():
                    stack.close()  # some classes need all of their layers
                self._test(probes)
        except torch.OutOfMemoryError:
            log.warning("no memory to compare with the plain definition at %d tokens", longest)
        self._tested_tokens = longest

    def _test(self, probes: Probes) -> None:
        """Choose the fastest mode, from the present one on, that gives the plain scores."""
        probes.check_model()
        while self.mode != "plain" and (fault := self._fault_of(probes)):
            log.warning("scoring mode '%s' is not used for this model: %s", self.mode, fault)
            self.mode = MODES[MODES.index(self.mode) + 1]

    def _fault_of(self, probes: Probes) -> str | None:
        """Return why the present mode is wrong, or None if it gives the plain scores."""
        try:
            before = state_of(self.hf_model, self.trunk.replaced_modules)
            scores = self._scores_of(probes, probes.requests)
            after = state_of(self.hf_model, self.trunk.replaced_modules)
            if self.is_concurrent and has_changed(before, after):
                self.is_concurrent = False
                scores = self._scores_of(probes, probes.requests)
            if self.mode == "packed" and not probes.shows_neighbours:
                others = [probes.reversed, *probes.requests[1:]]
                moved = largest_difference(scores[1:], self._scores_of(probes, others)[1:])
                if moved > 1e-4:  # products on a GPU are not repeatable to the last bits
                    return f"a sequence changes the scores of its neighbour (by {moved:.2g} nats)"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models may raise any error
            return line_of(error)
        if probes.agree(scores, probes.plain, self.float8):
            return None
        off, mean = (of(scores, probes.plain) for of in (largest_difference, mean_difference))
        return f"its scores differ from the plain definition (by {off:.2g} nats, mean {mean:.2g})"

    def _scores_of(self, probes: Probes, requests: list[ScoringRequest]) -> list[PositionScores]:
        """Return the scores of every pack of the probes."""
        packs = probes.packs(self.mode == "packed")
        passes = self._passes(packs, lambda numbers: self._launch([requests[i] for i in numbers]))
        return [scores for _, launched in passes for scores in launched.scores()]


def computing_copy(hf_model: PreTrainedModel) -> PreTrainedModel:
    """Return the model to compute with: itself, or a float32 copy on a CPU without bfloat16 units.

    Such a CPU emulates bfloat16, several times slower than float32. The copy has the weights of the
    bfloat16 model; only activations are no longer rounded.
    """
    import copy

    if hf_model.device.type != "cpu" or hf_model.dtype != torch.bfloat16 or cpu_has_bfloat16():
        return hf_model
    return copy.deepcopy(hf_model).float()


def compiling_pays(hf_model: PreTrainedModel) -> bool:
    """Return whether compiled layers are faster (benchmarks/RESULTS.md).

    On a CPU they are for bfloat16 only, and only if there is a C++ compiler.
    """
    if hf_model.device.type == "cpu":
        has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        return hf_model.dtype == torch.bfloat16 and has_compiler
    return hf_model.device.type == "cuda"


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16)."""
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


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
    """Make the engine of a loaded model; the same arguments return the same engine."""
    return _scorer(
        model.hf_model, model.tokenizer, model.identity, model.max_forward_tokens, pack_tokens
    )
