"""Tables of a few shards, from generated worlds, as an export reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.natural_documents.tables import (
    NATURAL_DOCUMENTS,
    NaturalDocumentsSummary,
)
from entropylong_assets.stages.retrieval.tables import (
    CANDIDATE_CONTEXTS,
    CandidateContextsSummary,
)
from entropylong_assets.stages.samples.shard_inputs import open_tables
from entropylong_assets.stages.samples.shard_packing import pack_shard
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.samples.worlds import (
    World,
    make_world,
    tokenizer_facts,
    views,
)

SHARDS = ("books-00000", "books-00001", "web-00000")
TOKENS = 160
MODEL = "tiny-llama@1234"
CODE = "abc123"


def export_settings(
    data_uri: str | Path, export: dict[str, Any] | None = None, **samples: Any
) -> Settings:
    """Settings of a small dataset over the shards above."""
    sources = [
        {
            "name": "books",
            "uri": "https://host/books/*.jsonl?sig=secret",
            "license": "cc0-1.0",
        },
        {"name": "web", "uri": "web/*.txt", "license": "odc-by"},
    ]
    values = {
        "data_uri": str(data_uri),
        "corpus": {"sources": sources},
        "roots": {"min_tokens": 2, "max_tokens": 2},
        "verification": {"rule": "calibrated", "compared_rules": ["plain", "genuine"]},
        "samples": {"tokens": TOKENS, "fill": "verified_only", **samples},
        "export": export or {},
    }
    return make_project(values).dataset


def worlds(shards: Sequence[str] = SHARDS, n_chunks: int = 300) -> dict[str, World]:
    """A world per shard. The first two shards share their pool of contexts."""
    return {
        shard: make_world(
            number,
            n_roots=12,
            n_chunks=n_chunks,
            first_root=100 * number,
            first_chunk=10_000 + 1000 * max(0, number - 1),
            first_token=100 + 10_000 * (number + 1),
            pairs_per_root=10,
        )
        for number, shard in enumerate(shards)
    }


def _upstream(store: TableStore, shard: str, world: World, model: str) -> None:
    """Write the tables that the samples of a shard are made of."""
    rng = random.Random(shard)
    source = shard.rpartition("-")[0]
    with store.write(CORPUS_DOCUMENTS, shard, fingerprint="t") as writer:
        ids = [r["root_id"] for r in world.roots] + [c["doc_id"] for c in world.contexts]
        documents = [
            {
                "doc_id": i,
                "text": "x",
                "source": source,
                "file": "f",
                "row": n,
                "license": "odc-by" if source == "web" else "cc0-1.0",
                "external_id": None,
                "n_chars": 1,
            }
            for n, i in enumerate(ids)
        ]
        writer.append("documents", documents)
    with store.write(ENTROPY_SCORES, shard, fingerprint="t") as writer:
        for root in world.roots:
            n = len(root["token_ids"])
            anchors = sorted({p["anchor"] for p in world.pairs if p["root_id"] == root["root_id"]})
            values = {"entropies": [1.0] * n, "surprisals": [1.0] * n, "anchors": anchors}
            moments = {"mean": 1.0, "std": 0.0, "threshold": 1.0}
            moments |= {"surprisal_mean": 1.0, "surprisal_std": 0.0}
            writer.append("roots", [root | values | moments | {"by_surprisal": []}])
        writer.summary = EntropyScoresSummary(
            documents=len(ids),
            not_drawn=len(world.contexts),
            drawn=len(world.roots),
            roots=len(world.roots),
            dropped={},
            anchors=len({(p["root_id"], p["anchor"]) for p in world.pairs}),
            forward_tokens=0,
            model=model,
            vocab_size=100_000,
        ).model_dump()
    with store.write(CANDIDATE_CONTEXTS, shard, fingerprint="t") as writer:
        for pair in world.pairs:
            outcome = "near_duplicate" if pair["verdict"] == "near_duplicate" else "passed"
            names = ("root_id", "anchor", "rank", "chunk_id", "similarity")
            row = {name: pair[name] for name in names}
            row |= {
                "found_by": "vector",
                "containment": 0.0,
                "leak_check": outcome,
                "has_word": None,
            }
            writer.append("candidates", [row])
        writer.summary = CandidateContextsSummary(
            roots=len(world.roots),
            anchors=0,
            candidates=len(world.pairs),
            near_duplicate=0,
            chunks=len(world.contexts),
            phrase_documents=0,
            dropped={},
            index="index-0001",
            excluded_shards=[],
            search="exact",
            nprobes=None,
            refine_factor=None,
        ).model_dump()
    with store.write(NATURAL_DOCUMENTS, shard, fingerprint="t") as writer:
        writer.summary = NaturalDocumentsSummary().model_dump()
    with store.write(VERIFIED_DEPENDENCIES, shard, fingerprint="t") as writer:
        writer.append("pairs", world.pairs)
        writer.append("contexts", world.contexts)
        anchors = sorted({(p["root_id"], p["anchor"]) for p in world.pairs})
        controls = [
            {"root_id": root_id, "control": control, "anchor": anchor}
            | {"has_word": False, "entropy": rng.uniform(2, 6), "surprisal": rng.uniform(2, 6)}
            for root_id, anchor in anchors
            for control in (0, 1)
        ]
        writer.append("controls", controls)


def fill_store(
    settings: Settings,
    by_shard: dict[str, World] | None = None,
    models: Sequence[str] = (MODEL,),
    **tokenizer: Any,
) -> TableStore:
    """A store with all tables of these worlds. tokenizer: facts that differ from the worlds'."""
    store = open_store(settings)
    for number, (shard, world) in enumerate((by_shard or worlds()).items()):
        _upstream(store, shard, world, models[number % len(models)])
        with (
            store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t") as writer,
            open_tables(store, views(*world.frames())) as opened,
        ):
            packed = pack_shard(
                opened,
                settings=settings,
                shard=shard,
                tokenizer=tokenizer_facts(settings.samples.tokens, **tokenizer),
                writer=writer,
            )
            writer.summary = packed.summary.model_dump()
    return store


def table(store: TableStore, name: str, shards: Sequence[str] = SHARDS) -> list[dict[str, Any]]:
    """Rows of a sample table over all shards."""
    return [
        row for shard in shards for row in store.read(LONG_CONTEXT_SAMPLES, shard, name).to_dicts()
    ]


def rewrite_manifest(store: TableStore, owner: TableSet, shard: str, **changes: Any) -> None:
    """Change top-level keys of a partition's manifest."""
    path = f"{store.folder(owner, shard)}/manifest.json"
    manifest = json.loads(store.fs.cat_file(path))
    store.put(path, json.dumps(manifest | changes).encode())
