"""What operators do, whole and with nothing made beforehand: `make test-e2e` (about 10 minutes).

One server; the tests are its days and follow one another.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from entropylong_assets_tests.e2e.day import CARRIERS, Day
from entropylong_assets_tests.e2e.server import PROJECT
from entropylong_assets_tests.stage_names import SHARDWISE

pytestmark = pytest.mark.long

FIRST = {"tiny-00000", "tiny-00001"}
SECOND = FIRST | {"tiny-00002", "tiny-00003"}
POISONED = "tiny-00004"
ALL = SECOND | {POISONED}


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    config = (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
    quick = config.replace("poll_interval_seconds: 60", "poll_interval_seconds: 5")
    assert quick != config
    made = Day(tmp_path_factory.mktemp("days"), quick)
    with made.server:
        yield made


def wait_for_export(day: Day, number: int) -> None:
    day.server.wait(
        f"export {number}",
        lambda: (
            len(day.server.materializations("training_dataset").get("all", [])) == number
            and day.server.settled()
        ),
        300,
    )


def ticks_since(day: Day, moment: float) -> int:
    ticks = day.server.ended_ticks("dataset__carry_new_shards")
    return sum(tick["timestamp"] > moment for tick in ticks)


def test_the_first_files_become_samples_by_the_sensors_alone(day: Day) -> None:
    day.server.switch_on("corpus__new_files")
    for name in CARRIERS:
        day.server.switch_on(name)
    day.wait_for("long_context_samples", FIRST, 400)
    wait_for_export(day, 1)
    times = day.times()
    for asset in SHARDWISE:
        assert {shard: len(made) for shard, made in times[asset].items()} == dict.fromkeys(FIRST, 1)
    assert len(times["embedding_index"]["all"]) == 1
    assert day.server.failed_checks() == {}


def test_two_new_files_follow_and_the_first_shards_stay(day: Day) -> None:
    before = day.times()
    day.write("c")
    day.write("d")
    day.wait_for("long_context_samples", SECOND, 400)
    wait_for_export(day, 2)
    after = day.times()
    for asset in SHARDWISE:
        assert {shard: after[asset][shard] for shard in FIRST} == before[asset], asset
        assert {shard: len(made) for shard, made in after[asset].items()} == dict.fromkeys(
            SECOND, 1
        )
    assert len(after["embedding_index"]["all"]) == 2, "once for the batch of two"


def test_a_poisoned_file_blocks_its_own_partition_and_no_other(day: Day) -> None:
    before = day.times()
    day.write("e", broken=8)
    day.server.wait("the failed run", lambda: day.server.failed_runs(POISONED), 120)
    day.server.wait("quiet", day.server.settled, 120)
    after = day.times()
    assert set(after["corpus_documents"]) == ALL
    for asset in SHARDWISE[1:]:
        assert after[asset] == before[asset], asset
    failed = day.server.failed_checks()
    assert ("few_bad_rows", POISONED) in failed
    assert {shard for _, shard in failed} == {POISONED}
    assert "8 faulty rows" in failed["few_bad_rows", POISONED]


def test_repaired_and_retried_it_heals_and_flows_on(day: Day) -> None:
    day.server.switch_off("corpus__new_files")
    [failed] = day.server.failed_runs(POISONED)
    day.write("e")
    assert day.wait_for_run(day.server.reexecute(failed)) == "SUCCESS"
    day.wait_for("long_context_samples", ALL, 300)
    wait_for_export(day, 3)
    assert day.server.failed_checks() == {}


def test_a_changed_epsilon_makes_stale_what_it_determines_and_starts_nothing(day: Day) -> None:
    # The first shards were searched in an older index, and are redone when someone asks for it.
    known = day.server.stale()
    assert known == {"candidate_contexts": {s: ["has a new data version"] for s in SECOND}}
    before = day.times()
    day.change("verification", epsilon=0.2)
    since = time.time()
    stale = {asset: why for asset, why in day.server.stale().items() if asset not in known}
    # The first of them; what follows is marked once that is renewed. The export holds rates that
    # are computed again under the rule.
    changed = ["has a new code version"]
    assert stale == {
        "verified_dependencies": dict.fromkeys(ALL, changed),
        "training_dataset": {"all": changed},
    }
    day.server.wait("two ticks", lambda: ticks_since(day, since) >= 2, 60)
    assert day.server.settled()
    assert day.times() == before


def test_a_backfill_over_all_shards_renews_them(day: Day) -> None:
    for name in CARRIERS:
        day.server.switch_off(name)
    before = day.times()
    backfill = day.server.backfill(SHARDWISE, sorted(ALL))
    assert day.wait_for_backfill(backfill, 900) == "COMPLETED_SUCCESS"
    assert day.wait_for_run(day.server.launch("dataset__export"), 120) == "SUCCESS"
    assert day.server.stale() == {}
    for asset in SHARDWISE:
        times = day.times()[asset]
        assert {shard: len(made) for shard, made in times.items()} == {
            shard: len(made) + 1 for shard, made in before[asset].items()
        }


def test_the_failed_partition_of_a_backfill_is_retried_alone(day: Day) -> None:
    # A shard whose check fails was made all the same; one without its file is not.
    (day.corpus / "e.jsonl").unlink()
    backfill = day.server.backfill(["corpus_documents"], ["tiny-00000", POISONED])
    assert day.wait_for_backfill(backfill, 300) == "COMPLETED_FAILED"
    before = day.times()["corpus_documents"]
    day.write("e")
    again = day.server.retry_backfill(backfill)
    assert day.wait_for_backfill(again, 300) == "COMPLETED_SUCCESS"
    after = day.times()["corpus_documents"]
    assert len(after[POISONED]) == len(before[POISONED]) + 1
    assert after["tiny-00000"] == before["tiny-00000"]
    assert day.server.failed_checks() == {}


def test_a_run_whose_process_is_killed_fails_and_does_not_hang(day: Day) -> None:
    run = day.server.launch("dataset__score", "tiny-00000")
    process = day.server.wait("its process", lambda: day.server.process_of(run), 120)
    os.kill(process, signal.SIGKILL)
    assert day.wait_for_run(run, 120) == "FAILURE"
    assert day.wait_for_run(day.server.launch("dataset__score", "tiny-00000"), 180) == "SUCCESS"
