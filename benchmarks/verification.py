"""The engine on the CPU compared with the plain definition, on a shard of the demo.

    python -m benchmarks.verification [--data data/quickstart] [--only shard trunk ...]
        [--model pkg://...] [--out results.json]

Needs the data of a finished `make demo`; the sections `trunk` and `memory` need none. The plain
definition is one forward pass with all logits for every (anchor, chunk), in the same dtype.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import demo_pairs
from benchmarks.claims import Claims, median_seconds
from benchmarks.demo_pairs import Passage
from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.stages.entropy.engine import PackedScorer, cpu_has_bfloat16
from entropylong_assets.stages.entropy.kernels import Head, entropy_and_surprisal
from entropylong_assets.stages.entropy.model import ScoringModel, load_scoring_model, score_plainly
from entropylong_assets.stages.entropy.scoring import (
    PositionScores,
    ScoringRequest,
    join_scores,
)
from entropylong_assets.stages.entropy.settings import ScoringModelSettings

EPSILON = 0.4


def _load(model: str, dtype: Any) -> ScoringModel:
    return load_scoring_model(ScoringModelSettings(model=model, dtype=dtype, device="cpu"))


def _verdicts(passages: list[Passage], scores: list[PositionScores]) -> np.ndarray:
    """Return bool [2, pairs]: accepted by the rules plain and calibrated, at nominated anchors."""
    verdicts = []
    for passage, score in zip(passages, scores, strict=True):
        every = np.full((2, len(passage.anchors_N)), np.nan, np.float32)
        every[:, passage.nominated_N] = score.entropy_N, score.surprisal_N
        verdicts.append(passage.verdicts(PositionScores(*every))[:, passage.nominated_N])
    return np.concatenate(verdicts, axis=1)


def shard(claims: Claims, model: str, passages: list[Passage]) -> None:
    """Score one shard's pairs with the engine, and with one full forward pass per pair."""
    loaded = _load(model, "float32")
    scorer = PackedScorer(loaded)
    requests = [passage.request() for passage in passages]
    runs: list[list[PositionScores]] = []
    seconds = median_seconds(lambda: runs.append(scorer.score(requests)), 3, 1)
    start = time.perf_counter()
    plain, tokens = [], 0
    for passage in passages:
        parts = [score_plainly(loaded, request) for request in passage.plain_requests()]
        tokens += sum(len(request.token_ids_T) for request in passage.plain_requests())
        plain.append(join_scores(parts))
    plain_seconds = time.perf_counter() - start
    got, wanted = _verdicts(passages, runs[-1]), _verdicts(passages, plain)
    off = max(
        float(np.abs(a.entropy_N - b.entropy_N).max()) for a, b in zip(runs[-1], plain, strict=True)
    )
    forward = sum(int(request.positions_N[-1]) for request in requests)
    claims.note(
        "shard",
        mode=scorer.mode,
        pairs=got.shape[1],
        contexts=len(requests),
        accepted=wanted.sum(1).tolist(),
        plain_seconds=plain_seconds,
        plain_tokens=tokens,
        plain_tokens_per_second=tokens / plain_seconds,
        engine_seconds=seconds,
        engine_tokens=forward,
        engine_tokens_per_second=forward / seconds,
        fewer_tokens=tokens / forward,
        largest_difference_nats=off,
    )
    claims.claim("cpu_demo_shard", plain_seconds / seconds, 5.0, int((got != wanted).sum()))


def trunk(claims: Claims, model: str) -> None:
    """Compute hidden states of eight sequences of 512 tokens with transformers and the engine."""
    draw = np.random.default_rng(0)
    rates: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        loaded = _load(model, dtype)
        ids = draw.integers(0, loaded.vocab_size, (8, 512))
        requests = [ScoringRequest(np.append(row, 0), np.array([512])) for row in ids]
        decoder = loaded.hf_model.get_decoder()

        rates[f"plain {dtype}"] = ids.size / median_seconds(
            partial(_each_alone, decoder, ids), 3, 1
        )
        for compiled in (False, True):
            scorer = PackedScorer(loaded, compile_layers=compiled)
            start = time.perf_counter()
            scorer.score(requests)
            first = time.perf_counter() - start
            rate = ids.size / median_seconds(lambda s=scorer, r=requests: s.score(r), 3, 0)
            name = f"engine {dtype} {'compiled' if compiled else 'eager'}"
            rates[name] = rate
            computed = str(scorer.hf_model.dtype)
            claims.note("trunk", name=name, mode=scorer.mode, computed_in=computed, first_s=first)
        own = PackedScorer(loaded)
        rates[f"engine {dtype}"] = rates[
            f"engine {dtype} {'compiled' if own.trunk.is_compiled else 'eager'}"
        ]
    claims.note("trunk", bfloat16_units=cpu_has_bfloat16(), **rates)
    ratio = rates["engine bfloat16"] / rates["plain bfloat16"]
    claims.claim("cpu_trunk_bfloat16", ratio, 1.3, 0)


@torch.inference_mode()
def _each_alone(decoder: Any, ids: np.ndarray) -> None:
    for row in torch.from_numpy(ids):
        decoder(input_ids=row[None], use_cache=False)


def memory(claims: Claims) -> None:
    """Measure the head's peak memory: 16,384 positions, a vocabulary of 49,152 tokens."""
    hidden, weight = torch.randn(16_384, 576), torch.randn(49_152, 576)
    entropy_and_surprisal(hidden[:64], torch.zeros(64, dtype=torch.int64), Head(weight))
    before = _peak_mib(reset=True)
    entropy_and_surprisal(hidden, torch.zeros(len(hidden), dtype=torch.int64), Head(weight))
    peak = _peak_mib() - before
    logits = len(hidden) * len(weight) * 4 / 2**20
    claims.note("memory", peak_mib=peak, float32_logits_mib=logits)
    claims.claim("cpu_head_memory_over_logits", peak / logits, 0.1, 0, at_most=True)


def _peak_mib(reset: bool = False) -> float:
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return float(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]) / 1024


def precision(claims: Claims, model: str, passages: list[Passage]) -> None:
    """Compare verdicts of a bfloat16 model with float32, at all anchors of the demo's roots."""
    requests = [passage.request(every_anchor=True) for passage in passages]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        scorer = PackedScorer(_load(model, dtype))
        start = time.perf_counter()
        scores[dtype] = scorer.score(requests)
        claims.note(
            "precision",
            dtype=dtype,
            computed_in=str(scorer.hf_model.dtype),
            seconds=time.perf_counter() - start,
        )
    verdicts, gains = (
        {
            dtype: np.concatenate(
                [getattr(p, what)(s) for p, s in zip(passages, of, strict=True)], axis=1
            )
            for dtype, of in scores.items()
        }
        for what in ("verdicts", "gains")
    )
    for number, rule in enumerate(("plain", "calibrated")):
        exact, half = gains["float32"][number], gains["bfloat16"][number]
        flips = verdicts["float32"][number] != verdicts["bfloat16"][number]
        near = np.abs(exact - EPSILON) < 0.02
        claims.note(
            "precision",
            rule=rule,
            pairs=len(flips),
            accepted=int(verdicts["float32"][number].sum()),
            flips=int(flips.sum()),
            near_epsilon=int(near.sum()),
            flips_near_epsilon=int((flips & near).sum()),
            gain_error_99=float(np.quantile(np.abs(exact - half), 0.99)),
        )


def prefix(claims: Claims, model: str, passages: list[Passage]) -> None:
    """Measure the time saved by computing a chunk's keys and values once for all its roots."""
    tokens = sum(int(passage.request().positions_N[-1]) for passage in passages)
    groups: dict[int, list[Passage]] = {}
    for passage in passages:
        groups.setdefault(passage.chunk, []).append(passage)
    shared = [group for group in groups.values() if len({p.root for p in group}) > 1]
    saved = sum((len(group) - 1) * len(group[0].context_ids) for group in shared)
    claims.note(
        "prefix",
        chunks=len(groups),
        chunks_of_several_roots=len(shared),
        forward_tokens=tokens,
        tokens_saved_at_most=saved,
        share=saved / tokens,
    )
    if not shared:
        return
    import copy

    from transformers import DynamicCache

    loaded = _load(model, "float32")
    decoder = loaded.hf_model.get_decoder()
    scorer = PackedScorer(loaded)
    requests = [passage.request() for group in shared for passage in group]

    @torch.inference_mode()
    def with_cache() -> None:
        for group in shared:
            context = torch.from_numpy(group[0].context_ids)[None]
            cache = DynamicCache()
            decoder(input_ids=context, past_key_values=cache, use_cache=True)
            for passage in group:
                rest = torch.from_numpy(passage.request().token_ids_T)[None, context.shape[1] :]
                states = decoder(
                    input_ids=rest, past_key_values=copy.deepcopy(cache), use_cache=True
                ).last_hidden_state[0]
                rows = torch.from_numpy(passage.anchors_N[passage.nominated_N])
                loaded.hf_model.lm_head(states[(rows - 1).clamp(min=0)])

    cached = median_seconds(with_cache, 3, 1)
    engine = median_seconds(lambda: scorer.score(requests), 3, 1)
    claims.note("prefix", on_shared_only=True, cached_seconds=cached, engine_seconds=engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ["shard", "trunk", "memory", "precision", "prefix"]
    parser.add_argument("--only", nargs="*", choices=sections, default=sections)
    parser.add_argument("--data", default=PROFILES["quickstart"]["data_uri"])
    parser.add_argument("--model", default=PROFILES["quickstart"]["scoring"]["model"])
    parser.add_argument(
        "--pairs", type=int, default=120, help="approximate number of pairs in `shard`"
    )
    parser.add_argument("--out")
    options = parser.parse_args()
    claims = Claims("verification")
    if {"shard", "precision", "prefix"} & set(options.only):
        passages = demo_pairs.load(options.data)
        first: list[Passage] = []
        while (
            len(first) < len(passages) and sum(p.nominated_N.sum() for p in first) < options.pairs
        ):
            first.append(passages[len(first)])
    if "shard" in options.only:
        shard(claims, options.model, first)
    if "trunk" in options.only:
        trunk(claims, options.model)
    if "memory" in options.only:
        memory(claims)
    if "precision" in options.only:
        precision(claims, options.model, passages)
    if "prefix" in options.only:
        prefix(claims, options.model, passages)
    claims.finish(options.out)


if __name__ == "__main__":
    main()
