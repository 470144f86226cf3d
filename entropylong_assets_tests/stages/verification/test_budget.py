"""A budget leaves out the least promising candidates of a root, and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.verification import checks
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import ASSET, verify

KEY = ["root_id", "anchor", "rank", "chunk_id"]
SAME = ["entropy", "entropy_context", "entropy_control", "surprisal_context", "gain", "verdict"]


def with_budget(settings: Settings, **budget: Any) -> Settings:
    scoring = settings.scoring.model_copy(update=budget)
    return settings.model_copy(update={"scoring": scoring})


def in_order(candidates: pl.DataFrame) -> dict[str, list[str]]:
    """Each root's candidates by votes, similarity and rank, written once more by hand."""
    chunks: dict[str, dict[str, list[tuple[float, int]]]] = {}
    passed = candidates.filter(guard="passed").select("root_id", "chunk_id", "similarity", "rank")
    for root_id, chunk_id, similarity, rank in passed.iter_rows():
        chunks.setdefault(root_id, {}).setdefault(chunk_id, []).append((similarity, rank))
    return {
        root_id: sorted(
            of,
            key=lambda c, of=of: (-len(of[c]), -max(of[c])[0], min(r for _, r in of[c]), c),  # type: ignore[misc]
        )
        for root_id, of in chunks.items()
    }


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    into = TableStore(str(tmp_path_factory.mktemp("whole")))
    return verify(world.settings, world.shards[0], into).pairs


def check_same_where_tried(pairs: pl.DataFrame, whole: pl.DataFrame) -> tuple[int, int]:
    """(pairs tried, pairs not tried); every candidate has its row."""
    assert pairs.select(KEY).rows() == whole.select(KEY).rows()
    untried = pairs["verdict"] == "not_tried"
    for column in SAME:
        a, b = pairs.filter(~untried)[column], whole.filter(~untried)[column]
        if a.dtype == pl.String:
            assert a.to_list() == b.to_list()
        else:
            assert a.is_null().to_list() == b.is_null().to_list()
            assert (a - b).abs().max() < 1e-5  # type: ignore[operator]
    left = pairs.filter(untried)
    assert left["entropy_context"].null_count() == left["gain"].null_count() == len(left)
    assert not left["accepted"].any()
    return len(pairs) - len(left), len(left)


@pytest.mark.parametrize("most", [1, 2])
def test_a_root_stops_when_it_has_enough_contexts(
    world: World, whole: pl.DataFrame, tmp_path: Path, most: int
) -> None:
    shard, into = world.shards[0], TableStore(str(tmp_path))
    settings = with_budget(world.settings, max_contexts_per_root=most)
    pairs = verify(settings, shard, into).pairs
    tried, untried = check_same_where_tried(pairs, whole)
    assert tried > 20
    assert untried > 10
    accepted = whole.filter("accepted").select("root_id", "chunk_id").unique()
    good = set(accepted.iter_rows())
    order = in_order(world.store.read("candidate_contexts", shard, "candidates"))
    for (root_id,), rows in pairs.group_by("root_id"):
        expected: list[str] = []
        for chunk_id in order[str(root_id)]:
            if sum((root_id, c) in good for c in expected) == most:
                break
            expected.append(chunk_id)
        scored = rows.filter(pl.col("entropy_context").is_not_null())["chunk_id"]
        assert set(scored) == set(expected), "one after the other, until there are enough"


def test_a_root_stops_when_its_tokens_are_spent(
    world: World, whole: pl.DataFrame, tmp_path: Path
) -> None:
    shard, into, most = world.shards[0], TableStore(str(tmp_path)), 1500
    done = verify(with_budget(world.settings, max_forward_tokens_per_root=most), shard, into)
    pairs = done.pairs
    # Where not even one candidate fits there are no controls either, and so no verdict to compare.
    tried = pairs.filter(pl.col("entropy_context").is_not_null())
    served = pairs.filter(pl.col("root_id").is_in(tried["root_id"].unique().implode()))
    same = whole.filter(pl.col("root_id").is_in(tried["root_id"].unique().implode()))
    n_tried, n_untried = check_same_where_tried(served, same)
    assert n_tried > 20
    assert n_untried > 20
    order = in_order(world.store.read("candidate_contexts", shard, "candidates"))
    contexts = into.read(ASSET, shard, "contexts").select("chunk_id", "token_ids")
    size = {chunk_id: len(ids) for chunk_id, ids in contexts.iter_rows()}
    controls = into.read(ASSET, shard, "control_contexts")
    total = 0
    for (root_id,), rows in tried.group_by("root_id"):
        last = dict(rows.group_by("chunk_id").agg(pl.col("anchor").max()).iter_rows())
        end = whole.filter(pl.col("entropy_control").is_not_null(), root_id=root_id)["anchor"].max()
        of_root = controls.filter(root_id=root_id)["token_ids"].list.len()
        # BOS and text before the last position that is scored.
        spent = sum(1 + size[c] + a for c, a in last.items()) + sum(1 + n + end for n in of_root)
        assert spent <= most
        first = order[str(root_id)][: len(last)]
        assert set(first) == set(last), "the most promising ones"
        total += spent
    assert total == done.done.forward_tokens


@pytest.mark.parametrize(
    "budget", [{"max_contexts_per_root": 1}, {"max_forward_tokens_per_root": 1500}]
)
def test_a_budget_passes_every_check(world: World, tmp_path: Path, budget: dict[str, int]) -> None:
    """Checks and counts reconcile: each candidate one pair, each verdict recomputed."""
    shard, into = world.shards[0], TableStore(str(tmp_path))
    done = verify(with_budget(world.settings, **budget), shard, into)
    counts = done.done.figures.summary()
    assert sum(counts["verdicts"].values()) == len(done.pairs)
    assert counts["verdicts"]["not_tried"] > 10
    views = {
        "roots": world.store.read("entropy_scores", shard, "roots"),
        "candidates": world.store.read("candidate_contexts", shard, "candidates"),
        "pairs": into.read(ASSET, shard, "pairs"),
        "controls": into.read(ASSET, shard, "controls"),
        "summary": pl.DataFrame({"vocab_size": [400]}),
    }
    names = []
    for path in sorted(Path(checks.__file__).parent.glob("checks/*.sql")):
        sql = path.read_text()
        if path.stem == "false_acceptance_low":
            continue  # warns where chance is large, as it is with a random model
        parameters = world.settings.verification.model_dump()
        with duck.connect(world.store, views, only=sql) as session:
            used = {name: value for name, value in parameters.items() if f"${name}" in sql}
            assert session.sql(sql, params=used).fetchall() == [], path.stem
        names.append(path.stem)
    assert len(names) == 5
