"""How often contexts that should not help pass the rule: three kinds of held-out controls.

`random`: chunks of the corpus, drawn anew, so that none is a stored control. `topical`: chunks of
documents on the root's topic that no anchor retrieved. `shuffled`: accepted chunks with their
sentences in another order. All are as long as what they stand for, and are judged against the
root's stored controls as a candidate would be.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.audits.root_sample import ScoredRoot
from entropylong_assets.settings.model import Settings, VerificationSettings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.retrieval.leak_check import RootGuard
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.verification.controls import ChunkUniverse, draw_controls
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.requests import context_request, fits

KINDS = ("random", "topical", "shuffled")
_BORDER = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class NullContext:
    """A context that should not help, and the anchors that it is tried on, ascending."""

    kind: str
    number: int
    chunk_ids: tuple[str, ...]
    token_ids: tuple[int, ...]
    anchors: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """What controls are taken from. nearest: (queries, root_id, how many) to chunk ids, the most
    similar first; fetch: chunk ids to chunk_id, doc_id and text."""

    universe: ChunkUniverse
    fetch: Callable[[Sequence[str]], pl.DataFrame]
    nearest: Callable[[Sequence[str], str, int], list[list[str]]]


def shuffle_sentences(text: str, seed: int, name: str) -> str | None:
    """The sentences (and lines) of a text in another order; None where there is no other."""
    sentences = [part for part in _BORDER.split(text) if part.strip()]
    if len(set(sentences)) < 2:
        return None
    rng = random.Random(hash_key(seed, "shuffle", name))  # noqa: S311
    while True:
        order = rng.sample(sentences, len(sentences))
        if order != sentences:
            return " ".join(order)


def null_contexts(
    root: ScoredRoot,
    queries: Sequence[str],
    stored: Sequence[str],
    contexts: Mapping[str, Sequence[int]],
    corpus: Corpus,
    tokenizer: Tokenizer,
    settings: Settings,
    count: int,
) -> Iterator[NullContext]:
    """The held-out controls of one root.

    queries: texts of its anchors. stored: chunks of its stored controls. contexts: token ids
    of scored chunks, the separator's included.
    """
    nominated = sorted(set(root.pairs["chunk_id"].to_list()))
    lengths = sorted(len(contexts[c]) for c in nominated)
    length, separator = lengths[len(lengths) // 2], tuple(tokenizer.separator_ids)
    anchors = tuple(root.anchors)
    guard = RootGuard(tokenizer.decode(root.token_ids), settings.retrieval.leak_ngram_words)

    def is_copy(text: str) -> bool:
        return guard.containment(text) >= settings.retrieval.max_containment

    for control in draw_controls(
        corpus.universe,
        corpus.fetch,
        tokenizer.encode,
        is_copy,
        root.root_id,
        frozenset([*nominated, *stored]),
        length,
        count,
        settings.seed + 1,  # other draws than the stored controls
        separator,
    ):
        yield NullContext("random", control.number, control.chunk_ids, control.token_ids, anchors)

    # As many anchors ask as there are controls wanted, spread over the root.
    step = max(1, len(queries) // max(1, count))
    asking = list(queries)[::step][:count]
    deep = settings.retrieval.top_k + len(nominated) + 32
    used = {chunk_id.rpartition("-")[0] for chunk_id in nominated}
    for number, found in enumerate(corpus.nearest(asking, root.root_id, deep) if asking else []):
        fresh = [c for c in found if c.rpartition("-")[0] not in used]
        rows = {row[0]: row for row in corpus.fetch(fresh).iter_rows()}
        taken: list[str] = []
        token_ids: list[int] = []
        for chunk_id in fresh:
            row = rows.get(chunk_id)
            if row is None or row[1] == root.root_id or row[1] in used or is_copy(row[2]):
                continue
            taken.append(chunk_id)
            token_ids += [*tokenizer.encode([row[2]])[0], *separator]
            if len(token_ids) >= length:
                break
        if taken:
            used.update(chunk_id.rpartition("-")[0] for chunk_id in taken[:1])
            kept = tuple(token_ids[: length - len(separator)])
            yield NullContext("topical", number, tuple(taken), (*kept, *separator), anchors)

    accepted = root.pairs.filter("accepted").sort("gain", descending=True)
    by_chunk = accepted.group_by("chunk_id", maintain_order=True).agg("anchor").head(count)
    for number, (chunk_id, at) in enumerate(by_chunk.iter_rows()):
        before = contexts[chunk_id]
        text = tokenizer.decode(before[: len(before) - len(separator)])
        shuffled = shuffle_sentences(text, settings.seed, chunk_id)
        if shuffled is None:
            continue
        ids = tokenizer.encode([shuffled])[0][: len(before) - len(separator)]
        yield NullContext(
            "shuffled", number, (chunk_id,), (*ids, *separator), tuple(sorted(set(at)))
        )


def score_null(
    roots: Sequence[tuple[ScoredRoot, Sequence[NullContext]]],
    tokenizer: Tokenizer,
    scorer: Scorer,
    max_positions: int,
    settings: VerificationSettings,
    on_progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """Rows of `trials`: every (anchor, held-out control), scored and judged like a pair."""
    planned = [
        (root, null)
        for root, contexts in roots
        for null in contexts
        if fits(tokenizer.bos_ids, null.token_ids, null.anchors[-1], max_positions)
    ]
    requests = [
        context_request(tokenizer.bos_ids, null.token_ids, root.token_ids, null.anchors)
        for root, null in planned
    ]
    rows: list[dict[str, Any]] = []
    for (root, null), scores in zip(planned, scorer.score(requests, on_progress), strict=True):
        stored = {
            anchor: (entropy, surprisal)
            for anchor, entropy, surprisal in root.pairs.select(
                "anchor", "entropy_control", "surprisal_control"
            ).iter_rows()
        }
        for i, anchor in enumerate(null.anchors):
            rows.append(
                {
                    "root_id": root.root_id,
                    "anchor": anchor,
                    "kind": null.kind,
                    "number": null.number,
                    "chunk_ids": list(null.chunk_ids),
                    "n_tokens": len(null.token_ids),
                    "entropy": float(root.entropies[anchor]),
                    "entropy_context": float(scores.entropy_N[i]),
                    "entropy_control": stored[anchor][0],
                    "surprisal": float(root.surprisals[anchor]),
                    "surprisal_context": float(scores.surprisal_N[i]),
                    "surprisal_control": stored[anchor][1],
                    "refusal": None,
                }
            )
    floats = ("entropy", "surprisal")
    schema: dict[str, Any] = {
        "root_id": pl.String,
        "anchor": pl.Int32,
        "kind": pl.String,
        "number": pl.Int32,
        "chunk_ids": pl.List(pl.String),
        "n_tokens": pl.Int32,
        **{f"{a}{b}": pl.Float32 for a in floats for b in ("", "_context", "_control")},
        "refusal": pl.String,
    }
    return judge(pl.DataFrame(rows, schema=schema), settings)


def rates(trials: pl.DataFrame, pairs: pl.DataFrame) -> list[dict[str, Any]]:
    """Share that passes, by kind and rule; `retrieved` are the roots' own pairs."""
    rows = []
    for kind in ("retrieved", *KINDS):
        frame = pairs if kind == "retrieved" else trials.filter(kind=kind)
        for rule in ("plain", "calibrated"):
            rate = acceptance_rate(frame, f"accepted_{rule}")
            rows.append(
                {
                    "kind": kind,
                    "rule": rule,
                    "passed": rate.passed,
                    "total": rate.total,
                    "rate": rate.value if rate.total else None,
                    "low": rate.low,
                    "high": rate.high,
                }
            )
    return rows


def holding_epsilon(gains: np.ndarray, total: int, wished: float) -> float | None:
    """Least ε at which at most `wished` of `total` trials pass (gain > ε).

    gains: of those trials that nothing but ε could refuse. None: any ε holds.
    """
    allowed = int(np.floor(wished * total + 1e-9))
    if len(gains) <= allowed:
        return None
    return float(np.sort(gains)[::-1][allowed])


def epsilon_for(
    trials: pl.DataFrame, settings: VerificationSettings, wished: float, seed: int, draws: int = 400
) -> dict[str, Any]:
    """The ε that holds a wished rate of random contexts under the rule in force, with the 95%
    interval of a bootstrap over roots; bounds are None where any ε holds."""
    column = "gain" if settings.rule == "plain" else "calibrated_gain"
    free = settings.model_copy(update={"epsilon": -1e9})
    random_trials = judge(
        trials.filter(kind="random").with_columns(pl.lit(None, pl.String).alias("refusal")), free
    )
    by_root = [
        (part.filter("accepted")[column].drop_nulls().to_numpy(), len(part))
        for _, part in random_trials.sort("root_id").group_by("root_id", maintain_order=True)
    ]
    if not by_root:
        return {"epsilon_for_rate": None, "epsilon_low": None, "epsilon_high": None}

    def held(chosen: Sequence[int]) -> float | None:
        gains = np.concatenate([by_root[i][0] for i in chosen])
        return holding_epsilon(gains, sum(by_root[i][1] for i in chosen), wished)

    rng = np.random.default_rng(seed)
    found = [held(rng.integers(0, len(by_root), len(by_root)).tolist()) for _ in range(draws)]
    values = np.array([-np.inf if e is None else e for e in found])
    # No interpolation: some values are "any".
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return {
        "epsilon_for_rate": held(range(len(by_root))),
        "epsilon_low": float(low) if np.isfinite(low) else None,
        "epsilon_high": float(high) if np.isfinite(high) else None,
    }


def lift(trials: pl.DataFrame, pairs: pl.DataFrame, rule: str) -> dict[str, float | None]:
    """Acceptance of retrieved over that of random contexts.

    The interval is conservative: the ends of two 97.5% intervals against each other. The upper
    end is None where no random context passed.
    """
    ours = acceptance_rate(pairs, f"accepted_{rule}", 0.975)
    chance = acceptance_rate(trials.filter(kind="random"), f"accepted_{rule}", 0.975)
    if not ours.total or not chance.total:
        return {"lift": None, "lift_low": None, "lift_high": None}
    return {
        "lift": ours.value / chance.value if chance.passed else None,
        "lift_low": ours.low / chance.high,
        "lift_high": ours.high / chance.low if chance.low > 0 else None,
    }
