"""Tables of a small run whose texts are hostile, written through the store."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from entropylong_assets.audits.tables import (
    CROSS_MODEL_AUDIT,
    LONG_RANGE_AUDIT,
    NULL_CALIBRATION,
    CrossModelAuditSummary,
)
from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.entropy.tokenizer_facts import tokenizer_facts
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.shard_inputs import open_tables
from entropylong_assets.stages.samples.shard_packing import pack_shard
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Stage
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.tables import (
    VERIFIED_DEPENDENCIES,
    VerifiedDependenciesSummary,
)
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage.schemas import Summary, TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.samples.worlds import TEXT

SHARDS = ("books-00000", "web-00000")
HOSTILE = (
    "<script>document.body.dataset.hacked='yes'</script></script><!--<script> "
    "<img src=x onerror=\"document.body.dataset.hacked='yes'\"> \x1b[31mred\x1b[0m\x07 "
    "\u202egnp.exe\u202c \u2066x\u2069 {{script}} &lt;b&gt; \u2028 naïve 😀 end"
)
ROOTS_PER_SHARD, ANCHORS, CANDIDATES, COLD = 5, 6, 3, 8


@functools.cache
def byte_tokenizer(_: Any = None) -> Tokenizer:
    """A real tokenizer of one token a byte, so that characters are spread over tokens."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Fast(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    return Tokenizer(fast, (), tuple(fast.encode("\n\n")))


def doc_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run_settings(data_uri: Path, **over: Any) -> Settings:
    """Settings of a dataset under `data_uri`. over: sections of a settings file."""
    values = {
        "data_uri": str(data_uri),
        "entropy": {"min_anchor_position": COLD},
        "samples": {"tokens": 2400},
        "roots": {"min_tokens": 2, "max_tokens": 600},
        **over,
        "verification": {
            "rule": "calibrated",
            "compared_rules": ["plain", "genuine"],
            **over.get("verification", {}),
        },
    }
    return make_project(values).dataset


def _frame(tables: TableSet[Any], table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=pl.Schema(tables.schemas[table]))


def write_run(settings: Settings, seed: int = 1, roots: int = ROOTS_PER_SHARD) -> TableStore:
    """Write all tables of both shards. The same seed gives the same documents and entropies."""
    store, tokenizer = open_store(settings), byte_tokenizer()
    for shard in SHARDS:
        _write_shard(store, settings, tokenizer, shard, random.Random(f"{seed} {shard}"), roots)
    return store


def recorded(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Determinants of a stage, as far as the report reads them."""
    return {"settings": determining_settings(stage, settings)}


def _write_shard(
    store: TableStore,
    settings: Settings,
    tokenizer: Tokenizer,
    shard: str,
    rng: random.Random,
    n_roots: int,
) -> None:
    source = shard.rpartition("-")[0]
    stages = {stage.tables: stage for stage in LONG_CONTEXT_SAMPLES_STAGE.upstream()}

    def write(
        tables: TableSet[Any],
        rows: dict[str, list[dict[str, Any]]],
        summary: Summary | None = None,
        **identities: str,
    ) -> None:
        stage = stages[tables]
        made = recorded(stage, settings if stage.scope == "dataset" else settings.corpus)
        with store.write(tables, shard, fingerprint="t", determinants=made | identities) as writer:
            for table, content in rows.items():
                writer.append(table, content)
            writer.summary = summary.model_dump() if summary else {}

    texts = [f"{source} root {i}: {HOSTILE} {rng.random()}" for i in range(n_roots)]
    chunks = [f"{source} passage {i}: {HOSTILE} {rng.random()}" for i in range(12)]
    documents = [
        {
            "doc_id": doc_id(text),
            "text": text,
            "source": source,
            "file": "f",
            "row": row,
            "external_id": f"<b>{row}\u202e</b>",
            "license": "cc0-1.0",
            "n_chars": len(text),
        }
        for row, text in enumerate([*texts, *chunks])
    ]
    dropped = {"file": "f", "row": 99, "external_id": None, "reason": "too_short", "detail": ""}
    roots, pairs, controls, candidates = [], [], [], []
    for text in texts:
        root, mine = _root(text, tokenizer, rng)
        roots.append(root)
        for anchor in mine:
            picked = rng.sample(chunks, CANDIDATES)
            similarity = 0.9
            for rank, chunk in enumerate(picked, start=1):
                similarity -= rng.uniform(0.01, 0.1)
                near = rng.random() < 0.1
                key = {"root_id": root["root_id"], "anchor": anchor, "rank": rank}
                key |= {"chunk_id": f"{doc_id(chunk)}-0", "similarity": similarity}
                leak = {"leak_check": "near_duplicate" if near else "passed", "found_by": "vector"}
                candidates.append(key | {"containment": 0.5 if near else 0.0} | leak)
                alone = {"entropy": root["entropies"][anchor], "surprisal": 4.0}
                given = {
                    "entropy_context": None if near else rng.choice([0.2, 0.55, 0.9, 1.1]) * 6,
                    "entropy_control": 5.5,
                    "surprisal_context": None if near else rng.uniform(1, 6),
                    "surprisal_control": 4.2,
                    "refusal": "near_duplicate" if near else None,
                }
                pairs.append(key | TEXT | alone | given)
            controls += [
                {"root_id": root["root_id"], "control": c, "anchor": anchor, "has_word": False}
                | {"entropy": rng.uniform(2, 6), "surprisal": rng.uniform(2, 6)}
                for c in (0, 1)
            ]
    dropped_root = {"root_id": doc_id("dropped"), "reason": "too_long_for_model", "n_tokens": 9}
    documents.append(documents[0] | {"doc_id": dropped_root["root_id"]})
    write(CORPUS_DOCUMENTS, {"documents": documents, "dropped": [dropped]})
    scores = EntropyScoresSummary(
        documents=len(documents),
        not_drawn=len(chunks),
        drawn=len(roots) + 1,
        roots=len(roots),
        dropped={"too_long_for_model": 1},
        anchors=sum(len(root["anchors"]) for root in roots),
        forward_tokens=1,
        model="bytes@1",
        vocab_size=256,
    )
    write(ENTROPY_SCORES, {"roots": roots, "dropped": [dropped_root]}, scores, model="bytes@1")
    passages = [
        {"chunk_id": f"{doc_id(c)}-0", "doc_id": doc_id(c), "shard": shard, "source": source}
        | {"start": 0, "end": len(c)}
        for c in chunks
    ]
    with_text = [p | {"text": c} for p, c in zip(passages, chunks, strict=True)]
    found = {"candidates": candidates, "chunks": with_text}
    write(CANDIDATE_CONTEXTS, found, index="index-1")
    ids = tokenizer.encode(chunks)
    contexts = [
        p | {"token_ids": [*i, *tokenizer.separator_ids]}
        for p, i in zip(passages, ids, strict=True)
    ]
    judged = judge(pl.DataFrame(pairs, infer_schema_length=None), settings.verification)
    rows = judged.select(VERIFIED_DEPENDENCIES.schemas["pairs"].names).to_dicts()
    # The name before the hostile text, of every second accepted pair.
    name = len(f"{source} passage")
    evidence = [
        {key: row[key] for key in ("root_id", "anchor", "chunk_id")}
        | {"kind": "verbatim_word", "start": 2, "end": name, "token_start": 2, "token_end": name}
        | {"measure": "surprisal", "kept": 0.9, "removed": 0.8}
        for row in [row for row in rows if row["accepted"]][::2]
    ]
    verified = {
        "pairs": rows,
        "contexts": contexts,
        "controls": controls,
        "evidence": evidence,
    }
    write(VERIFIED_DEPENDENCIES, verified, _summary_of(rows))
    root_rows = [{"root_id": r["root_id"], "token_ids": r["token_ids"]} for r in roots]
    frames = {
        "roots": pl.DataFrame(
            root_rows, schema={"root_id": pl.String, "token_ids": pl.List(pl.UInt32)}
        ),
        "pairs": _frame(VERIFIED_DEPENDENCIES, "pairs", rows),
        "contexts": _frame(VERIFIED_DEPENDENCIES, "contexts", contexts),
        "evidence": _frame(VERIFIED_DEPENDENCIES, "evidence", evidence),
    }
    made = recorded(LONG_CONTEXT_SAMPLES_STAGE, settings)
    with (
        store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t", determinants=made) as writer,
        open_tables(store, frames) as opened,
    ):
        packed = pack_shard(
            opened,
            settings=settings,
            shard=shard,
            tokenizer=tokenizer_facts(tokenizer, settings.scoring, 256, settings.samples.tokens),
            writer=writer,
        )
        writer.summary = packed.summary.model_dump()


def _summary_of(pairs: list[dict[str, Any]]) -> VerifiedDependenciesSummary:
    accepted = [pair for pair in pairs if pair["accepted"]]
    verdicts = Counter(pair["verdict"] for pair in pairs)
    calibrated = [pair["calibrated_gain"] for pair in accepted]
    return VerifiedDependenciesSummary(
        pairs=len(pairs),
        pairs_scored=sum(pair["entropy_context"] is not None for pair in pairs),
        contexts_scored=1,
        accepted=len(accepted),
        accepted_by=dict(Counter(rule for pair in pairs for rule in pair["accepted_by"])),
        mean_gain=fmean(pair["gain"] for pair in accepted) if accepted else None,
        mean_calibrated_gain=fmean(calibrated) if accepted else None,
        verdicts=dict(verdicts),
        control_trials=0,
        false_acceptance={},
        forward_tokens=1,
        model="bytes@1",
        vocab_size=256,
        screen=None,
    )


def _root(text: str, tokenizer: Tokenizer, rng: random.Random) -> tuple[dict[str, Any], list[int]]:
    token_ids = tokenizer.encode([text])[0]
    n = len(token_ids)
    mine = sorted(rng.sample(range(COLD, n), ANCHORS))
    entropies: list[float | None] = [None, *(rng.uniform(0, 4) for _ in range(n - 1))]
    for t in [*mine, 3]:  # one above τ, but cold
        entropies[t] = 6.0
    return {
        "root_id": doc_id(text),
        "token_ids": token_ids,
        "entropies": entropies,
        "surprisals": [None, *(rng.uniform(0, 9) for _ in range(n - 1))],
        "mean": 2.0,
        "std": 1.2,
        "threshold": 5.0,
        "surprisal_mean": 4.5,
        "surprisal_std": 2.6,
        "anchors": mine,
        "by_surprisal": [],
    }, mine


def write_audits(store: TableStore, shard: str, verified: str | None = None) -> None:
    """Write audits of one shard whose figures can be checked by hand.

    Of its first two roots, one random context in four passes the plain rule and none the calibrated
    one; `calibrated` lowers surprisal by 2 and 1 nats more than random contexts do, `random` by
    none.

    verified: version of the dependencies that they were made from; None: the present one.
    """
    determinants = {
        "inputs": {
            VERIFIED_DEPENDENCIES.name: verified
            or store.require(VERIFIED_DEPENDENCIES, shard).data_version
        }
    }
    ids = store.read(ENTROPY_SCORES, shard, "roots", ["root_id"])["root_id"].to_list()[:2]
    scores = {"entropy": 6.0, "entropy_control": 5.0, "surprisal": 4.0, "surprisal_control": 4.0}
    trials = [
        {"root_id": root, "anchor": anchor, "kind": "random", "number": 0, "chunk_ids": ["c-0"]}
        | {"n_tokens": 9, "entropy_context": 3.0 if passes else 5.9, "surprisal_context": 4.0}
        | scores
        | TEXT
        | {"gain": 0.5 if passes else 0.02, "calibrated_gain": 0.3 if passes else 0.0}
        | {"accepted_by": ["plain"] if passes else []}
        for root, anchor, passes in zip(
            [ids[0], ids[0], ids[1], ids[1]],
            (9, 10, 9, 10),
            (True, False, False, False),
            strict=True,
        )
    ]
    pairs = [
        {"root_id": ids[0], "anchor": 9 + i, "chunk_id": "c-0", "holds": i == 0}
        | {"accepted_by": ["plain", "calibrated"][: (2, 2, 1, 0)[i]]}
        | {"gain": 0.5 - 0.1 * i, "surprisal_drop": 1.0, "second_gain": 0.6 - 0.1 * i}
        | {"second_entropy": 5.0, "second_entropy_context": 4.0}
        | {"second_surprisal": 3.0, "second_surprisal_context": 2.0}
        for i in range(4)
    ]
    anchors = [
        {"recipe": recipe, "root_id": root, "anchor": 9, "entropy": 6.0, "surprisal": 5.0}
        | {"entropy_in_place": 4.0, "entropy_random": 4.0 + fall}
        | {"surprisal_in_place": 3.0, "surprisal_random": 3.0 + fall}
        for recipe, falls in (("calibrated", (2.0, 1.0)), ("random", (0.0, 0.0)))
        for root, fall in zip(ids, falls, strict=True)
    ]
    scored = {"segment_pairs": 2, "dependency_score": 0.125}
    windows = [
        {"recipe": recipe, "root_id": root, "window_tokens": 200, "context_tokens": 100}
        | {"root_tokens": 100, "short_tokens": 16, "key_tokens": 5 if recipe != "random" else 0}
        | ({"segment_pairs": 0, "dependency_score": None} if recipe == "random" else scored)
        for recipe in ("calibrated", "random")
        for root in ids
    ]
    second = CrossModelAuditSummary(second_model="other<b>@2").model_dump()
    for tables, content, summary in (
        (NULL_CALIBRATION, {"trials": trials}, {}),
        (CROSS_MODEL_AUDIT, {"pairs": pairs}, second),
        (LONG_RANGE_AUDIT, {"anchors": anchors, "windows": windows}, {}),
    ):
        with store.write(tables, shard, fingerprint="t", determinants=determinants) as writer:
            for table, rows in content.items():
                writer.append(table, rows)
            writer.summary = summary
