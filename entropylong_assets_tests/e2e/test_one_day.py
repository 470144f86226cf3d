"""A day in short, with the real daemon and the calls that the UI makes; `test_long_days.py` has
the whole of it.

The tests are the day of the server over two finished shards, and follow one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from entropylong_assets_tests.e2e.conftest import keep_picture
from entropylong_assets_tests.e2e.day import AFTER_INGEST, CARRIERS, Day
from entropylong_assets_tests.stage_names import SHARDWISE

if TYPE_CHECKING:
    from playwright.sync_api import Page

OLD = {"tiny-00000", "tiny-00001"}
GOOD, POISONED = "tiny-00002", "tiny-00003"


def test_new_files_flow_to_samples_and_a_poisoned_one_is_blocked(day: Day) -> None:
    server, before = day.server, day.times()
    assert {asset: set(before[asset]) for asset in SHARDWISE} == dict.fromkeys(SHARDWISE, OLD)
    day.write("c")
    day.write("d", broken=8)
    server.switch_on("corpus__new_files")
    for name in CARRIERS:
        server.switch_on(name)
    # No further act.
    day.wait_for("long_context_samples", OLD | {GOOD}, 240)
    exports = len(before["training_dataset"]["all"])
    server.wait(
        "the export",
        lambda: (
            len(server.materializations("training_dataset")["all"]) > exports and server.settled()
        ),
        120,
    )
    after = day.times()
    for asset in SHARDWISE:
        assert {shard: after[asset][shard] for shard in OLD} == before[asset], asset
    assert len(after["embedding_index"]["all"]) == len(before["embedding_index"]["all"]) + 1
    assert set(after["corpus_documents"]) == OLD | {GOOD, POISONED}
    for asset in SHARDWISE[1:]:
        assert set(after[asset]) == OLD | {GOOD}, asset
    # Exactly the poisoned partition is blocked, by the check whose page says which rows. The export
    # says that it lacks that shard.
    failed = set(server.failed_checks())
    assert ("few_bad_rows", POISONED) in failed
    assert {shard for _, shard in failed if shard is not None} == {POISONED}
    assert {check for check, shard in failed if shard is None} == {"all_shards_exported"}
    page = next(
        e["evaluation"]
        for e in server.executions("corpus_documents", "few_bad_rows")
        if e["evaluation"] and e["evaluation"]["partition"] == POISONED
    )
    entries = {entry["label"]: entry for entry in page["metadataEntries"]}
    assert entries["faulty rows"]["intValue"] == 8
    assert "d.jsonl" in entries["examples"]["mdStr"]


@pytest.mark.browser
def test_the_page_of_the_failed_check_shows_the_rows(day: Day, page: Page) -> None:
    page.goto(f"{day.server.url}/assets/corpus/corpus_documents?view=checks")
    page.get_by_text("few_bad_rows").first.click()
    page.get_by_text("8 faulty rows. The rule:").first.wait_for()
    assert page.get_by_text(POISONED).count() > 0
    keep_picture(page, "failed-check")
    page.get_by_text("[Show Markdown]").first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text("broken_json").first.wait_for()
    rows = dialog.inner_text()
    assert rows.count("d.jsonl") == 8
    assert "not JSON: Unterminated string" in rows


def test_the_repaired_file_heals_by_a_retry(day: Day) -> None:
    server = day.server
    server.switch_off("corpus__new_files")  # it would start the retry by itself
    for name in CARRIERS:
        server.switch_off(name)
    [failed] = server.failed_runs(POISONED)
    day.write("d")
    assert day.wait_for_run(server.reexecute(failed)) == "SUCCESS"
    assert not [key for key in server.failed_checks() if key[1] == POISONED]
    assert POISONED in server.materializations("chunk_embeddings")


def test_a_changed_epsilon_shows_what_became_stale_and_a_backfill_renews_it(day: Day) -> None:
    server = day.server
    # Searched in an older index; redone when someone asks for it.
    known = server.stale()
    assert set(known) == {
        "near_duplicates", "embedding_index", "candidate_contexts", "natural_documents",
    }  # fmt: skip
    day.change("verification", epsilon=0.2)
    stale = {asset: why for asset, why in server.stale().items() if asset not in known}
    made = OLD | {GOOD}
    # The first of them; what follows is marked once that is renewed. The export holds rates that
    # are computed again under the rule.
    changed = ["has a new code version"]
    assert stale == {
        "verified_dependencies": dict.fromkeys(made, changed),
        "training_dataset": {"all": changed},
    }
    before, renewed = day.times(), ["verified_dependencies", "long_context_samples"]
    backfill = server.backfill(renewed, sorted(made))
    assert day.wait_for_backfill(backfill, 240) == "COMPLETED_SUCCESS"
    assert day.wait_for_run(server.launch("dataset__export"), 120) == "SUCCESS"
    assert server.stale() == known
    after = day.times()
    for asset in AFTER_INGEST:
        for shard in made:
            more = len(after[asset][shard]) - len(before[asset][shard])
            assert more == (asset in renewed), (asset, shard)
