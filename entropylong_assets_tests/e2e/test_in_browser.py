"""What a person sees and clicks in the UI, in headless Chromium.

With ENTROPYLONG_TEST_PICTURES=<folder> it keeps what it saw.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from entropylong_assets_tests.e2e.conftest import keep_picture
from entropylong_assets_tests.e2e.day import Day
from entropylong_assets_tests.stage_names import FOLLOWING, SHARDWISE

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser


def test_the_asset_graph_reads_from_left_to_right(day: Day, page: Page) -> None:
    page.set_viewport_size({"width": 1900, "height": 1400})
    page.goto(f"{day.server.url}/asset-groups")
    graph = page.locator("svg")
    graph.get_by_text("dataset_audits").first.wait_for()
    page.keyboard.press("Alt+e")  # expand all groups
    page.wait_for_url("**expanded=**")
    page.reload()  # fits the whole graph into the window
    graph.get_by_text("training_dataset").first.wait_for()

    def node(name: str) -> Locator:
        """The node of an asset, whose name may be cut in its middle."""
        cut = f"{re.escape(name[:4])}.*….*{re.escape(name[-6:])}"
        return graph.get_by_text(re.compile(f"^({re.escape(name)}|{cut})$"))

    def left(name: str) -> float:
        box = node(name).first.bounding_box()
        assert box is not None, name
        return box["x"]

    for asset in FOLLOWING:
        node(asset).first.wait_for()
        assert node(asset).count() == 1, asset
    order = [left(asset) for asset in SHARDWISE if asset != "chunk_embeddings"]
    assert order == sorted(order)
    assert left("corpus_documents") < left("chunk_embeddings") < left("embedding_index")
    assert left("embedding_index") < left("candidate_contexts")
    keep_picture(page, "asset-graph")


def test_an_asset_says_what_it_is_and_its_partitions_what_they_hold(day: Day, page: Page) -> None:
    page.goto(f"{day.server.url}/assets/dataset/verified_dependencies?view=overview")
    page.get_by_text("does the chunk lower the entropy there?").first.wait_for()
    page.get_by_text("entropy_context", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    for words in ("long-context-data", "dataset", "PyTorch", "[nat]", "carry_new_shards"):
        assert words in shown, words
    page.goto(
        f"{day.server.url}/assets/dataset/verified_dependencies?view=partitions&partition=tiny-00000"
    )
    page.get_by_text("acceptance_rate", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    assert "tiny-00001" in shown
    assert "Materialized (2)" in shown
    for figure in ("mean_gain", "mean_calibrated_gain", "tokens_per_second", "false_acceptance"):
        assert figure in shown, figure
    keep_picture(page, "partition")
    gains = page.locator("tr", has=page.get_by_text("gains", exact=True))
    gains.get_by_text("[Show Markdown]").click()
    picture = page.locator("[role=dialog] img")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 300
    keep_picture(page, "gains")


def test_figures_over_partitions_are_drawn(day: Day, page: Page) -> None:
    page.goto(f"{day.server.url}/assets/dataset/verified_dependencies?view=overview")
    page.get_by_text("Plots", exact=True).first.click()
    for figure in ("acceptance_rate", "mean_gain", "tokens_per_second"):
        page.get_by_text(figure, exact=True).first.wait_for()
    assert page.locator("canvas").count() >= 3
    keep_picture(page, "plots")


def test_the_checks_of_an_asset_say_what_they_hold(day: Day, page: Page) -> None:
    page.goto(f"{day.server.url}/assets/dataset/verified_dependencies?view=checks")
    page.get_by_text("pairs_reconcile").first.click()
    page.get_by_text("Latest execution").first.wait_for()
    shown = page.locator("body").inner_text()
    assert "This is a blocking asset check" in " ".join(shown.split())
    assert "Succeeded" in shown
    assert "faulty rows" in shown
    keep_picture(page, "checks")


def test_one_partition_is_materialised_by_clicks_and_its_run_is_seen(day: Day, page: Page) -> None:
    before = day.server.materializations("corpus_documents")
    page.goto(
        f"{day.server.url}/assets/corpus/corpus_documents?view=partitions&partition=tiny-00001"
    )
    page.get_by_text("rows_per_second").first.wait_for()
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.locator("[role=dialog]")
    dialog.get_by_text("Launch runs to materialize").wait_for()
    assert "1 partition" in dialog.inner_text()
    dialog.get_by_role("button", name="Launch 1 run").click()

    def made() -> bool:
        times = day.server.materializations("corpus_documents")
        return len(times["tiny-00001"]) == len(before["tiny-00001"]) + 1 and day.server.settled()

    day.server.wait("the run", made, 120)
    after = day.server.materializations("corpus_documents")
    assert after["tiny-00000"] == before["tiny-00000"]
    page.goto(
        f"{day.server.url}/assets/corpus/corpus_documents?view=partitions&partition=tiny-00001"
    )
    link = page.locator("a[href^='/runs/']").first
    run = str(link.get_attribute("href")).partition("?")[0]
    page.goto(f"{day.server.url}{run}")
    page.get_by_text("corpus__corpus_documents_checks").first.wait_for()
    page.get_by_text("Success", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    assert "tiny-00001" in shown
    assert "Success" in shown
    assert "corpus__corpus_documents_checks" in shown
    keep_picture(page, "run")


def test_the_launchpad_shows_every_setting(day: Day, page: Page) -> None:
    page.goto(f"{day.server.url}/assets/dataset/verified_dependencies?view=overview")
    page.get_by_text("does the chunk lower the entropy there?").first.wait_for()
    page.locator('button:right-of(:text("Materialize"))').first.click()
    page.get_by_text("launchpad").first.click()
    dialog = page.get_by_role("dialog").filter(has_text="Launchpad (configure assets)")
    dialog.get_by_text("No errors").wait_for()
    config = dialog.inner_text()
    for words in ("dataset_settings:", "audit:", "recipes:", "roots:"):
        assert words in config, words
    keep_picture(page, "launchpad")


def test_automations_are_off_and_say_what_they_start(day: Day, page: Page) -> None:
    """Only `settings_changes` is on: it starts no run."""
    page.goto(f"{day.server.url}/automation")
    off = (
        "corpus__carry_new_shards",
        "corpus__daily_scan",
        "corpus__fill_gaps",
        "corpus__new_files",
        "corpus__refresh_index",
        "corpus__weekly_compact",
        "dataset__carry_new_shards",
        "dataset__fill_gaps",
    )
    on = ("corpus__settings_changes", "dataset__settings_changes")
    rows = page.locator("[class*=ListItem_listItem__]")
    for name in off + on:
        row = rows.filter(has=page.get_by_text(name, exact=True))
        switch = row.locator("[class*=formatSwitch] input")
        switch.wait_for(state="attached")
        assert switch.is_checked() == (name in on), name
    page.goto(f"{day.server.url}/locations/entropylong/sensors/corpus__new_files")
    page.get_by_text("Starts nothing for unchanged shards").first.wait_for()
    keep_picture(page, "automation")
