"""Every SQL check passes valid tables and fails on tables with one fault.

The failure: a check that always passes. Each case changes one row of the tables in `valid_tables`,
which the same check passes just before.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import entropylong_assets
from entropylong_assets.audits.tables import CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT, NULL_CALIBRATION
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import make_project, open_store
from entropylong_assets.report.tables import REPORT
from entropylong_assets.stages.checks import run_checks
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
from entropylong_assets.stages.stage import Check, Partition, Stage
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets_tests.orchestration.valid_tables import PARAMETERS, Tables, valid, views

PACKAGE = Path(entropylong_assets.__file__).parent
NAN, INF = float("nan"), float("inf")
Break = Callable[[Tables], Any]


def sets(table: str, row: int, **values: Any) -> Break:
    return lambda tables: tables[table][row].update(values)


def loses(table: str, row: int) -> Break:
    return lambda tables: tables[table].pop(row)


def doubles(table: str, row: int, **values: Any) -> Break:
    return lambda tables: tables[table].append({**tables[table][row], **values})


def adds(table: str, **values: Any) -> Break:
    return lambda tables: tables[table].append(values)


def sets_item(table: str, row: int, column: str, position: int, value: Any) -> Break:
    return lambda tables: tables[table][row][column].__setitem__(position, value)


def shortens(table: str, row: int, column: str) -> Break:
    return lambda tables: tables[table][row][column].pop()


CASES: dict[str, dict[str, dict[str, Break]]] = {
    "corpus": {
        "unique_documents": {"id twice": doubles("documents", 0)},
        "no_empty_text": {
            "only spaces": sets("documents", 0, text="      ", n_chars=6),
            "length of another text": sets("documents", 0, n_chars=11),
            "below the limit": sets("documents", 0, text="abc", n_chars=3),
            "above the limit": sets("documents", 0, text="x" * 51, n_chars=51),
        },
        "rows_reconcile": {
            "a document vanished": loses("documents", 1),
            "a drop was not recorded": loses("dropped", 0),
            "a row counted twice": doubles("dropped", 0),
        },
        "bad_rows": {"a broken line": sets("dropped", 0, reason="not_json")},
        "few_bad_rows": {"a broken line in few": sets("dropped", 0, reason="not_json")},
    },
    "embeddings": {
        "one_vector_per_chunk": {
            "vector lost": loses("vectors", 0),
            "vector twice": doubles("vectors", 0),
            "vector of no chunk": doubles("vectors", 0, chunk_id="A-00009"),
        },
        "vectors_unit_length": {
            "too long": sets("vectors", 0, vector=[1.0, 0.5]),
            "zero": sets("vectors", 0, vector=[0.0, 0.0]),
            "not a number": sets("vectors", 0, vector=[NAN, 0.0]),
            "infinite": sets("vectors", 0, vector=[INF, 0.0]),
            "missing": sets("vectors", 0, vector=None),
        },
        "chunks_within_documents": {
            "document without chunks": loses("chunks", 2),
            "overlap": sets("chunks", 1, start=17),
            "empty": sets("chunks", 1, end=19),
            "beyond the text": sets("chunks", 1, end=30),
            "before the text": sets("chunks", 0, start=-1),
            "beyond the window": sets("chunks", 0, n_embedder_tokens=17),
            "of no document": doubles("chunks", 0, doc_id="Q", chunk_id="Q-00000"),
            "number left out": sets("chunks", 1, chunk_number=2, chunk_id="A-00002"),
            "chunk twice": doubles("chunks", 2),
        },
    },
    "signatures": {
        "one_signature_per_document": {
            "signature lost": loses("signatures", 0),
            "signature twice": doubles("signatures", 0),
            "signature of no document": doubles("signatures", 0, doc_id="Q"),
            "too short": sets("signatures", 0, signature=[7, 1, 5]),
            "of no shingle": sets("signatures", 0, n_shingles=0),
        },
    },
    "near": {
        "representatives_are_kept": {
            "a member": sets("members", 1, representative="B"),
            "itself": sets("members", 0, representative="B"),
            "not the smallest": sets("members", 2, representative="F"),
        },
        "members_reconcile": {
            "member lost": loses("members", 0),
            "member twice": doubles("members", 0),
            "another size": sets("members", 1, cluster_size=2),
            "another source": sets("members", 0, source="t"),
            "source lost": loses("sources", 1),
            "more members than documents": sets("sources", 0, documents=1),
        },
    },
    "index": {
        "no_document_indexed_twice": {
            "copy in another shard": doubles("indexed", 0, shard="s-1"),
        },
        "index_rows_reconcile": {
            "row lost": loses("indexed", 0),
            "row twice": doubles("indexed", 0),
            "shard lost": loses("indexed", 2),
        },
        "recall_reached": {"too low": sets("summary", 0, recall=0.94)},
        "centroids_fit": {
            "recall fell": sets("summary", 0, recall_unsteered=0.94),
            "more than four times the rows": sets("summary", 0, n_rows=9),
        },
    },
    "segments": {
        "shard_has_segment": {
            "segment lost": sets("without_segment", 0, n_rows=7),
            "more rows than were left": sets("summary", 0, rows_left=-1),
        },
    },
    "entropy": {
        "roots_reconcile": {
            "root lost": loses("roots", 0),
            "drop not recorded": loses("dropped", 0),
            "root twice": doubles("roots", 0),
            "scored and dropped": doubles("dropped", 0, root_id="A"),
            "scored but not drawn": loses("drawn", 0),
            "no such document": doubles("roots", 0, root_id="Q"),
            "another document's root": sets("roots", 0, root_id="B"),
            "dropped for a root": sets("dropped", 0, root_id="A"),
            "count of documents": sets("summary", 0, documents=6, not_drawn=2),
            "count of documents not drawn": sets("summary", 0, not_drawn=0),
            "count of roots": sets("summary", 0, roots=4, drawn=5, not_drawn=0),
            "count of dropped documents": sets("summary", 0, dropped=0, roots=4),
        },
        "has_roots": {"none": sets("summary", 0, roots=0)},
        "roots_eligible": {
            "root too short": sets("roots", 0, token_ids=[10, 11, 12]),
            "root too long": sets("roots", 0, token_ids=[10] * 100),
            "dropped as too short": sets("dropped", 0, reason="too_short_for_root"),
            "dropped as too long": sets("dropped", 0, reason="too_long_for_root"),
            "too short, dropped as another": sets("dropped", 0, n_tokens=3),
            "too long, dropped as another": sets("dropped", 0, n_tokens=100),
        },
        "one_entropy_per_token": {
            "entropy missing": shortens("roots", 0, "entropies"),
            "surprisal missing": shortens("roots", 0, "surprisals"),
            "token missing": shortens("roots", 0, "token_ids"),
        },
        "entropies_in_range": {
            "negative": sets_item("roots", 0, "entropies", 2, -0.01),
            "above ln V": sets_item("roots", 0, "entropies", 2, 4.61),
            "not a number": sets_item("roots", 0, "entropies", 2, NAN),
            "infinite": sets_item("roots", 0, "entropies", 2, INF),
            "missing after a prefix": sets_item("roots", 0, "entropies", 2, None),
            "surprisal negative": sets_item("roots", 0, "surprisals", 2, -0.01),
            "surprisal not a number": sets_item("roots", 0, "surprisals", 2, NAN),
            "surprisal infinite": sets_item("roots", 0, "surprisals", 2, INF),
            "surprisal missing": sets_item("roots", 0, "surprisals", 2, None),
        },
        "anchors_recomputed": {
            "another mean": lambda t: t["roots"][0].update(mean=t["roots"][0]["mean"] + 1e-5),
            "another deviation": lambda t: t["roots"][0].update(std=t["roots"][0]["std"] - 1e-5),
            "another threshold": sets("roots", 0, threshold=3.0),
            "another mean of surprisals": sets("roots", 0, surprisal_mean=0.0),
            "another deviation of surprisals": sets("roots", 0, surprisal_std=0.0),
            "by surprisal too": sets("roots", 0, by_surprisal=[3]),
            "threshold not a number": sets("roots", 0, threshold=NAN),
            "anchor lost": shortens("roots", 0, "anchors"),
            "all anchors lost": sets("roots", 0, anchors=[]),
            "anchor too many": sets("roots", 0, anchors=[3, 5, 7]),
            "anchors out of order": sets("roots", 0, anchors=[7, 3]),
            "entropy changed": sets_item("roots", 0, "entropies", 4, 3.9),
        },
    },
    "retrieval": {
        "anchors_reconcile": {
            "query lost": loses("queries", 0),
            "query twice": doubles("queries", 0),
            "query of no anchor": doubles("queries", 2, anchor=2),
            "drop not recorded": loses("dropped", 1),
            "dropped root not recorded": loses("dropped", 0),
            "candidates and dropped": doubles("dropped", 1, root_id="A"),
            "candidate of no query": doubles("candidates", 0, anchor=5),
            "dropped whole and answered": doubles("dropped", 0, root_id="A", n_anchors=2),
        },
        "ranks_without_gap": {
            "first rank missing": loses("candidates", 0),
            "gap": sets("candidates", 1, rank=3),
            "rank twice": sets("candidates", 1, rank=1),
            "chunk twice": sets("candidates", 1, chunk_id="B-00000"),
            "more than K": doubles("candidates", 1, rank=3, chunk_id="G-00000"),
            "found by words without a text search": sets("candidates", 1, found_by="text"),
            "found by both": sets("candidates", 1, found_by="both"),
            "unknown search": sets("candidates", 1, found_by="maybe"),
        },
        "no_own_chunk": {
            "own chunk": sets("chunks", 0, doc_id="A"),
            "chunk not stored": loses("chunks", 1),
        },
        "leak_check_consistent": {
            "near-duplicate passed": sets("candidates", 1, leak_check="passed"),
            "rejected without cause": sets("candidates", 0, leak_check="near_duplicate"),
            "at the border": sets("candidates", 0, containment=0.25),
            "unknown word": sets("candidates", 0, leak_check="maybe"),
            "share above one": sets("candidates", 1, containment=1.5),
            "share not a number": sets("candidates", 1, containment=NAN),
        },
        "similarities_ordered": {
            "rises with the rank": sets("candidates", 1, similarity=0.875),
            "above one": sets("candidates", 0, similarity=1.01),
            "below minus one": sets("candidates", 1, similarity=-1.01),
            "not a number": sets("candidates", 1, similarity=NAN),
        },
    },
    "verification": {
        "pairs_reconcile": {
            "pair lost": loses("pairs", 3),
            "pair twice": doubles("pairs", 0),
            "pair of no candidate": doubles("pairs", 0, rank=3),
            "another chunk": sets("pairs", 0, chunk_id="G-00000"),
            "near-duplicate, but scored": sets("candidates", 0, leak_check="near_duplicate"),
            "near-duplicate in the pairs alone": sets("candidates", 1, leak_check="passed"),
        },
        "scores_match_roots": {
            "another entropy": sets("pairs", 0, entropy=4.000001),
            "another surprisal": sets("pairs", 0, surprisal=3.000001),
            "position beyond the root": sets("pairs", 0, anchor=8),
            "no such root": sets("pairs", 0, root_id="Q"),
        },
        "conditional_entropies_in_range": {
            "not a number": sets("pairs", 0, entropy_context=NAN),
            "negative": sets("pairs", 0, entropy_context=-0.01),
            "above ln V": sets("pairs", 0, entropy_context=4.61),
            "surprisal negative": sets("pairs", 0, surprisal_context=-0.01),
            "surprisal infinite": sets("pairs", 0, surprisal_context=INF),
            "surprisal missing": sets("pairs", 0, surprisal_context=None),
            "control not a number": sets("controls", 0, entropy=NAN),
            "control's surprisal infinite": sets("controls", 0, surprisal=INF),
        },
        "verdicts_recomputed": {
            "another gain": sets("pairs", 0, gain=0.7500001),
            "gain missing": sets("pairs", 0, gain=None),
            "gain not a number": sets("pairs", 0, gain=NAN),
            "gain without a score": sets("pairs", 1, gain=0.5),
            "another calibrated gain": sets("pairs", 0, calibrated_gain=0.75),
            "plain verdict turned": sets("pairs", 3, accepted_by=["plain"]),
            "plain verdict missing": sets("pairs", 2, accepted_by=[]),
            "calibrated verdict turned": sets("pairs", 2, accepted_by=["plain", "calibrated"]),
            "calibrated verdict missing": sets("pairs", 0, accepted_by=["plain"]),
            "accepted by a rule that was not evaluated": sets(
                "pairs", 0, accepted_by=["plain", "calibrated", "third"]
            ),
            "a rule twice": sets("pairs", 0, accepted_by=["plain", "calibrated", "plain"]),
            "accepted without a score": sets("pairs", 1, accepted_by=["plain"]),
            "verdict of the other rule": sets("pairs", 2, accepted=True),
            "accepted, but not in words": sets("pairs", 0, verdict="gain_too_small"),
            "in words alone": sets("pairs", 3, verdict="accepted"),
            "the wrong reason": sets("pairs", 2, verdict="gain_too_small"),
            "another wrong reason": sets("pairs", 3, verdict="surprisal_rose"),
            "scored, but said not to be": sets("pairs", 3, verdict="not_tried"),
            "scored, but said to be screened out": sets("pairs", 3, verdict="screened_out"),
            "unknown word": sets("pairs", 3, verdict="perhaps"),
        },
        "controls_averaged": {
            "another mean": sets("pairs", 0, entropy_control=3.8),
            "another surprisal": sets("pairs", 0, surprisal_control=2.5),
            "mean missing": sets("pairs", 0, entropy_control=None),
            "a control lost": loses("controls", 0),
        },
        "evidence_in_contexts": {
            "span lost": loses("evidence", 0),
            "span twice": doubles("evidence", 0),
            "of a rejected pair": doubles("evidence", 0, anchor=7),
            "beyond the chunk": sets("evidence", 0, end=13),
            "empty": sets("evidence", 0, start=9),
            "beyond the tokens": sets("evidence", 0, token_end=5),
            "unknown kind": sets("evidence", 0, kind="perhaps"),
            "unknown measure": sets("evidence", 0, measure="perplexity"),
            "keeps too little": sets("evidence", 0, kept=0.59),
            "one share missing": sets("evidence", 0, removed=None),
            "not a number": sets("evidence", 0, removed=float("nan")),
            "a part without shares": sets("evidence", 0, kept=None, removed=None),
            "unknown chunk": sets("contexts", 0, chunk_id="G-00000"),
        },
        "false_acceptance_low": {"too high": sets("summary", 0, false_acceptance=0.021)},
    },
    "samples": {
        "exact_length": {
            "one short": shortens("samples", 0, "input_ids"),
            "one long": lambda t: t["samples"][0]["input_ids"].append(0),
        },
        "segments_tile": {
            "gap": sets("segments", 1, end=3),
            "overlap": sets("segments", 2, start=3),
            "empty": sets("segments", 4, start=18),
            "ends early": loses("segments", 4),
            "begins late": loses("segments", 0),
            "number left out": sets("segments", 4, segment=5),
            "none at all": lambda t: t["segments"].clear(),
            "of no sample": lambda t: [row.update(sample_id="q") for row in t["segments"]],
            "more of no sample": doubles("segments", 4, sample_id="q", segment=0, start=0),
        },
        "roles_reconcile": {
            "roots": sets("samples", 0, n_root=8),
            "verified": sets("samples", 0, n_verified=2),
            "negative": sets("samples", 0, n_negative=0),
            "padding": sets("samples", 0, n_padding=4),
            "another role": sets("segments", 2, role="verified"),
            "unknown role": sets("segments", 0, role="filler"),
        },
        "contexts_before_anchors": {
            "context after the anchor": lambda t: (
                t["segments"][1].update(start=15, end=18),
                t["dependencies"][0].update(context_start=15, context_end=18, distance=-9),
            ),
            "not a segment": sets("dependencies", 0, context_end=5, distance=4),
            "not verified": sets("segments", 1, role="hard_negative"),
            "another root's": sets("segments", 1, root_id="Z"),
            "another chunk": sets("dependencies", 0, chunk_id="G-00000"),
            "anchor elsewhere": sets("dependencies", 0, anchor_position=10, distance=6),
            "anchor beyond the root": sets(
                "dependencies", 0, anchor=9, anchor_position=15, distance=11
            ),
            "another distance": sets("dependencies", 0, distance=6),
            "no such sample": sets("dependencies", 0, sample_id="q"),
            "kind without evidence": sets("dependencies", 0, kind="other"),
            "evidence without a kind": sets("dependencies", 0, evidence_start=1, evidence_end=4),
            "evidence before the context": sets(
                "dependencies", 0, kind="other", evidence_start=0, evidence_end=4
            ),
            "evidence beyond the context": sets(
                "dependencies", 0, kind="other", evidence_start=1, evidence_end=5
            ),
            "empty evidence": sets(
                "dependencies", 0, kind="other", evidence_start=2, evidence_end=2
            ),
        },
        "tokens_as_verified": {
            "root's token": sets_item("samples", 0, "input_ids", 9, 99),
            "context's token": sets_item("samples", 0, "input_ids", 2, 99),
            "negative's token": sets_item("samples", 0, "input_ids", 4, 99),
            "separator": sets_item("samples", 0, "input_ids", 14, 99),
            "context cut": sets("segments", 1, end=3),
            "no such context": loses("contexts", 0),
        },
        "dependencies_reconcile": {
            "lost": loses("dependencies", 0),
            "twice": doubles("dependencies", 0),
            "not accepted": doubles("dependencies", 0, chunk_id="G-00000"),
            "drop not recorded": loses("dropped", 0),
            "dropped root not recorded": loses("dropped", 1),
            "dropped and packed": doubles("dropped", 0, root_id="A"),
            "root dropped and packed": doubles("dropped", 1, root_id="A"),
            "count of the dropped root": sets("dropped", 1, n_dependencies=2),
            "at another anchor": sets("dependencies", 0, anchor=4),
            "with another gain": sets("dependencies", 0, gain=0.5),
        },
        "no_root_used_twice": {
            "in two shards": sets("used_elsewhere", 0, root_id="A"),
            "in two samples": doubles("segments", 3, sample_id="s-1"),
            "in one sample": doubles("segments", 3),
        },
    },
    "training_data": {
        "every_sample_exported": {
            "one missing in a format": sets("counted", 0, samples=0),
            "one twice in a format": sets("counted", 3, samples=2),
            "a split missing": loses("counted", 1),
            "a sample never split": doubles("samples", 0, sample_id="s-3"),
            "a drop not recorded": sets("unsplit", 0, n_unsplit=0),
        },
        "no_document_in_both_splits": {"in both": sets("exported_ids", 1, split="validation")},
        "files_as_written": {"a file differs": adds("file_faults", fault="mds/a: other bytes")},
        "all_shards_exported": {"one left out": adds("left_out", shard="s-1", reason="stale")},
    },
    "report": {
        "page_as_written": {
            "missing": loses("stored", 0),
            "another size": sets("stored", 0, bytes=8),
            "another hash": sets("stored", 0, sha256="bb"),
            "another page": sets("stored", 0, path="reports/b.html"),
        },
    },
    "natural": {
        "natural_reconcile": {
            "a document vanished": sets("summary", 0, documents=6),
            "a drop was not recorded": loses("dropped", 0),
            "a window lost": loses("windows", 1),
            "kept one more": sets("windows", 1, reason=None),
            "tokens lost": sets("summary", 0, tokens_dropped=2),
            "a root": sets("windows", 2, doc_id="F"),
            "overlap": sets("windows", 1, start=4, end=9),
        },
        "natural_samples_whole": {
            "too short": shortens("samples", 0, "input_ids"),
            "sample lost": loses("samples", 0),
            "sample twice": doubles("samples", 0),
            "of no window": doubles("samples", 0, window_id="Q-0"),
            "another place": sets("samples", 0, start=1),
        },
        "top_windows_kept": {
            "the lower gain": sets("windows", 1, gain=0.625),
            "outside the bounds": sets("windows", 2, reason=None),
            "one too many": sets("windows", 1, reason=None),
            "none": sets("windows", 0, reason="low_gain"),
            "dropped for no reason": sets("windows", 1, reason="too_dense"),
        },
        "natural_evidence_sound": {
            "too small a fall": sets("evidence", 0, surprisal_short=2.75),
            "still surprising": sets("evidence", 1, surprisal_long=2.0),
            "within the short window": sets("evidence", 0, found_at=4, short_start=4),
            "another token": sets("evidence", 0, found_at=2),
            "before the sample": sets("evidence", 0, ngram_tokens=3),
            "of no sample": sets("evidence", 1, window_id="C-0"),
            "row lost": loses("evidence", 1),
        },
    },
    "null": {
        "null_gains_recomputed": {
            "another gain": sets("trials", 0, gain=0.7500001),
            "gain missing": sets("trials", 0, gain=None),
            "plain verdict turned": sets("trials", 1, accepted_by=["plain"]),
            "plain verdict missing": sets("trials", 0, accepted_by=["calibrated"]),
            "calibrated below ε": sets("trials", 1, accepted_by=["calibrated"]),
            "not a number": sets("trials", 0, entropy_context=NAN),
        },
        "null_rates_recounted": {
            "a trial lost": loses("trials", 1),
            "passed too often": sets("rates", 1, passed=2),
            "another rate": sets("rates", 1, rate=0.6),
            "outside its interval": sets("rates", 1, low=0.6),
            "a rule without its rate": loses("rates", 1),
        },
        "random_below_retrieved": {"random as good": sets("rates", 0, rate=0.8)},
    },
    "second": {
        "second_gains_recomputed": {
            "another gain": sets("audited", 0, second_gain=0.6),
            "gain missing": sets("audited", 0, second_gain=None),
            "verdict turned": sets("audited", 0, holds=False),
            "not a pair": sets("audited", 0, chunk_id="Q-00000"),
            "another plain verdict": sets("audited", 0, accepted_by=["calibrated"]),
            "another calibrated verdict": sets("audited", 0, accepted_by=["plain"]),
        },
    },
    "long": {
        "windows_within_budget": {
            "window too short": sets("windows", 0, window_tokens=10),
            "no context": sets("windows", 0, context_tokens=0),
            "more key tokens than tokens": sets("windows", 0, key_tokens=9),
            "root twice": doubles("windows", 0),
        },
        "in_place_scores_sound": {
            "not a number": sets("anchors", 0, entropy_in_place=NAN),
            "negative": sets("anchors", 0, surprisal_in_place=-0.1),
            "control not a number": sets("anchors", 0, entropy_random=NAN),
            "context after its anchor": sets("dependencies", 0, distance=-1),
            "replaced not a number": sets("dependencies", 0, surprisal_replaced=NAN),
        },
    },
    "trial": {
        "every_run_present": {
            "a run lost": loses("runs", 3),
            "a run that learnt nothing": sets("runs", 3, steps=0),
            "a seed more": adds("planned", arm="random", seed=2),
        },
        "arms_learnt_equally": {
            "more tokens": sets("runs", 2, learnt_tokens=3000),
            "fewer steps": sets("runs", 2, steps=1),
            "a seed lost": loses("runs", 2),
            "another seed": sets("runs", 2, seed=7),
        },
        "intervals_sound": {
            "not a number": sets("differences", 0, value=NAN),
            "infinite end": sets("differences", 0, high=INF),
            "one end alone": sets("differences", 0, low=None),
            "beside its interval": sets("differences", 0, value=0.5),
            "items without a mean": sets("differences", 2, value=None),
        },
        "short_documents_kept": {"loss rose": sets("differences", 1, value=0.03, high=0.04)},
    },
}

TABLES = {
    "corpus": CORPUS_DOCUMENTS,
    "embeddings": CHUNK_EMBEDDINGS,
    "signatures": DOCUMENT_SIGNATURES,
    "near": NEAR_DUPLICATES,
    "index": EMBEDDING_INDEX,
    "segments": INDEX_SEGMENTS,
    "entropy": ENTROPY_SCORES,
    "retrieval": CANDIDATE_CONTEXTS,
    "verification": VERIFIED_DEPENDENCIES,
    "samples": LONG_CONTEXT_SAMPLES,
    "natural": NATURAL_DOCUMENTS,
    "training_data": TRAINING_DATASET,
    "report": REPORT,
    "null": NULL_CALIBRATION,
    "second": CROSS_MODEL_AUDIT,
    "long": LONG_RANGE_AUDIT,
    "trial": TRAINING_TRIAL,
}
BROKEN = [
    pytest.param(stage, check, change, id=f"{stage}-{check}-{name}".replace(" ", "_"))
    for stage, checks in CASES.items()
    for check, changes in checks.items()
    for name, change in changes.items()
]


def declared(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.tables is TABLES[name])


Faults = Callable[..., int]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Count the faulty rows that a check finds in tables, through `run_checks`."""
    project = make_project({"data_uri": str(tmp_path_factory.mktemp("data"))})
    partition = Partition(project.dataset, open_store(project.dataset), "s")
    for name in TABLES:  # outcomes are recorded beside a manifest
        with partition.store.write(TABLES[name], "s", fingerprint="f", determinants={}):
            pass

    def count(name: str, check: str, tables: Tables, **over: Any) -> int:
        stage = replace(
            declared(name),
            checks=(Check(check, ""),),
            views=lambda _: views(name, tables),
            check_parameters=lambda _: PARAMETERS[name] | over,
        )
        (result,) = run_checks(stage, partition)
        outcome = partition.store.check_outcomes(stage.tables, "s")[check]
        assert (outcome.passed, outcome.faulty_rows) == (result.passed, result.faulty_rows)
        assert result.passed == (result.faulty_rows == 0) == result.examples.is_empty()
        return result.faulty_rows

    return count


@pytest.mark.parametrize(("stage", "check", "change"), BROKEN)
def test_check_fails_on_its_fault(faults: Faults, stage: str, check: str, change: Break) -> None:
    assert faults(stage, check, valid(stage)) == 0
    tables = valid(stage)
    change(tables)
    assert tables != valid(stage), "the case changes nothing"
    assert faults(stage, check, tables) > 0


def test_every_declared_check_has_a_case() -> None:
    checks = {(stage.name, check.name) for stage in STAGES for check in stage.checks}
    cases = {(declared(name).name, check) for name, of in CASES.items() for check in of}
    assert len(checks) >= 40
    assert cases == checks


def test_every_check_file_is_declared_by_a_stage() -> None:
    """A file that no stage declares would never run."""
    files = set(PACKAGE.rglob("checks/*.sql"))
    assert files == {
        stage.check_folder / f"{check.name}.sql"
        for stage in STAGES
        for check in stage.checks
        if stage.check_folder is not None
    }


def test_copies_owned_by_another_shard_need_no_vector(faults: Faults) -> None:
    tables = valid("embeddings")
    tables["vectors"].pop(2)
    assert faults("embeddings", "one_vector_per_chunk", tables) == 1
    tables["duplicates"].append({"doc_id": "B"})
    assert faults("embeddings", "one_vector_per_chunk", tables) == 0


@pytest.mark.parametrize("reason", ["contaminated", "taken_down", "calm.shouting"])
def test_documents_that_were_cleaned_away_are_no_bad_rows(faults: Faults, reason: str) -> None:
    tables = valid("corpus")
    tables["dropped"][0]["reason"] = reason
    for check in ("few_bad_rows", "bad_rows"):
        assert faults("corpus", check, tables) == 0


def test_rows_of_a_shard_outside_the_index_are_no_fault_of_it(faults: Faults) -> None:
    """A shard killed between the vectors and its manifest leaves rows that no search reads."""
    tables = valid("index")
    tables["indexed"].append({"chunk_id": "A-00000", "doc_id": "A", "shard": "killed"})
    for check in ("no_document_indexed_twice", "index_rows_reconcile"):
        assert faults("index", check, tables) == 0


def test_the_plain_rule_is_recomputed_too(faults: Faults) -> None:
    plain = {"rule": "plain", "controls": 0, "require_surprisal_drop": False}
    tables = valid("verification")
    tables["controls"].clear()
    for row in tables["pairs"]:
        row.update(entropy_control=None, surprisal_control=None, calibrated_gain=None)
        row.update(accepted_by=[r for r in row["accepted_by"] if r == "plain"])
        row.update(accepted="plain" in row["accepted_by"])
    tables["pairs"][2]["verdict"] = "accepted"
    for check in ("verdicts_recomputed", "controls_averaged"):
        assert faults("verification", check, tables, **plain) == 0
    assert faults("verification", "verdicts_recomputed", tables) == 3
    tables["pairs"][2]["accepted"] = False
    assert faults("verification", "verdicts_recomputed", tables, **plain) == 1


def test_a_root_without_anchors_or_of_one_token_is_sound(faults: Faults) -> None:
    tables = valid("entropy")
    flat = {"mean": 1.0, "std": 0.0, "threshold": 1.0, "anchors": []}
    flat |= {"surprisal_mean": 0.0, "surprisal_std": 0.0}
    tables["roots"][1].update(entropies=[None, 1.0, 1.0, 1.0], surprisals=[None, 0.0, 0.0, 0.0])
    tables["roots"][1].update(flat)
    single = {"token_ids": [5], "entropies": [None], "surprisals": [None]}
    tables["roots"][2].update(flat | single | {"mean": 0.0, "threshold": 0.0})
    for check in CASES["entropy"]:
        assert faults("entropy", check, tables, min_tokens=1) == 0


def test_anchors_by_surprisal_are_recomputed(faults: Faults) -> None:
    tables, check = valid("entropy"), "anchors_recomputed"
    surprisals = [9.0, 3.0, 0.0]  # μ = 4, σ = 3.74: the first exceeds μ + σ, at an entropy of 1
    moments = {"surprisal_mean": 4.0, "surprisal_std": statistics.pstdev(surprisals)}
    tables["roots"][1].update(surprisals=[None, *surprisals], **moments)
    assert faults("entropy", check, tables) == 0
    assert faults("entropy", check, tables, anchors="both") == 1
    tables["roots"][1].update(anchors=[1, 2], by_surprisal=[1])
    assert faults("entropy", check, tables, anchors="both") == 0
    assert faults("entropy", check, tables) == 1
    assert faults("entropy", check, tables, anchors="both", min_entropy=1.0) == 1
    assert faults("entropy", check, tables, anchors="both", min_anchor_position=2) == 1
    tables["roots"][1].update(by_surprisal=[])
    assert faults("entropy", check, tables, anchors="both") == 1


def test_each_search_gives_no_more_candidates_than_it_may(faults: Faults) -> None:
    tables, check = valid("retrieval"), "ranks_without_gap"
    tables["candidates"][0]["found_by"] = "both"
    extra = {"rank": 3, "chunk_id": "G-00000", "similarity": 0.25, "found_by": "text"}
    tables["candidates"].append(tables["candidates"][1] | extra)
    assert faults("retrieval", check, tables, text_candidates=2) == 0
    assert faults("retrieval", check, tables, text_candidates=1) == 1
    assert faults("retrieval", check, tables, text_candidates=2, top_k=1) == 2
    tables["candidates"][-1]["found_by"] = "vector"
    assert faults("retrieval", check, tables, text_candidates=2) == 1


def test_a_root_in_pieces_is_sound_only_in_its_order(faults: Faults) -> None:
    tables = valid("samples")
    whole = tables["segments"].pop(3)
    assert whole["role"] == "root"
    middle = whole["start"] + 4
    for number, (start, end) in enumerate(((whole["start"], middle), (middle, whole["end"]))):
        tables["segments"].insert(
            3 + number, {**whole, "segment": 3 + number, "start": start, "end": end}
        )
    tables["segments"][5]["segment"] = 5
    for check in ("tokens_as_verified", "no_root_used_twice", "segments_tile", "roles_reconcile"):
        assert faults("samples", check, tables) == 0
    ids = tables["samples"][0]["input_ids"]
    ids[whole["start"]], ids[middle] = ids[middle], ids[whole["start"]]
    assert faults("samples", "tokens_as_verified", tables) == 2


def test_rule_of_a_recipe_counts_its_dependencies(faults: Faults) -> None:
    tables = valid("samples")
    check = "dependencies_reconcile"
    assert faults("samples", check, tables, rule="calibrated") == 0
    assert faults("samples", check, tables, rule="") > 0
    assert faults("samples", check, tables, rule="plain") > 0  # pair 2 is not packed


def test_rule_of_another_package_is_checked_for_agreement(faults: Faults) -> None:
    """Its verdicts can't be computed again; they must agree with each other."""
    tables = valid("verification")
    third = {"rule": "third", "evaluated_rules": ["plain", "calibrated", "third"]}
    check = "verdicts_recomputed"
    tables["pairs"][0].update(accepted=False, verdict="too_common")
    tables["pairs"][2].update(accepted=True, verdict="accepted", accepted_by=["plain", "third"])
    tables["pairs"][3].update(verdict="too_common")
    assert faults("verification", check, tables, **third) == 0
    for row, fault in (
        (2, {"accepted_by": ["plain"]}),
        (2, {"verdict": "too_common"}),
        (0, {"accepted": True}),
        (0, {"accepted_by": ["plain", "calibrated", "third"]}),
        (0, {"accepted_by": ["plain"]}),
    ):
        broken = copy.deepcopy(tables)
        broken["pairs"][row].update(fault)
        assert faults("verification", check, broken, **third) == 1, fault
