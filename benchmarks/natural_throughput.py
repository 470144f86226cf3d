"""Throughput of scoring a natural window of 65,536 tokens in chunks, on one CUDA device.

    python -m benchmarks.natural_throughput [--out results.json] [--seconds 120]
    python -m benchmarks.natural_throughput --device cpu     # a tiny shape, to try the script

The model has the shape of Llama-3-8B and random weights. All positions of one window are scored, by
every way of `ChunkedScorer`: `cudnn` and `packed` are the engine with the attention of chunks,
`cache` is transformers' own pass, attention and cache, the baseline. TFLOP/s count causal attention
once per pair of tokens. Measurements run in the order of their weight; those that would begin after
`--seconds` are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.claims import Claims
from benchmarks.verification_gpu import llama_3_8b, random_llama
from entropylong_assets.stages.entropy.chunked import ChunkedScorer, Way, possible_ways
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.usage import ModelCost, matmul_peak
from entropylong_assets.stages.natural_documents.windows import Window, score_windows, slides

STARTED = time.perf_counter()


@dataclass(frozen=True)
class Sizes:
    """In tokens."""

    window: int
    short: int
    chunks: tuple[int, ...]
    """The first one is measured first."""
    plain: int
    """Of the sequence that is compared with one plain pass."""
    plain_chunk: int


ON_CUDA = Sizes(65_536, 4096, (16_384, 32_768, 8192), 8192, 2048)
ON_CPU = Sizes(512, 64, (128, 256, 64), 256, 64)


def tiny_llama() -> ScoringModel:
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    config = LlamaConfig(vocab_size=300, tie_word_embeddings=False, **shape, **heads)
    return random_llama(config, "cpu", torch.float32)


@dataclass
class Bench:
    claims: Claims
    sizes: Sizes
    seconds: float
    model: ScoringModel
    scorer: PackedScorer
    peak: float | None
    """TFLOP/s of a large matrix product, if on CUDA."""
    scores: dict[tuple[Way, int], PositionScores] = field(default_factory=dict)
    shares: dict[tuple[Way, int], float] = field(default_factory=dict)

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Run one measurement; report its error, and go on."""
        at = time.perf_counter() - STARTED
        if at > self.seconds:
            self.claims.note("left out", name=name, at=at)
            return
        try:
            work()
        except Exception as error:  # the other measurements are still of use
            message = " ".join(str(error).split())[:300]
            self.claims.note("failed", name=name, error=f"{type(error).__name__}: {message}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def timed(self, work: Callable[[], Any], flop: float, tokens: int) -> dict[str, Any]:
        if self.peak:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if self.peak:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        figures = {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "tflop_per_second": flop / seconds / 1e12,
        }
        if self.peak:
            figures["share_of_peak"] = figures["tflop_per_second"] / self.peak
            figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            figures["of_which_weights_gib"] = (
                sum(p.nbytes for p in self.model.hf_model.parameters()) / 2**30
            )
        return figures

    def request(self, tokens: int) -> ScoringRequest:
        """The first tokens of always the same random sequence, all scored."""
        draw = np.random.default_rng(0)
        ids = draw.integers(3, self.model.vocab_size, self.sizes.window)
        return ScoringRequest(ids[:tokens], np.arange(1, tokens))

    def compare_with_plain(self, ways: list[Way]) -> None:
        """Compare each way with one plain pass over a shorter sequence, of several chunks."""
        request = self.request(self.sizes.plain)
        second_half = request.positions_N[len(request.positions_N) // 2 :]
        request = ScoringRequest(request.token_ids_T, second_half)
        plain = score_plainly(self.model, request)
        start = int(second_half[0]) - 1
        cut = ScoringRequest(request.token_ids_T[start:], second_half - start)
        self.claims.note(
            "without the keys before the second half",
            **differences(score_plainly(self.model, cut), plain),
        )
        for way in ways:

            def compare(way: Way = way) -> None:
                chunked = ChunkedScorer(self.scorer, self.sizes.plain_chunk)
                scores = chunked.score_in_chunks(request, way)
                self.claims.note(
                    "against one plain pass",
                    way=way,
                    tokens=self.sizes.plain,
                    chunk=self.sizes.plain_chunk,
                    spread_of_surprisals=float(plain.surprisal_N.std()),
                    **differences(scores, plain),
                )

            self.attempt(f"{way} against one plain pass", compare)

    def measure(self, way: Way, chunk: int) -> None:
        """Time one window; a shorter sequence first, for what is made at the first use."""
        request = self.request(self.sizes.window)
        chunked = ChunkedScorer(self.scorer, chunk)
        if way != "cache":
            chunked.score_in_chunks(self.request(min(2 * chunk, self.sizes.window)), way)
        length, positions = self.sizes.window - 1, len(request.positions_N)
        flop = ModelCost.of(self.model.hf_model).flop([length], positions)

        def work() -> None:
            self.scores[way, chunk] = chunked.score_in_chunks(request, way)

        figures = self.timed(work, flop, length)
        self.shares[way, chunk] = figures.get("share_of_peak", 0.0)
        first = next(iter(self.scores))
        self.claims.note(
            "window",
            way=way,
            chunk=chunk,
            tokens=self.sizes.window,
            **figures,
            compared_with=list(first),
            **differences(self.scores[way, chunk], self.scores[first]),
        )

    def measure_stage(self) -> None:
        """Time the long and the short window as the stage `natural_documents` scores them."""
        sizes = self.sizes
        ids = self.request(sizes.window).token_ids_T
        window, lengths = Window("d", "random", 0, 0, ids, ""), (sizes.window, sizes.short)
        chunked = ChunkedScorer(self.scorer, sizes.chunks[0])
        start = time.perf_counter()
        way = chunked.way_for(self.request(sizes.window))
        self.scorer.test_up_to(sizes.short)
        tested = time.perf_counter() - start
        cost = ModelCost.of(self.model.hf_model)
        requests = [s.request for n in lengths for s in slides(ids, (), n)]
        flop = sum(cost.flop([int(r.positions_N[-1])], len(r.positions_N)) for r in requests)
        figures = self.timed(
            lambda: score_windows([window], chunked, (), lengths), flop, sizes.window
        )
        self.claims.note(
            "stage",
            way=way,
            mode=self.scorer.mode,
            long_and_short=lengths,
            sequences=len(requests),
            seconds_of_self_test=tested,
            **figures,
        )


def differences(a: PositionScores, b: PositionScores) -> dict[str, float]:
    """Return differences of two scorings of the same positions (nats)."""
    off = a.surprisal_N - b.surprisal_N
    return {
        "mean_absolute_difference": float(np.abs(off).mean()),
        "largest_difference": float(np.abs(off).max()),
        "difference_of_means": float(abs(off.mean(dtype=np.float64))),
        "mean_absolute_difference_of_entropy": float(np.abs(a.entropy_N - b.entropy_N).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    on_cuda = options.device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device; pass --device cpu for a tiny shape")
    sizes = ON_CUDA if on_cuda else ON_CPU
    claims = Claims("natural_throughput", options.out)
    model = llama_3_8b(2 * sizes.window) if on_cuda else tiny_llama()
    start = time.perf_counter()
    scorer = PackedScorer(model)
    claims.note("engine", mode=scorer.mode, seconds_to_make=time.perf_counter() - start)
    peak = matmul_peak("cuda", "bfloat16") if on_cuda else None
    claims.note("peak", matmul_tflop_per_second=peak)
    bench = Bench(claims, sizes, options.seconds, model, scorer, peak)
    ways = possible_ways(scorer)
    claims.note("ways", fastest_expected_first=ways)
    best, *others = ways
    first, *sizes_after = sizes.chunks
    for way in [best, *(w for w in others if w != "cache")]:
        bench.attempt(f"{way} {first}", lambda way=way: bench.measure(way, first))
    bench.attempt("plain pass", lambda: bench.compare_with_plain(ways))
    bench.attempt(f"cache {first}", lambda: bench.measure("cache", first))
    bench.attempt("stage", bench.measure_stage)
    for way in (w for w in ways if w != "cache"):
        for chunk in sizes_after:
            bench.attempt(f"{way} {chunk}", lambda way=way, chunk=chunk: bench.measure(way, chunk))
    if on_cuda:
        again = matmul_peak.__wrapped__("cuda", "bfloat16")
        claims.note("peak", matmul_tflop_per_second_after=again)
        if shares := [share for (way, chunk), share in bench.shares.items() if chunk == first]:
            claims.claim("share_of_peak_at_65536_tokens", max(shares), 0.6, 0)
    claims.note("end", seconds=time.perf_counter() - STARTED)
    claims.finish(options.out)


if __name__ == "__main__":
    main()
