"""Tables of a few shards, from generated worlds, as an export finds them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.samples.shard_inputs import open_tables
from entropylong_assets.stages.samples.shard_packing import pack_shard
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.samples.worlds import (
    BOS,
    PAD,
    SEPARATOR,
    World,
    make_world,
    settings_for,
    views,
)

SHARDS = ("books-00000", "books-00001", "web-00000")
TOKENS = 160
MODEL = "tiny-llama@1234"
CODE = "abc123"


def export_settings(
    data_uri: str | Path, export: dict[str, Any] | None = None, **samples: Any
) -> Settings:
    """Settings of a small pipeline over the shards above."""
    base = settings_for(TOKENS, **{"fill": "verified_only", **samples}).model_dump()
    sources = [
        {
            "name": "books",
            "uri": "https://host/books/*.jsonl?sig=secret",
            "license": "cc0-1.0",
        },
        {"name": "web", "uri": "web/*.txt", "license": "odc-by"},
    ]
    base["corpus"]["sources"] = sources
    base["data_uri"] = str(data_uri)
    base["export"] |= export or {}
    return Settings.model_validate(base)


def worlds(shards: Sequence[str] = SHARDS, n_chunks: int = 300) -> dict[str, World]:
    """A world for each shard. The first two shards share their pool of contexts."""
    return {
        shard: make_world(
            number,
            n_roots=12,
            n_chunks=n_chunks,
            first_root=100 * number,
            first_chunk=10_000 + 1000 * max(0, number - 1),
            first_token=100 + 10_000 * (number + 1),
            pairs_a_root=10,
        )
        for number, shard in enumerate(shards)
    }


def _upstream(store: TableStore, shard: str, world: World, model: str) -> None:
    """corpus_documents, entropy_scores, candidate_contexts and verified_dependencies."""
    rng = random.Random(shard)
    source = shard.rpartition("-")[0]
    with store.write("corpus_documents", shard, fingerprint="t") as writer:
        ids = [(r["root_id"], True) for r in world.roots]
        ids += [(c["doc_id"], False) for c in world.contexts]
        documents = [
            {
                "doc_id": i,
                "text": "x",
                "source": source,
                "file": "f",
                "row": n,
                "license": "odc-by" if source == "web" else "cc0-1.0",
            }
            | {"external_id": None, "n_chars": 1, "n_tokens": 1, "is_root": is_root}
            for n, (i, is_root) in enumerate(ids)
        ]
        writer.append("documents", documents)
    with store.write("entropy_scores", shard, fingerprint="t") as writer:
        for root in world.roots:
            n = len(root["token_ids"])
            anchors = sorted({p["anchor"] for p in world.pairs if p["root_id"] == root["root_id"]})
            values = {"entropies": [1.0] * n, "surprisals": [1.0] * n, "anchors": anchors}
            moments = {"mean": 1.0, "std": 0.0, "threshold": 1.0}
            writer.append("roots", [root | values | moments])
        writer.summary["model"] = model
    with store.write("candidate_contexts", shard, fingerprint="t") as writer:
        for pair in world.pairs:
            guard = "near_duplicate" if pair["verdict"] == "near_duplicate" else "passed"
            names = ("root_id", "anchor", "rank", "chunk_id", "similarity")
            row = {name: pair[name] for name in names} | {"containment": 0.0, "guard": guard}
            writer.append("candidates", [row])
        writer.summary["index"] = "index-0001"
    with store.write("verified_dependencies", shard, fingerprint="t") as writer:
        writer.append("pairs", world.pairs)
        writer.append("contexts", world.contexts)
        anchors = sorted({(p["root_id"], p["anchor"]) for p in world.pairs})
        controls = [
            {"root_id": root_id, "control": control, "anchor": anchor}
            | {"entropy": rng.uniform(2, 6), "surprisal": rng.uniform(2, 6)}
            for root_id, anchor in anchors
            for control in (0, 1)
        ]
        writer.append("controls", controls)


def fill_store(
    settings: Settings, by_shard: dict[str, World] | None = None, models: Sequence[str] = (MODEL,)
) -> TableStore:
    """A store that holds all tables of these worlds."""
    store = TableStore(settings.data_uri)
    for number, (shard, world) in enumerate((by_shard or worlds()).items()):
        _upstream(store, shard, world, models[number % len(models)])
        with (
            store.write("long_context_samples", shard, fingerprint="t") as writer,
            open_tables(store, views(*world.frames())) as opened,
        ):
            writer.summary |= pack_shard(
                opened,
                settings=settings,
                shard=shard,
                separator_ids=SEPARATOR,
                bos_id=BOS,
                pad_id=PAD,
                writer=writer,
            )
    return store


def table(store: TableStore, name: str, shards: Sequence[str] = SHARDS) -> list[dict[str, Any]]:
    """Rows of a sample table over all shards."""
    return [
        row
        for shard in shards
        for row in store.read("long_context_samples", shard, name).to_dicts()
    ]
