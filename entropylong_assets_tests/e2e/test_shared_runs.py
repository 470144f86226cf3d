"""Backfills whose runs are over several shards, on a real server with its daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entropylong_assets_tests.e2e.day import Day

pytestmark = pytest.mark.long

STAGES = ["corpus_documents", "chunk_embeddings"]
FIRST, BAD, LAST = "tiny-00000", "tiny-00001", "tiny-00002"


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    made = Day(tmp_path_factory.mktemp("shared"))
    made.values["cluster"] = {"shards_per_run": 8}
    made.server.write_settings(made.values)
    made.write("c")
    with made.server:
        assert made.terminal("scan").returncode == 0
        yield made
    made.end()


def test_a_backfill_is_one_run_and_only_what_failed_is_made_again(day: Day) -> None:
    (day.corpus / "b.jsonl").unlink()
    backfill = day.server.backfill(STAGES, [FIRST, BAD, LAST])
    assert day.wait_for_backfill(backfill, 400) == "COMPLETED_FAILED"
    assert len(day.server.runs_of(backfill)) == 1
    for stage in STAGES:
        made = day.server.materializations(stage)
        assert {shard: len(times) for shard, times in made.items()} == {FIRST: 1, LAST: 1}
    assert day.server.failed_checks() == {}
    before = {stage: day.server.materializations(stage) for stage in STAGES}
    day.write("b")
    again = day.server.retry_backfill(backfill)
    assert day.wait_for_backfill(again, 400) == "COMPLETED_SUCCESS"
    for stage in STAGES:
        after = day.server.materializations(stage)
        assert sorted(after) == [FIRST, BAD, LAST]
        assert {shard: after[shard] for shard in (FIRST, LAST)} == before[stage]
