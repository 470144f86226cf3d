"""A budget leaves the least promising candidates of a root untried, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import verify, with_verification

KEY = ["root_id", "anchor", "rank", "chunk_id"]
SAME = ["entropy", "entropy_context", "entropy_control", "surprisal_context", "gain", "verdict"]


def in_order(candidates: pl.DataFrame) -> dict[str, list[str]]:
    """Each root's candidates by votes, similarity and rank, computed independently."""
    chunks: dict[str, dict[str, list[tuple[float, int]]]] = {}
    passed = candidates.filter(leak_check="passed").select(
        "root_id", "chunk_id", "similarity", "rank"
    )
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
    """Returns (pairs tried, pairs not tried); every candidate has its row."""
    assert pairs.select(KEY).rows() == whole.select(KEY).rows()
    untried = pairs["verdict"] == "not_tried"
    for column in SAME:
        a, b = pairs.filter(~untried)[column], whole.filter(~untried)[column]
        if a.dtype == pl.String:
            assert a.to_list() == b.to_list()
        else:
            assert a.is_null().to_list() == b.is_null().to_list()
            assert (a - b).abs().max() < 1e-5  # type: ignore[operator]
    rest = pairs.filter(untried)
    assert rest["entropy_context"].null_count() == rest["gain"].null_count() == len(rest)
    assert not rest["accepted"].any()
    return len(pairs) - len(rest), len(rest)


@pytest.mark.parametrize("most", [1, 2])
def test_a_root_stops_when_it_has_enough_contexts(
    world: World, whole: pl.DataFrame, tmp_path: Path, most: int
) -> None:
    shard, into = world.shards[0], TableStore(str(tmp_path))
    settings = with_verification(world.settings, max_contexts_per_root=most)
    pairs = verify(settings, shard, into).pairs
    tried, untried = check_same_where_tried(pairs, whole)
    assert tried > 20
    assert untried > 10
    accepted = whole.filter("accepted").select("root_id", "chunk_id").unique()
    good = set(accepted.iter_rows())
    order = in_order(world.store.read(CANDIDATE_CONTEXTS, shard, "candidates"))
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
    done = verify(with_verification(world.settings, max_forward_tokens_per_root=most), shard, into)
    pairs = done.pairs
    # If not even one candidate fits there are no controls either, and so no verdict to compare.
    tried = pairs.filter(pl.col("entropy_context").is_not_null())
    served = pairs.filter(pl.col("root_id").is_in(tried["root_id"].unique().implode()))
    same = whole.filter(pl.col("root_id").is_in(tried["root_id"].unique().implode()))
    n_tried, n_untried = check_same_where_tried(served, same)
    assert n_tried > 20
    assert n_untried > 20
    order = in_order(world.store.read(CANDIDATE_CONTEXTS, shard, "candidates"))
    contexts = into.read(VERIFIED_DEPENDENCIES, shard, "contexts").select("chunk_id", "token_ids")
    size = {chunk_id: len(ids) for chunk_id, ids in contexts.iter_rows()}
    controls = into.read(VERIFIED_DEPENDENCIES, shard, "control_contexts")
    total = 0
    for (root_id,), rows in tried.group_by("root_id"):
        last = dict(rows.group_by("chunk_id").agg(pl.col("anchor").max()).iter_rows())
        end = whole.filter(pl.col("entropy_control").is_not_null(), root_id=root_id)["anchor"].max()
        of_root = controls.filter(root_id=root_id)["token_ids"].list.len()
        # BOS and the text before the last scored position.
        spent = sum(1 + size[c] + a for c, a in last.items()) + sum(1 + n + end for n in of_root)
        assert spent <= most
        first = order[str(root_id)][: len(last)]
        assert set(first) == set(last), "the most promising ones"
        total += spent
    assert total == done.verified.forward_tokens


@pytest.mark.parametrize(
    "budget", [{"max_contexts_per_root": 1}, {"max_forward_tokens_per_root": 1500}]
)
def test_a_budget_passes_every_check(world: World, tmp_path: Path, budget: dict[str, int]) -> None:
    """Counts reconcile: one pair per candidate, and every verdict is computed again."""
    shard, into = world.shards[0], TableStore(str(tmp_path))
    settings = with_verification(world.settings, **budget)
    done = verify(settings, shard, into)
    counts = done.verified.counts.summary()
    assert sum(counts["verdicts"].values()) == len(done.pairs)
    assert counts["verdicts"]["not_tried"] > 10
    views = {
        "roots": world.store.read(ENTROPY_SCORES, shard, "roots"),
        "candidates": world.store.read(CANDIDATE_CONTEXTS, shard, "candidates"),
        "pairs": into.read(VERIFIED_DEPENDENCIES, shard, "pairs"),
        "controls": into.read(VERIFIED_DEPENDENCIES, shard, "controls"),
        "contexts": into.read(VERIFIED_DEPENDENCIES, shard, "contexts"),
        "evidence": into.read(VERIFIED_DEPENDENCIES, shard, "evidence"),
        "summary": pl.DataFrame({"vocab_size": [400]}),
    }
    stage = VERIFIED_DEPENDENCIES_STAGE
    assert stage.check_folder is not None
    parameters = stage.check_parameters(Partition(settings, into, shard))
    names = []
    for path in sorted(stage.check_folder.glob("*.sql")):
        sql = path.read_text()
        if path.stem == "false_acceptance_low":
            continue  # warns: a random model's false-acceptance rate is high
        with duck.connect(world.store, views, only=sql) as session:
            used = {name: value for name, value in parameters.items() if f"${name}" in sql}
            assert session.sql(sql, params=used).fetchall() == [], path.stem
        names.append(path.stem)
    assert len(names) == 6
