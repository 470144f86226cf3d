"""Small tables, written by hand, in which every SQL check finds no fault.

One root `A` with two anchors; `E` belongs to another shard, `F` finds no candidates, `C` is too
long for the model. Numbers are chosen so that float32 holds them exactly.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import polars as pl

from entropylong_assets.audits.tables import LONG_RANGE_AUDIT, NULL_CALIBRATION
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL
from entropylong_assets.report.tables import REPORT
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    INDEX_SEGMENTS,
)
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.near_duplicates.tables import DOCUMENT_SIGNATURES, NEAR_DUPLICATES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck
from entropylong_assets.storage.schemas import TableSet

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]

_TEXTS = {
    "A": "Alpha comes first, then beta.",
    "B": "Beta follows alpha.",
    "C": "A long text about gamma.",
    "E": "Known from an earlier shard.",
    "F": "Like nothing else at all.",
}
SEPARATOR = [7]


def _documents() -> Rows:
    return [
        {
            "doc_id": name,
            "text": text,
            "source": "s",
            "file": "f",
            "row": row,
            "license": "mit",
            "n_chars": len(text),
        }
        for row, (name, text) in enumerate(_TEXTS.items())
    ]


def _root(name: str, entropies: list[float | None], anchors: list[int]) -> dict[str, Any]:
    defined = [h for h in entropies if h is not None]
    mean, std = statistics.fmean(defined), statistics.pstdev(defined)
    return {
        "root_id": name,
        "token_ids": [10 + i for i in range(len(entropies))],
        "entropies": entropies,
        "surprisals": [None if h is None else h - 1 for h in entropies],
        "mean": mean,
        "std": std,
        "threshold": mean + std,
        "surprisal_mean": mean - 1,
        "surprisal_std": std,
        "anchors": anchors,
        "by_surprisal": [],
    }


def _roots() -> Rows:
    return [
        _root("A", [None, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 4.0], [3, 7]),
        _root("E", [None, 1.0, 4.0, 1.0], [2]),
        _root("F", [None, 1.0, 1.0, 4.0], [3]),
    ]


def _candidate(anchor: int, rank: int, chunk: str, similarity: float, share: float) -> Any:
    leak_check = "near_duplicate" if share >= 0.25 else "passed"
    key = {"root_id": "A", "anchor": anchor, "rank": rank, "chunk_id": chunk}
    key["found_by"] = "vector"
    return {**key, "similarity": similarity, "containment": share, "leak_check": leak_check}


def _candidates() -> Rows:
    return [
        _candidate(3, 1, "B-00000", 0.75, 0.0),
        _candidate(3, 2, "D-00000", 0.5, 0.5),
        _candidate(7, 1, "B-00000", 0.75, 0.0),
        _candidate(7, 2, "G-00000", 0.75, 0.125),
    ]


def _pairs() -> Rows:
    """Accepted; a near-duplicate; a gain without a drop in surprisal; too small a gain. ε = 0.4."""
    leak_check = ("found_by", "containment", "leak_check")
    shared = [{k: v for k, v in row.items() if k not in leak_check} for row in _candidates()]
    control = {3: (3.75, 2.875), 7: (4.25, 3.125)}
    scores = [(1.0, 1.0), None, (1.5, 3.5), (3.5, 2.0)]
    verdicts = ["accepted", "near_duplicate", "surprisal_rose", "gain_too_small"]
    accepted_by = [["plain", "calibrated"], [], ["plain"], []]
    rows = []
    for row, score, verdict, rules in zip(shared, scores, verdicts, accepted_by, strict=True):
        h_control, i_control = control[row["anchor"]]
        given, surprisal = score or (None, None)
        rows.append(
            row
            | {
                "entropy": 4.0,
                "entropy_context": given,
                "entropy_control": h_control,
                "surprisal": 3.0,
                "surprisal_context": surprisal,
                "surprisal_control": i_control,
                "gain": None if given is None else (4.0 - given) / 4.0,
                "calibrated_gain": None if given is None else (min(4.0, h_control) - given) / 4.0,
                "accepted_by": rules,
                "accepted": verdict == "accepted",
                "verdict": verdict,
            }
        )
    return rows


def _controls() -> Rows:
    keys = ("root_id", "control", "anchor", "entropy", "surprisal")
    return [
        dict(zip(keys, ("A", control, anchor, h, i), strict=True))
        for control, anchor, h, i in [
            (0, 3, 3.5, 2.75),
            (1, 3, 4.0, 3.0),
            (0, 7, 4.0, 3.0),
            (1, 7, 4.5, 3.25),
        ]
    ]


def _segment(number: int, role: str, start: int, end: int, **more: Any) -> dict[str, Any]:
    base = {"sample_id": "s-0", "segment": number, "role": role, "start": start, "end": end}
    return base | more


def _sample_tables() -> Tables:
    root = _roots()[0]["token_ids"]
    contexts = [
        {"chunk_id": "B-00000", "doc_id": "B", "token_ids": [20, 21, *SEPARATOR]},
        {"chunk_id": "D-00000", "doc_id": "D", "token_ids": [30, *SEPARATOR]},
        {"chunk_id": "G-00000", "doc_id": "G", "token_ids": [40, *SEPARATOR]},
    ]
    pairs = _pairs()
    for name in ("H", "I"):  # accepted and dropped: a context, and a whole root
        pairs.append({**pairs[0], "root_id": name})
    segments = [
        _segment(0, "bos", 0, 1),
        _segment(1, "verified", 1, 4, root_id="A", doc_id="B", chunk_id="B-00000", source="s"),
        _segment(2, "hard_negative", 4, 6, root_id="A", doc_id="G", chunk_id="G-00000", source="s"),
        _segment(3, "root", 6, 15, root_id="A", doc_id="A", source="s"),
        _segment(4, "padding", 15, 18),
    ]
    return {
        "roots": _roots(),
        "pairs": pairs,
        "contexts": contexts,
        "passages": [],
        "samples": [
            {
                "sample_id": "s-0",
                "input_ids": [1, 20, 21, 7, 40, 7, *root, 7, 0, 0, 0],
                "n_root": 9,
                "n_verified": 3,
                "n_negative": 2,
                "n_padding": 3,
            }
        ],
        "segments": segments,
        "dependencies": [
            {
                "sample_id": "s-0",
                "root_id": "A",
                "anchor": 3,
                "chunk_id": "B-00000",
                "rank": 1,
                "anchor_position": 9,
                "context_start": 1,
                "context_end": 4,
                "distance": 5,
                "gain": 0.75,
                "calibrated_gain": 0.6875,
                "entropy": 4.0,
                "entropy_context": 1.0,
            }
        ],
        "dropped": [
            {"root_id": "H", "chunk_id": "B-00000", "reason": "group_too_large",
             "n_dependencies": 1},
            {"root_id": "I", "chunk_id": None, "reason": "does_not_fit", "n_dependencies": 1},
        ],
        "used_elsewhere": [{"root_id": "Z", "sample_id": "t-0"}],
    }  # fmt: skip


_TABLES: dict[str, Tables] = {
    "corpus": {
        "documents": _documents(),
        "dropped": [{"file": "f", "row": 9, "reason": "too_short", "detail": "3 characters"}],
        "summary": [{"rows_read": len(_TEXTS) + 1}],
    },
    "embeddings": {
        "documents": _documents()[:2],
        "chunks": [
            {"chunk_id": "A-00000", "doc_id": "A", "chunk_number": 0, "start": 0, "end": 18,
             "n_embedder_tokens": 6},
            {"chunk_id": "A-00001", "doc_id": "A", "chunk_number": 1, "start": 19, "end": 29,
             "n_embedder_tokens": 5},
            {"chunk_id": "B-00000", "doc_id": "B", "chunk_number": 0, "start": 0, "end": 19,
             "n_embedder_tokens": 16},
        ],
        "duplicates": [],
        "vectors": [
            {"chunk_id": "A-00000", "doc_id": "A", "vector": [1.0, 0.0]},
            {"chunk_id": "A-00001", "doc_id": "A", "vector": [0.6, 0.8]},
            {"chunk_id": "B-00000", "doc_id": "B", "vector": [0.0, -1.0]},
        ],
        "summary": [{"window_tokens": 16}],
    },
    "signatures": {
        "documents": _documents()[:2],
        "signatures": [
            {"doc_id": "A", "source": "s", "n_shingles": 4, "signature": [7, 1, 5, 3]},
        ],
        "summary": [{"not_compared": 1}],
    },
    "near": {
        "members": [
            {"doc_id": doc_id, "source": "s", "representative": "A", "similarity": 0.75,
             "cluster_size": 3}
            for doc_id in "BC"
        ] + [
            {"doc_id": "E", "source": "t", "representative": "D", "similarity": 0.9,
             "cluster_size": 2}
        ],
        "sources": [
            {"source": "s", "threshold": 0.7, "documents": 4, "members": 2},
            {"source": "t", "threshold": 0.7, "documents": 1, "members": 1},
        ],
    },
    "index": {
        "shards": [{"shard": "s-0", "n_chunks": 2}, {"shard": "s-1", "n_chunks": 1}],
        "indexed": [
            {"chunk_id": "A-00000", "doc_id": "A", "shard": "s-0"},
            {"chunk_id": "A-00001", "doc_id": "A", "shard": "s-0"},
            {"chunk_id": "B-00000", "doc_id": "B", "shard": "s-1"},
        ],
        "summary": [
            {"recall": 0.96, "recall_queries": 100, "recall_when_new": 0.97,
             "recall_unsteered": 0.96, "centroid_rows": 2, "n_rows": 3}
        ],
    },
    "segments": {
        "summary": [{"rows_left": 0, "partitions": 5}],
        "without_segment": [{"n_rows": 0}],
    },
    "entropy": {
        "documents": _documents(),
        "roots": _roots(),
        "drawn": [{"doc_id": doc_id, "source": "s"} for doc_id in "ACEF"],
        "dropped": [{"root_id": "C", "reason": "too_long_for_model", "n_tokens": 99}],
        "summary": [
            {"documents": 5, "not_drawn": 1, "drawn": 4, "roots": 3, "dropped": 1,
             "vocab_size": 100}
        ],
    },
    "retrieval": {
        "roots": _roots(),
        "queries": [
            {"root_id": "A", "anchor": 3, "query": "first"},
            {"root_id": "A", "anchor": 7, "query": "beta"},
            {"root_id": "F", "anchor": 3, "query": "nothing"},
        ],
        "candidates": _candidates(),
        "chunks": [
            {"chunk_id": f"{doc}-00000", "doc_id": doc, "shard": "s", "source": "s", "start": 0,
             "end": 9, "text": "some text"}
            for doc in "BDG"
        ],
        "dropped": [
            {"root_id": "E", "anchor": None, "reason": "owned_by_another_shard", "n_anchors": 1},
            {"root_id": "F", "anchor": 3, "reason": "no_candidates", "n_anchors": 1},
        ],
    },
    "verification": {
        "roots": _roots(),
        "candidates": _candidates(),
        "pairs": _pairs(),
        "controls": _controls(),
        "evidence": [
            {"root_id": "A", "anchor": 3, "chunk_id": "B-00000", "kind": "other", "start": 2,
             "end": 9, "token_start": 1, "token_end": 3, "measure": "surprisal", "kept": 0.75,
             "removed": 0.5},
        ],
        "contexts": [
            {"chunk_id": "B-00000", "doc_id": "B", "shard": "s", "source": "s", "start": 10,
             "end": 22, "token_ids": [5, 6, 7, 8]},
        ],
        "summary": [{"vocab_size": 100, "false_acceptance": 0.01, "false_acceptance_low": 0.0,
                     "false_acceptance_high": 0.05, "interval_note": None}],
    },
    "samples": _sample_tables(),
    "natural": {
        "windows": [
            {"window_id": f"{doc}-{number}", "doc_id": doc, "source": "s", "start": start,
             "end": start + 5, "gain": gain, "surprisal_long": 1.0, "surprisal_short": 1.5,
             "gzip_ratio": ratio, "key_tokens": key_tokens, "reason": reason}
            for doc, number, start, gain, ratio, key_tokens, reason in [
                ("B", 0, 0, 0.5, 0.25, 2, None),
                ("B", 1, 6, 0.25, 0.25, 0, "low_gain"),
                ("C", 0, 0, 0.75, 0.75, 1, "too_dense"),
            ]
        ],
        "samples": [
            {"window_id": "B-0", "doc_id": "B", "source": "s", "start": 0,
             "input_ids": [1, 5, 6, 7, 5, 9]},
        ],
        "evidence": [
            {"window_id": "B-0", "position": 4, "surprisal_long": 1.0, "surprisal_short": 4.0,
             "short_start": 3, "found_at": 1, "ngram_tokens": 1},
            {"window_id": "B-0", "position": 5, "surprisal_long": 0.5, "surprisal_short": 4.0,
             "short_start": 3, "found_at": None, "ngram_tokens": None},
        ],
        "dropped": [{"doc_id": "A", "reason": "is_root", "n_tokens": 8}],
        "roots": _roots(),
        "summary": [{"documents": 5, "short": 2, "dropped": 1, "cut": 2, "tokens": 18,
                     "tokens_dropped": 3, "windows": 3, "not_kept": 2, "kept": 1}],
    },
    "training_data": {
        "formats": [{"format": "mds"}, {"format": "parquet"}],
        "splits": [{"split": "train", "samples": 1}, {"split": "validation", "samples": 1}],
        "counted": [
            {"format": form, "split": split, "samples": 1}
            for form in ("mds", "parquet") for split in ("train", "validation")
        ],
        "samples": [{"sample_id": "s-0"}, {"sample_id": "s-1"}, {"sample_id": "s-2"}],
        "unsplit": [{"n_unsplit": 1}],
        "exported_ids": [
            {"doc_id": "A", "split": "train"},
            {"doc_id": "A", "split": "train"},
            {"doc_id": "B", "split": "validation"},
        ],
        "file_faults": [],
        "left_out": [],
    },
    "report": {
        "pages": [{"path": "reports/a.html", "bytes": 7, "sha256": "aa"}],
        "stored": [{"path": "reports/a.html", "bytes": 7, "sha256": "aa"}],
    },
    "null": {
        "trials": [
            {"root_id": "A", "anchor": 3, "kind": "random", "number": 0, "chunk_ids": ["B-00000"],
             "n_tokens": 3, "entropy": 4.0, "entropy_context": 1.0, "entropy_control": 3.75,
             "surprisal": 3.0, "surprisal_context": 1.0, "surprisal_control": 2.75, "gain": 0.75,
             "calibrated_gain": 0.6875, "accepted_by": ["plain", "calibrated"]},
            {"root_id": "A", "anchor": 7, "kind": "random", "number": 0, "chunk_ids": ["B-00000"],
             "n_tokens": 3, "entropy": 4.0, "entropy_context": 4.0, "entropy_control": 3.75,
             "surprisal": 3.0, "surprisal_context": 3.0, "surprisal_control": 2.75, "gain": 0.0,
             "calibrated_gain": -0.0625, "accepted_by": []},
        ],
        "rates": [
            {"kind": "random", "rule": "calibrated", "passed": 1, "total": 2, "rate": 0.5,
             "low": 0.0, "high": 1.0, "is_rough": True},
            {"kind": "random", "rule": "plain", "passed": 1, "total": 2, "rate": 0.5,
             "low": 0.0, "high": 1.0, "is_rough": True},
            {"kind": "retrieved", "rule": "calibrated", "passed": 3, "total": 4, "rate": 0.75,
             "low": 0.5, "high": 1.0, "is_rough": True},
        ],
    },
    "second": {
        "audited": [
            {"root_id": "A", "anchor": 3, "chunk_id": "B-00000", "gain": 0.75,
             "accepted_by": ["plain", "calibrated"], "surprisal_drop": 1.0,
             "second_entropy": 4.0, "second_entropy_context": 2.0,
             "second_surprisal": 3.0, "second_surprisal_context": 1.0, "second_gain": 0.5,
             "holds": True},
        ],
        "pairs": _pairs(),
    },
    "long": {
        "anchors": [
            {"recipe": "random", "root_id": "A", "anchor": 3}
            | {f"{a}{b}": 1.0 for a in ("entropy", "surprisal")
               for b in ("", "_in_place", "_random")}
        ],
        "windows": [
            {"recipe": "random", "root_id": "A", "window_tokens": 13, "context_tokens": 3,
             "root_tokens": 8, "short_tokens": 13, "key_tokens": 1, "segment_pairs": 1,
             "dependency_score": 0.1},
        ],
        "dependencies": [
            {"recipe": "calibrated", "root_id": "A", "anchor": 3, "chunk_id": "B-00000",
             "distance": 2}
            | {f"{a}{b}": 1.0 for a in ("entropy", "surprisal")
               for b in ("", "_near", "_in_place", "_replaced")}
        ],
    },
    "trial": {
        "planned": [
            {"arm": arm, "seed": seed} for arm in ("random", "plain") for seed in (0, 1)
        ],
        "runs": [
            {"setup": 0, "arm": "random", "seed": 0, "tokens": 0, "sample_tokens": 64, "steps": 0,
             "learnt_tokens": 0, "repeats": 0.0, "last_loss": None, "seconds": 0.0,
             "device": "CPU", "result": "{}"},
            *({"setup": 0, "arm": arm, "seed": seed, "tokens": 2000, "sample_tokens": 64,
               "steps": 2, "learnt_tokens": 1920, "repeats": 1.0, "last_loss": 2.5,
               "seconds": 3.0, "device": "CPU", "result": "{}"}
              for arm in ("random", "plain") for seed in (0, 1)),
        ],
        "differences": [
            {"setup": 0, "tokens": 2000, "sample_tokens": 64, "arm": "plain", "rival": rival,
             "measure": "short/all", "name": "loss on short documents", "higher_is_better": False,
             "value": value, "low": low, "high": high, "seeds": 2, "items": items}
            for rival, value, low, high, items in (
                ("random", 0.01, -0.01, 0.03, 9), ("start", 0.019, 0.01, 0.028, 9),
                ("no_verify", 0.01, None, None, 1),
            )
        ],
    },
}  # fmt: skip

PARAMETERS: dict[str, dict[str, Any]] = {
    "trial": {"max_short_loss": 0.02},
    "corpus": {
        "min_chars": 5,
        "max_chars": 50,
        "max_bad_share": 0.05,
    },
    "embeddings": {},
    "signatures": {"permutations": 4},
    "near": {},
    "index": {"target_recall": 0.95},
    "segments": {},
    "entropy": {
        "alpha": 1.0,
        "anchors": "entropy",
        "min_entropy": 0.5,
        "min_anchor_position": 1,
        "min_tokens": 4,
        "max_tokens": 99,
    },
    "retrieval": {"top_k": 2, "text_candidates": 0, "max_containment": 0.25},
    "verification": {
        "rule": "calibrated",
        "evaluated_rules": ["plain", "calibrated"],
        "epsilon": 0.4,
        "controls": 2,
        "evidence": True,
        "min_kept": 0.6,
        "limits_hold_up_to": 8000,
        "kinds": ["definition", "other"],
        "min_calibrated_gain": 0.0,
        "min_surprisal_gain": 0.2,
        "max_phrase_documents": 8,
        "max_pair_documents": 60,
        "excluded_anchors": ["import", "url"],
        "require_surprisal_drop": True,
        "max_false_acceptance": 0.02,
    },
    "samples": {
        "sample_tokens": 18,
        "separator_ids": SEPARATOR,
        "rule": "in force",
        "in_force": "in force",
    },
    "natural": {
        "sample_tokens": 6,
        "keep": 0.5,
        "min_gzip_ratio": 0.125,
        "max_gzip_ratio": 0.5,
        "key_gain": 2.0,
        "key_loss": 2.0,
        "low_gain": "low_gain",
    },
    "training_data": {},
    "report": {},
    "null": {"rule": "calibrated", "evaluated_rules": ["plain", "calibrated"], "epsilon": 0.4},
    "second": {"epsilon": 0.4},
    "long": {},
}

TABLES: dict[str, tuple[TableSet, ...]] = {
    "corpus": (CORPUS_DOCUMENTS,),
    "embeddings": (CHUNK_EMBEDDINGS, CORPUS_DOCUMENTS),
    "signatures": (DOCUMENT_SIGNATURES, CORPUS_DOCUMENTS),
    "near": (NEAR_DUPLICATES,),
    "index": (EMBEDDING_INDEX,),
    "segments": (INDEX_SEGMENTS,),
    "entropy": (ENTROPY_SCORES, CORPUS_DOCUMENTS),
    "retrieval": (CANDIDATE_CONTEXTS, ENTROPY_SCORES),
    "verification": (VERIFIED_DEPENDENCIES, CANDIDATE_CONTEXTS, ENTROPY_SCORES),
    "samples": (LONG_CONTEXT_SAMPLES, VERIFIED_DEPENDENCIES, ENTROPY_SCORES),
    "natural": (NATURAL_DOCUMENTS, ENTROPY_SCORES),
    "training_data": (TRAINING_DATASET,),
    "report": (REPORT,),
    "null": (NULL_CALIBRATION,),
    "second": (VERIFIED_DEPENDENCIES,),
    "long": (LONG_RANGE_AUDIT,),
    "trial": (TRAINING_TRIAL,),
}
"""The tables that the views of a stage's checks are read from."""

_SCHEMAS = {
    "planned": pl.Schema({"arm": pl.String, "seed": pl.Int64}),
    "vectors": pl.Schema(
        {"chunk_id": pl.String, "doc_id": pl.String, "vector": pl.Array(pl.Float32, 2)}
    ),
    "duplicates": pl.Schema({"doc_id": pl.String}),
    "indexed": pl.Schema({"chunk_id": pl.String, "doc_id": pl.String, "shard": pl.String}),
    "drawn": pl.Schema({"doc_id": pl.String, "source": pl.String}),
    "used_elsewhere": pl.Schema({"root_id": pl.String, "sample_id": pl.String}),
    "file_faults": pl.Schema({"fault": pl.String}),
    "stored": pl.Schema({"path": pl.String, "bytes": pl.Int64, "sha256": pl.String}),
}
"""Schemas of views that are no stored tables."""


def valid(stage: str) -> Tables:
    """A fresh copy of a stage's tables."""
    return copy.deepcopy(_TABLES[stage])


def views(stage: str, tables: Tables) -> dict[str, duck.View]:
    """As frames with the columns and types that the stage's tables have on disk."""
    frames: dict[str, duck.View] = {}
    for name, rows in tables.items():
        stored = next((t.schemas[name] for t in TABLES[stage] if name in t.schemas), None)
        schema = _SCHEMAS.get(name) if stored is None else pl.Schema(stored)
        frames[name] = pl.DataFrame(rows, schema=schema)
    return frames
