"""The estimate before a run: what it samples stands for all sources, not for the first."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from entropylong_assets.project import make_project
from entropylong_assets.report import estimate as module
from entropylong_assets.report.capacity import DISTINCT
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import plan_shards

SHARDS, DOCUMENTS = 8, 64


def words(texts: Sequence[str]) -> list[list[int]]:
    return [[1] * len(text.split()) for text in texts]


def write_documents(file: Path, texts: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


class Models:
    """Models of one token per word, and what was given to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.embedded: list[str] = []
        self.scored: list[int] = []
        self.pack_tokens: list[int | None] = []
        tokenizer = SimpleNamespace(
            encode=words, count=lambda texts: [len(ids) for ids in words(texts)], bos_ids=[]
        )
        model = SimpleNamespace(tokenizer=tokenizer)
        embedder = SimpleNamespace(
            window_tokens=45,
            count_tokens=lambda texts: [len(t.split()) for t in texts],
            embed_documents=self.embed,
        )
        monkeypatch.setattr(module, "load_scoring_model", lambda _: model)
        monkeypatch.setattr(module, "load_embedder", lambda _: embedder)
        monkeypatch.setattr(module, "load_scorer", self.load_scorer)
        monkeypatch.setattr(module, "score_roots", self.score_roots)

    def embed(self, texts: list[str]) -> Any:
        self.embedded.extend(texts)
        return np.zeros((len(texts), 2), np.float32)

    def load_scorer(self, _: Any, pack_tokens: int | None) -> None:
        self.pack_tokens.append(pack_tokens)

    def score_roots(self, roots: Any, *_: Any) -> list[dict[str, Any]]:
        self.scored.extend(len(ids) for _, ids in roots)
        return [{"anchors": [1]} for _ in roots]


def settings_of(
    folder: Path, sources: Sequence[str], roots: dict[str, Any], **sections: Any
) -> Settings:
    """A dataset over one source per folder of this name."""
    return make_project(
        {
            "data_uri": str(folder / "out"),
            "corpus": {
                "sources": [{"name": n, "uri": f"{folder}/{n}/*.jsonl"} for n in sources],
                "min_chars": 10,
            },
            "embedding": {"min_chunk_chars": 10},
            "roots": {"min_tokens": 10} | roots,
            **sections,
        }
    ).dataset


def test_estimate_counts_chunks_over_all_sampled_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard's 64 documents alone were cut: a first source of short documents made 512
    chunks of these 4,096, and its length was that of every context."""
    lines = [1] + [9] * (SHARDS - 1)  # a line is a chunk
    (tmp_path / "s").mkdir()
    for shard, n in enumerate(lines):
        line = " ".join([f"shard{shard}"] * 40)
        texts = [f"{line} document{i}\n" * n for i in range(DOCUMENTS)]
        write_documents(tmp_path / "s" / f"{shard}.jsonl", texts)
    settings = settings_of(tmp_path, ["s"], {"fraction": 1.0})
    models = Models(monkeypatch)
    plan = plan_shards(settings.corpus)
    assert [shard.n_rows for shard in plan.shards] == [DOCUMENTS] * SHARDS
    expected = module.estimate(settings, plan)
    assert expected.documents == expected.roots == SHARDS * DOCUMENTS
    assert expected.chunks == sum(DOCUMENTS * n for n in lines) == 4096
    assert len(models.embedded) == 64
    assert {text.split()[0] for text in models.embedded} == {f"shard{i}" for i in range(SHARDS)}
    assert len(models.scored) == 6
    assert len(set(models.scored)) == 2, "all roots are of shards that are alike"


def test_estimate_scales_each_source_by_its_own_fraction_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 rows of `large` and 10 of `small` are one shard each. Taken together, the 10 documents
    that are all drawn would have counted as many times as the 64 of `large` that never are."""
    for name, n in (("large", 200), ("small", 10), ("unused", 20)):
        (tmp_path / name).mkdir()
        texts = [" ".join([f"{name}{i}"] * 20) for i in range(n)]
        write_documents(tmp_path / name / "0.jsonl", texts)
    fractions = {"small": 1.0, "unused": 0.0}
    settings = settings_of(
        tmp_path,
        ["large", "small", "unused"],
        {"fraction": 0.25, "fraction_by_source": fractions},
        retrieval={"top_k": 4},
        verification={"controls": 3},
    )
    models = Models(monkeypatch)
    expected = module.estimate(settings, plan_shards(settings.corpus))
    assert (expected.rows, expected.documents, expected.chunks) == (230, 230, 230)
    assert expected.roots == 200 * 0.25 + 10 == 60
    assert (expected.anchors, expected.pairs) == (60, 240)
    assert expected.sampled_documents == 64 + 10 + 20
    assert expected.forward_passes == round(240 * DISTINCT.value + 60 * 4)
    assert len(models.scored) == 6


@pytest.mark.parametrize("pack_tokens", [None, 4096])
def test_estimate_times_the_scorer_as_the_settings_pack_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack_tokens: int | None
) -> None:
    (tmp_path / "s").mkdir()
    write_documents(tmp_path / "s" / "0.jsonl", [" ".join(["word"] * 20)])
    settings = settings_of(tmp_path, ["s"], {}, scoring={"pack_tokens": pack_tokens})
    models = Models(monkeypatch)
    module.estimate(settings, plan_shards(settings.corpus))
    assert models.pack_tokens == [pack_tokens]


@pytest.mark.parametrize(("n", "limit"), [(0, 4), (3, 4), (4, 4), (7, 4), (100, 64), (512, 64)])
def test_spread_reaches_from_the_first_to_the_last(n: int, limit: int) -> None:
    """With a whole step, 64 of 100 were the first 64."""
    sample = module.spread(list(range(n)), limit)
    assert len(sample) == min(n, limit)
    assert sample == sorted(set(sample))
    edges = [-1, *sample, n]
    gaps = [b - a for a, b in itertools.pairwise(edges)]
    assert max(gaps) <= max(1, -(-n // limit))
