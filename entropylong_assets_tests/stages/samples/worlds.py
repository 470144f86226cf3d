"""Small generated shards: roots, pairs and contexts with token ids that name their owner."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.project import make_project
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.stages.samples.registry import Pool
from entropylong_assets.stages.samples.shard_inputs import open_tables
from entropylong_assets.stages.samples.shard_packing import PackedShard, pack_shard
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

SHARD = "books-00007"
SEPARATOR = (7, 8)
BOS = 1
PAD = 0

FAILED = ("low_gain", "surprisal_rose")
UNSCORED = ("near_duplicate", "not_tried")


TEXT = {
    "word": "word",
    "anchor_kind": None,
    "phrase_documents": 1,
    "pair_documents": 1,
    "counted_documents": 100,
    "has_word": True,
}
"""Columns of a world's pairs that describe their texts."""


@dataclass
class World:
    """Rows of the three input tables."""

    roots: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    contexts: list[dict[str, Any]]

    def frames(self, rng: random.Random | None = None) -> tuple[pl.DataFrame, ...]:
        """As frames of the tables' types, shuffled where `rng` is given."""
        scores, verified = ENTROPY_SCORES.schemas, VERIFIED_DEPENDENCIES.schemas
        tables = [
            (self.roots, pl.Schema({"root_id": pl.String, "token_ids": pl.List(pl.UInt32)})),
            (self.pairs, pl.Schema(verified["pairs"])),
            (self.contexts, pl.Schema(verified["contexts"])),
        ]
        token_ids = scores["roots"].field("token_ids").type
        assert token_ids == verified["contexts"].field("token_ids").type
        return tuple(
            pl.DataFrame(rng.sample(rows, len(rows)) if rng else rows, schema=schema)
            for rows, schema in tables
        )


def make_world(
    seed: int,
    *,
    n_roots: int,
    n_chunks: int,
    root_tokens: tuple[int, int] = (4, 24),
    chunk_tokens: tuple[int, int] = (3, 12),
    pairs_per_root: int = 8,
    p_accepted: float = 0.4,
    first_root: int = 0,
    first_chunk: int = 1000,
    first_token: int = 100,
) -> World:
    """A world in which each root and chunk has token ids that occur nowhere else."""
    rng = random.Random(seed)
    fresh = itertools.count(first_token)

    def ids(shortest: int, longest: int) -> list[int]:
        return [next(fresh) for _ in range(rng.randint(shortest, longest))]

    roots = [
        {"root_id": f"{first_root + i:032x}", "token_ids": ids(*root_tokens)}
        for i in range(n_roots)
    ]
    contexts = [
        {
            "chunk_id": f"{first_chunk + i:032x}-0",
            "doc_id": f"{first_chunk + i:032x}",
            "shard": "web-00001",
            "source": "web",
            "start": 0,
            "end": 9,
            "token_ids": [*ids(*chunk_tokens), *SEPARATOR],
        }
        for i in range(n_chunks)
    ]
    pairs = []
    for root in roots:
        anchors = range(1, len(root["token_ids"]))
        wanted = [(anchor, c["chunk_id"]) for anchor in anchors for c in contexts]
        copies = {c["chunk_id"] for c in contexts if rng.random() < 0.1}
        ranks: dict[int, int] = {}
        for anchor, chunk_id in sorted(rng.sample(wanted, min(len(wanted), pairs_per_root))):
            ranks[anchor] = ranks.get(anchor, 0) + 1
            accepted = chunk_id not in copies and rng.random() < p_accepted
            verdict = "accepted" if accepted else rng.choice((*FAILED, "not_tried"))
            verdict = "near_duplicate" if chunk_id in copies else verdict
            scored = verdict not in UNSCORED
            gain = rng.uniform(0.4, 0.95) if accepted else rng.uniform(-0.5, 0.4)
            pairs.append(
                {
                    "root_id": root["root_id"],
                    "anchor": anchor,
                    "rank": ranks[anchor],
                    "chunk_id": chunk_id,
                    "similarity": rng.uniform(0.1, 0.9),
                    **TEXT,
                    "entropy": 5.0,
                    "entropy_context": 5.0 * (1 - gain) if scored else None,
                    "entropy_control": 5.0 if scored else None,
                    "surprisal": 4.0,
                    "surprisal_context": 3.0 if scored else None,
                    "surprisal_control": 4.0 if scored else None,
                    "gain": gain if scored else None,
                    "calibrated_gain": gain - 0.1 if scored else None,
                    "accepted_by": ["plain", "calibrated"] if accepted else [],
                    "accepted": accepted,
                    "verdict": verdict,
                }
            )
    return World(roots, pairs, contexts)


def tokenizer_facts(
    sample_tokens: int, bos: tuple[int, ...] = (BOS,), **others: Any
) -> TokenizerFacts:
    """The tokenizer of these worlds. It has a padding token and no EOS."""
    facts: dict[str, Any] = {
        "model": "tiny-llama",
        "vocab_size": 100_000,
        "pad_id": PAD,
        "pad_token": "<pad>",
        "eos_id": None,
        "eos_token": None,
        "bos_id": BOS,
        "bos_token": "<s>",
        "sample_begins_with": bos,
        "separator": "\n\n",
        "separator_ids": SEPARATOR,
        "sample_tokens": sample_tokens,
    }
    return TokenizerFacts(**facts | others)


def settings_for(tokens: int, verification: Mapping[str, Any] = {}, **samples: Any) -> Settings:
    values = {
        "roots": {"min_tokens": 2, "max_tokens": 2},
        # The pairs of this world have no words, so rule `genuine` would accept none.
        "verification": {"rule": "calibrated", "compared_rules": ["plain"], **verification},
        "samples": {"tokens": tokens, **samples},
    }
    return make_project(values).dataset


@dataclass
class Packed:
    """The tables that a run wrote, read back from disk."""

    summary: dict[str, Any]
    shown: PackedShard
    samples: list[dict[str, Any]]
    segments: list[dict[str, Any]]
    dependencies: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    data_version: str


def views(
    roots: pl.DataFrame, pairs: pl.DataFrame, contexts: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    return {"roots": roots, "pairs": pairs, "contexts": contexts}


def run(
    folder: str,
    frames: tuple[pl.DataFrame, ...],
    settings: Settings,
    bos: tuple[int, ...] = (BOS,),
    pool: Pool | None = None,
) -> Packed:
    """Pack into a store under `folder` and read the tables back."""
    store = TableStore(folder)
    with (
        store.write(LONG_CONTEXT_SAMPLES, SHARD, fingerprint="test") as writer,
        open_tables(store, views(*frames)) as opened,
    ):
        packed = pack_shard(
            opened,
            settings=settings,
            shard=SHARD,
            tokenizer=tokenizer_facts(settings.samples.tokens, bos),
            writer=writer,
            pool=pool,
        )
    tables = {
        name: store.read(LONG_CONTEXT_SAMPLES, SHARD, name).to_dicts()
        for name in LONG_CONTEXT_SAMPLES.schemas
    }
    return Packed(
        packed.summary.model_dump(),
        packed,
        **tables,
        data_version=store.require(LONG_CONTEXT_SAMPLES, SHARD).data_version,
    )
