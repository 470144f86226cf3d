"""How much of the gain evidence spans keep, and how much is removed with them.

Of a finished data folder, from the stored table:

    python -m benchmarks.evidence_spans stored data/quickstart

Of the pairs of `benchmarks/genuine` that are labelled genuine, the last ones of each kind of
text, scored again with the demo's model; the root is the stored text before the anchor, and there
are no controls. It also says how often the span has words that the label quotes from the context:

    python -m benchmarks.evidence_spans labelled 40 held-out
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.project import make_project
from entropylong_assets.stages.embeddings.phrases import split_words
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel, load_scoring_model
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.verification.evidence import EvidenceFinder
from entropylong_assets.stages.verification.evidence_kinds import classify
from entropylong_assets.stages.verification.requests import context_request
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

PAIRS = Path(__file__).parent / "genuine" / "pairs.jsonl"


def figures(evidence: pl.DataFrame) -> dict[str, Any]:
    """Return medians over rows with the columns of `evidence`, and `length`: characters of the
    context."""
    defined = evidence.filter(pl.col("kept").is_not_null())
    share = (pl.col("end") - pl.col("start")) / pl.col("length")
    part = defined.filter(share < 1)

    def of(rows: pl.DataFrame) -> dict[str, Any]:
        return {
            "spans": len(rows),
            "kept, median": rows["kept"].median(),
            "removed, median": rows["removed"].median(),
            "kept at least 0.6": (rows["kept"] >= 0.6).mean(),
            "removed at least 0.8": (rows["removed"] >= 0.8).mean(),
            "share of the context, median": rows.select(share.median()).item(),
        }

    return {
        "pairs": len(evidence),
        "without a gain": len(evidence) - len(defined),
        "all": of(defined),
        "spans that are part of their context": of(part),
        "by kind": dict(evidence["kind"].value_counts(sort=True).iter_rows()),
        "by measure": dict(evidence["measure"].value_counts(sort=True).iter_rows()),
    }


def stored(folder: str) -> dict[str, Any]:
    """Figures of all shards of a data folder with one corpus and one dataset."""
    store = TableStore(folder)
    parts, forward, evidence_tokens = [], 0, 0
    for shard in store.shards(VERIFIED_DEPENDENCIES):
        evidence = store.read(VERIFIED_DEPENDENCIES, shard, "evidence")
        contexts = store.read(
            VERIFIED_DEPENDENCIES, shard, "contexts", ["chunk_id", "start", "end"]
        )
        length = (pl.col("end") - pl.col("start")).alias("length")
        parts.append(evidence.join(contexts.select("chunk_id", length), on="chunk_id"))
        summary = store.summary(VERIFIED_DEPENDENCIES, shard)
        forward += summary.forward_tokens
        evidence_tokens += summary.evidence_tokens
    return figures(pl.concat(parts)) | {
        "tokens of candidates and controls": forward,
        "tokens of evidence": evidence_tokens,
    }


def labelled(limit: int, half: str) -> dict[str, Any]:
    """Figures of `limit` labelled pairs of a half, the last ones of each kind of text."""
    settings = make_project(profile="quickstart").dataset
    model = load_scoring_model(settings.scoring)
    scorer = load_scorer(model, settings.scoring.pack_tokens)
    lines = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    lines = [pair for pair in lines if pair["half"] == half.replace("-", " ")]
    genuine = [pair for pair in lines if pair["label"].startswith("genuine")]
    kinds = sorted({pair["text"] for pair in genuine})
    chosen = [
        p for k in kinds for p in [q for q in genuine if q["text"] == k][-(limit // len(kinds)) :]
    ]
    start, tokens = time.monotonic(), 0

    def count(done: int) -> None:
        nonlocal tokens
        tokens += done

    roots = {p["id"]: model.tokenizer.encode([p["before"]])[0] for p in chosen}
    for pair in chosen:
        roots[pair["id"]] += model.tokenizer.encode([pair["token"]])[0][:1]
    rows = [_row(pair, roots[pair["id"]], model, scorer) for pair in chosen]
    accepted = pl.DataFrame([row for row in rows if _gains(row)])
    evidence = EvidenceFinder(model.tokenizer, model.max_positions, scorer).find(
        accepted, roots, {pair["id"]: pair["context"] for pair in chosen}, count
    )
    by_id = {pair["id"]: pair for pair in chosen}
    pairs = [by_id[root_id] for root_id in evidence["root_id"]]
    spans = evidence["text"].to_list()
    kind = [classify(p["word"], text, False) for p, text in zip(pairs, spans, strict=True)]
    evidence = evidence.with_columns(
        pl.Series("kind", kind), pl.Series("length", [len(p["context"]) for p in pairs])
    )
    quoted = [
        _contains(text, p["quote"]) for p, text in zip(pairs, spans, strict=True) if p["quote"]
    ]
    return figures(evidence) | {
        "genuine pairs": len(chosen),
        "of these, surprisal lower by more than a fifth": len(accepted),
        "spans with words that the label quotes": sum(quoted) / len(quoted),
        "tokens of evidence": tokens,
        "seconds": round(time.monotonic() - start, 1),
    }


def _row(
    pair: dict[str, Any], root: list[int], model: ScoringModel, scorer: Scorer
) -> dict[str, Any]:
    """A row of `pairs`, without controls."""
    tokenizer, anchor = model.tokenizer, len(root) - 1
    context = [*tokenizer.encode([pair["context"]])[0], *tokenizer.separator_ids]
    alone, given = scorer.score(
        [
            context_request(tokenizer.bos_ids, ids, root, [anchor], model.max_positions)
            for ids in ([], context)
        ]
    )
    return {
        "root_id": pair["id"],
        "chunk_id": pair["id"],
        "anchor": anchor,
        "word": pair["word"],
        **{name: float(getattr(alone, f"{name}_N")[0]) for name in ("entropy", "surprisal")},
        "entropy_context": float(given.entropy_N[0]),
        "surprisal_context": float(given.surprisal_N[0]),
        "entropy_control": None,
        "surprisal_control": None,
    }


def _gains(row: dict[str, Any]) -> bool:
    return bool(row["surprisal"] - row["surprisal_context"] > 0.2 * row["surprisal"])


def _contains(span: str, quote: str) -> bool:
    """Whether a span and a quote share a run of three words, or the whole of a shorter quote."""
    words, wanted = split_words(span), split_words(quote)
    n = min(3, len(wanted), len(words))
    runs = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    return any(tuple(wanted[i : i + n]) in runs for i in range(len(wanted) - n + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stored").add_argument("folder")
    of_labels = commands.add_parser("labelled")
    of_labels.add_argument("limit", type=int)
    of_labels.add_argument("half", choices=["tuning", "held-out"])
    chosen = parser.parse_args()
    result = (
        stored(chosen.folder) if chosen.command == "stored" else labelled(chosen.limit, chosen.half)
    )
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
