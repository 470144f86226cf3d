"""The engine on one CUDA device compared with plain transformers, on the same inputs.

    python -m benchmarks.verification_gpu [--only head shape ...] [--model <model>]
        [--pairs data/quickstart] [--out results.json]

Speed is measured on the shape of Llama-3-8B with random weights. What depends on a real model, the
verdicts in bfloat16 and with the 8-bit screen, is measured on `--model` over the pairs of a
finished demo (`--pairs`: its data folder, or a file of benchmarks.demo_pairs).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks import demo_pairs
from benchmarks.claims import Claims, median_seconds
from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kernels import (
    Head,
    _logits,
    entropy_and_surprisal,
    reduce_logits_,
)
from entropylong_assets.stages.entropy.model import ScoringModel, score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets.stages.entropy.usage import matmul_peak

HIDDEN, VOCABULARY = 4096, 128_256
CONTEXT, ROOT, ANCHORS = 512, 2048, 100
EPSILON = 0.4

Shared = SimpleNamespace


def llama_3_8b(longest: int = 8192) -> ScoringModel:
    """Return a model of this shape with random weights."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=longest,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
    )
    return random_llama(config, "cuda", torch.bfloat16)


def random_llama(config: Any, device: str, dtype: torch.dtype) -> ScoringModel:
    from transformers import LlamaForCausalLM

    torch.set_default_dtype(dtype)
    with torch.device(device):
        hf_model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.02)
    tokenizer: Any = SimpleNamespace(bos_ids=(), separator_ids=())
    return ScoringModel(hf_model, tokenizer, "random", config.max_position_embeddings)


def equal_requests(count: int) -> list[ScoringRequest]:
    """Return requests [C; D] of 512 + 2,048 tokens with 100 anchors, the last token included."""
    draw = np.random.default_rng(0)
    requests = []
    for _ in range(count):
        anchors = draw.choice(np.arange(CONTEXT, CONTEXT + ROOT - 1), ANCHORS - 1, replace=False)
        positions = np.append(np.sort(anchors), CONTEXT + ROOT - 1)
        requests.append(ScoringRequest(draw.integers(0, VOCABULARY, CONTEXT + ROOT), positions))
    return requests


def mixed_requests(count: int) -> list[ScoringRequest]:
    """Return requests with chunks of 64 to 512 tokens and roots of 256 to 4,096, of whose tokens
    one in 20 is an anchor."""
    draw = np.random.default_rng(1)
    requests = []
    for _ in range(count):
        context, root = int(draw.integers(64, 513)), int(draw.integers(256, 4097))
        anchors = draw.choice(np.arange(context + 1, context + root), root // 20, replace=False)
        requests.append(
            ScoringRequest(draw.integers(0, VOCABULARY, context + root), np.sort(anchors))
        )
    return requests


def head(claims: Claims, _: Shared) -> None:
    """Time the entropy of 16,384 positions: fused kernel, plain chunks, and the matmul alone."""
    torch.manual_seed(0)
    hidden = torch.randn(16_384, HIDDEN, device="cuda").bfloat16()
    hidden *= torch.linspace(0.3, 1.5, len(hidden), device="cuda")[:, None].bfloat16()
    weight = torch.randn(VOCABULARY, HIDDEN, device="cuda").mul_(2 * HIDDEN**-0.5).bfloat16()
    targets = torch.randint(0, VOCABULARY, (len(hidden),), device="cuda")
    model_head = Head(weight)

    def in_chunks(reduce: Any, step: int = 1024) -> None:
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            reduce(_logits(hidden[part], model_head), targets[part])

    compiled = torch.compile(reduce_logits_)
    times = {
        "matmul": median_seconds(lambda: hidden @ weight.T, 11, 3),
        "eager chunks": median_seconds(lambda: in_chunks(reduce_logits_), 5, 2),
        "compiled chunks": median_seconds(lambda: in_chunks(compiled), 5, 2),
        "fused": median_seconds(lambda: entropy_and_surprisal(hidden, targets, model_head), 11, 3),
        "matmul again": median_seconds(lambda: hidden @ weight.T, 11, 3),
    }
    entropy, surprisal = entropy_and_surprisal(hidden, targets, model_head)
    rows = torch.randperm(len(hidden), device="cuda")[:512]
    log_p = torch.log_softmax(hidden[rows].double() @ weight.double().T, -1)
    off_h = (entropy[rows] + (log_p.exp() * log_p).sum(-1)).abs().max().item()
    off_i = (surprisal[rows] + log_p.gather(1, targets[rows, None])[:, 0]).abs().max().item()
    claims.note(
        "head",
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
        entropy_error=off_h,
        surprisal_error=off_i,
        entropies=[entropy.min().item(), entropy.max().item()],
    )
    slower = max(times["matmul"], times["matmul again"])
    quicker = min(times["matmul"], times["matmul again"])
    claims.note("head", spread_of_matmul=slower / quicker)
    off = int(off_h > 1e-3) + int(off_i > 1e-3)
    claims.claim("head_over_matmul", times["fused"] / times["matmul"], 1.15, off, at_most=True)


def memory(claims: Claims, _: Shared) -> None:
    """Measure peak memory at 131,072 positions, above the head's weights and the hidden states."""
    hidden = torch.randn(131_072, HIDDEN, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(VOCABULARY, HIDDEN, device="cuda", dtype=torch.bfloat16).mul_(0.02)
    targets = torch.zeros(len(hidden), dtype=torch.int64, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    entropy = entropy_and_surprisal(hidden, targets, Head(weight))[0]
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    logits = len(hidden) * VOCABULARY * 4 / 2**30
    claims.note(
        "memory", peak_gib=gib, float32_logits_gib=logits, finite=bool(entropy.isfinite().all())
    )
    claims.claim("memory_gib_131072_positions", gib, 2.0, 0, at_most=True)


def _throughput(
    scorer: PackedScorer, requests: list[ScoringRequest], repeats: int = 3
) -> dict[str, float]:
    """Return the figures of the median repeat; a first pass compiles."""
    scorer.score(requests[:12])
    runs = []
    for _ in range(repeats):
        before = scorer.usage.snapshot()
        torch.cuda.synchronize()
        start = time.perf_counter()
        scorer.score(requests)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        used = {key: value - before[key] for key, value in scorer.usage.snapshot().items()}
        runs.append((seconds, used))
    seconds, used = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    return {
        "tokens_per_second": used["tokens"] / seconds,
        "tflop_per_second": used["flop"] / seconds / 1e12,
        "seconds": seconds,
        "passes": used["passes"],
        "tokens": used["tokens"],
    }


def _model(claims: Claims, shared: Shared) -> None:
    """Load the 8B model, time plain transformers on it, and make the engine; once per run."""
    if hasattr(shared, "engine"):
        return
    shared.model = llama_3_8b()
    hf_model = shared.model.hf_model
    length = CONTEXT + ROOT
    shared.peak = matmul_peak("cuda", "bfloat16")
    ids = torch.randint(0, VOCABULARY, (1, length), device="cuda")
    with torch.inference_mode():
        seconds = median_seconds(lambda: hf_model(input_ids=ids, use_cache=False).logits, 7, 2)
    shared.plain = length / seconds
    shared.probe = equal_requests(1)
    shared.plain_scores = score_plainly(shared.model, shared.probe[0])
    mixed = mixed_requests(24)
    padded = [mixed[i : i + 8] for i in range(0, 24, 8)]

    def padded_batches() -> None:
        for batch in padded:
            longest = max(len(r.token_ids_T) for r in batch)
            rows = np.stack(
                [np.pad(r.token_ids_T, (0, longest - len(r.token_ids_T))) for r in batch]
            )
            mask = np.stack([np.arange(longest) < len(r.token_ids_T) for r in batch])
            states = hf_model.get_decoder()(
                input_ids=torch.from_numpy(rows).cuda(),
                attention_mask=torch.from_numpy(mask.astype(np.int64)).cuda(),
                use_cache=False,
            ).last_hidden_state
            for row, request in zip(states, batch, strict=True):
                hf_model.lm_head(row[torch.from_numpy(request.positions_N - 1).cuda()]).float()

    with torch.inference_mode():
        seconds = median_seconds(padded_batches, 3, 1)
    shared.padded = sum(len(r.token_ids_T) for r in mixed) / seconds
    start = time.perf_counter()
    shared.engine = PackedScorer(shared.model)
    claims.note(
        "engine",
        mode=shared.engine.mode,
        seconds_to_make=time.perf_counter() - start,
        attention="FlashAttention-3" if attention.flash_3() else "FlashAttention-2 of torch",
        matmul_peak_tflop=shared.peak,
    )
    shared.equal = _throughput(shared.engine, equal_requests(36))


def shape(claims: Claims, shared: Shared) -> None:
    _model(claims, shared)
    engine = shared.engine.score(shared.probe)[0]
    off = np.abs(engine.entropy_N - shared.plain_scores.entropy_N)
    share = shared.equal["tflop_per_second"] / shared.peak
    claims.note(
        "shape", plain_tokens_per_second=shared.plain, largest_difference_nats=float(off.max())
    )
    claims.note("shape", share_of_peak=share, **shared.equal)
    again = matmul_peak.__wrapped__("cuda", "bfloat16")
    claims.note(
        "shape", matmul_peak_after=again, share_of_that=shared.equal["tflop_per_second"] / again
    )
    differences = int((off > 0.05).sum())
    speed = shared.equal["tokens_per_second"]
    claims.claim("shape_over_plain", speed / shared.plain, 43_000 / 29_900, differences)
    claims.claim("shape_tokens_per_second_over_43000", speed / 43_000, 1.0, differences)
    claims.claim("shape_share_of_matmul_peak", share, 0.78, differences)


def mixed(claims: Claims, shared: Shared) -> None:
    _model(claims, shared)
    used = _throughput(shared.engine, mixed_requests(120))
    claims.note("mixed", padded_tokens_per_second=shared.padded, **used)
    ratio = used["tokens_per_second"] / shared.equal["tokens_per_second"]
    claims.note("mixed", over_padded_batches=used["tokens_per_second"] / shared.padded)
    claims.claim("mixed_over_equal_lengths", ratio, 0.95, 0)


def profile(claims: Claims, shared: Shared) -> None:
    """Report the kernels that take the most time on the device, exact and 8-bit."""
    from torch.profiler import ProfilerActivity, profile

    _model(claims, shared)
    for name in ("engine", "float8"):
        scorer = getattr(shared, name, None)
        if scorer is None:
            continue
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            scorer.score(equal_requests(12))
            torch.cuda.synchronize()
        events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)
        for event in events[:12]:
            ms = event.self_device_time_total / 1e3
            claims.note(f"profile {name}", ms=ms, calls=event.count, kernel=event.key[:80])


def screen(claims: Claims, shared: Shared) -> None:
    """Time the 8-bit screen, with the share of rechecked tokens measured on the real model."""
    _model(claims, shared)
    shared.float8 = PackedScorer(shared.model, float8=True)
    equal = _throughput(shared.float8, equal_requests(36))
    claims.note("screen", mode=shared.float8.mode, **equal)
    ratio = equal["tokens_per_second"] / shared.equal["tokens_per_second"]
    claims.note("screen", pass_alone_over_exact=ratio)
    rechecked = getattr(shared, "rechecked", None)
    if rechecked is None:
        claims.note("screen", note="no recheck: pass --model and --pairs, or --recheck")
        return
    requests = equal_requests(72)
    again = requests[: math.ceil(rechecked * len(requests))]

    def screened() -> None:
        shared.float8.score(requests)
        shared.engine.score(again)

    whole = median_seconds(lambda: shared.engine.score(requests), 3, 1)
    seconds = median_seconds(screened, 3, 1)
    claims.note("screen", exact_seconds=whole, screened_seconds=seconds, rechecked=len(again))
    claims.claim("screen_over_exact", whole / seconds, 1.3, shared.lost)


def real(claims: Claims, shared: Shared, model: str, pairs: str, dump: str | None) -> None:
    """Compare verdicts of a real model: bfloat16 with float32, and screened with exact."""
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.entropy.settings import ScoringModelSettings
    from entropylong_assets.stages.verification.screen import doubtful, fit_margin
    from entropylong_assets.stages.verification.settings import VerificationSettings

    torch.backends.cuda.matmul.allow_tf32 = False
    passages = demo_pairs.load(pairs)
    requests = [passage.request(every_anchor=True) for passage in passages]
    nominated = np.concatenate([passage.nominated_N for passage in passages])
    figures: dict[str, Any] = {}
    for dtype, float8 in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        settings = ScoringModelSettings(model=model, dtype=dtype, device="cuda")
        scorer = PackedScorer(load_scoring_model(settings), float8=float8)
        name = "float8" if float8 else dtype
        scores = scorer.score(requests)
        start = time.perf_counter()
        scorer.score(requests)
        claims.note("real", scorer=name, mode=scorer.mode, seconds=time.perf_counter() - start)
        verdicts = [p.verdicts(s) for p, s in zip(passages, scores, strict=True)]
        gains = [p.gains(s) for p, s in zip(passages, scores, strict=True)]
        figures[name] = np.concatenate(verdicts, 1), np.concatenate(gains, 1)
        if dump:
            np.savez(
                f"{dump}-{name}.npz",
                *itertools.chain(*((s.entropy_N, s.surprisal_N) for s in scores)),
            )
        del scorer
    for pair, which in itertools.product(
        (("bfloat16", "float32"), ("float8", "bfloat16")), ("nominated", "every")
    ):
        rows = nominated if which == "nominated" else np.ones_like(nominated)
        (a, gains_a), (b, gains_b) = (figures[name] for name in pair)
        for rule, (got, wanted, gain, exact) in enumerate(
            zip(a, b, gains_a, gains_b, strict=False)
        ):
            got, wanted, gain, exact = got[rows], wanted[rows], gain[rows], exact[rows]
            off, near = np.abs(gain - exact), np.abs(exact - EPSILON) < 0.02
            claims.note(
                f"verdicts {pair[0]} against {pair[1]}",
                rule=("plain", "calibrated")[rule],
                pairs=which,
                count=len(got),
                accepted=int(wanted.sum()),
                flips=int((got != wanted).sum()),
                near_epsilon=int(near.sum()),
                flips_near_epsilon=int(((got != wanted) & near).sum()),
                gain_error_median=float(np.median(off)),
                gain_error_99=float(np.quantile(off, 0.99)),
                gain_error_max=float(off.max()),
            )
    # The screen with the rule calibrated, at all anchors; half of the contexts give the margins.
    verification = VerificationSettings(rule="calibrated")
    of = np.repeat(np.arange(len(passages)), [len(p.anchors_N) for p in passages])
    cheap, exact = (_as_pairs(*figures[name][1]) for name in ("float8", "bfloat16"))
    fitted = of % 2 == 0
    margin = fit_margin(cheap.filter(fitted), exact.filter(fitted), verification)
    again = doubtful(cheap, margin, verification)
    accepted, by_cheap = figures["bfloat16"][0][1], figures["float8"][0][1]
    kept = np.where(again, accepted, by_cheap)
    lengths = np.array([len(r.token_ids_T) for r in requests])
    for which, rows in (("nominated", nominated), ("every", np.ones_like(nominated))):
        doubted = np.isin(np.arange(len(passages)), of[again & rows])
        share = float(lengths[doubted].sum() / lengths.sum())
        held = rows & ~fitted
        claims.note(
            "screen verdicts",
            pairs=which,
            margin_gain=margin.gain,
            margin_surprisal=margin.surprisal,
            doubtful_pairs=float(again[rows].mean()),
            rechecked_tokens=share,
            accepted=int(accepted[rows].sum()),
            kept=int((kept & accepted)[rows].sum()),
            wrongly_kept=int((kept & ~accepted)[rows].sum()),
            accepted_held_out=int(accepted[held].sum()),
            kept_held_out=int((kept & accepted)[held].sum()),
        )
        if which == "nominated":
            shared.rechecked = share
    every = int(accepted.sum())
    shared.lost = every - int((kept & accepted).sum())
    claims.claim("screen_accepted_pairs_kept", 1 - shared.lost / max(every, 1), 0.995, shared.lost)


def _as_pairs(gain_N: np.ndarray, calibrated_N: np.ndarray, over_N: np.ndarray) -> pl.DataFrame:
    """Return judged pairs with these gains. over_N: surprisal minus the lower of its references."""
    zero, one = (np.full(len(gain_N), value, np.float32) for value in (0, 1))
    return pl.DataFrame(
        {
            "gain": gain_N.astype(np.float64),
            "calibrated_gain": calibrated_N.astype(np.float64),
            "entropy": one,
            "entropy_context": (1 - gain_N).astype(np.float32),
            "entropy_control": one,
            "surprisal": zero,
            "surprisal_context": over_N.astype(np.float32),
            "surprisal_control": zero,
        }
    )


SECTIONS = {
    "head": head,
    "memory": memory,
    "shape": shape,
    "mixed": mixed,
    "screen": screen,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--model")
    parser.add_argument("--pairs")
    parser.add_argument("--dump", help="prefix of files to write the real model's scores to")
    parser.add_argument("--recheck", type=float, help="share rechecked, without --model")
    parser.add_argument("--out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device; this benchmark needs one")
    claims, shared = Claims("verification_gpu"), Shared()
    if options.recheck is not None:
        shared.rechecked, shared.lost = options.recheck, 0
    if options.model and options.pairs:
        real(claims, shared, options.model, options.pairs, options.dump)
    for name in SECTIONS:
        if name in options.only:
            SECTIONS[name](claims, shared)
            torch.cuda.empty_cache()
    claims.finish(options.out)


if __name__ == "__main__":
    main()
