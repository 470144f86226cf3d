"""A day at one server, in a browser and in a terminal beside it: what an operator does and sees.

Each test names the surprise that it guards against. They follow one another, about 5 minutes.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from entropylong_assets_tests.e2e.conftest import keep_picture
from entropylong_assets_tests.e2e.day import Day
from entropylong_assets_tests.e2e.server import REPOSITORY, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.long]

SHARDS = ["tiny-00000", "tiny-00001"]
LARGE = "tiny-00002"
SECONDS_TO_STOP = 20.0
"""Twice what is promised, since server, browser and command share the machine."""
UP_TO_DATE = "Everything is up to date: no run was needed."


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """A server over two files; nothing is made yet."""
    made = Day(tmp_path_factory.mktemp("operator"))
    with made.server:
        yield made
        made.end()


def staging(day: Day, shard: str = "*") -> list[Path]:
    return list((day.folder / "data/dataset/verified_dependencies").glob(f"{shard}/.staging-*"))


def exported_shards(day: Day) -> list[str]:
    manifest = day.folder / "data/dataset/training_dataset/all/manifest.json"
    inputs = json.loads(manifest.read_bytes())["determinants"]["inputs"]
    return sorted(inputs["long_context_samples"])


def stop_in_verification(day: Day, number: int) -> tuple[int, str, float]:
    """A signal to `entropylong run` while it verifies: exit code, what it says, and seconds."""
    process = day.begin("run")
    while not staging(day):
        assert process.poll() is None, process.communicate()
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - began


def test_a_job_registers_the_files_of_an_empty_corpus(day: Day, page: Page) -> None:
    """No job made partitions, and those added by hand never worked."""
    assert day.server.partitions() == []
    page.goto(f"{day.server.url}/locations/entropylong/jobs/corpus__scan/playground")
    page.get_by_role("button", name="Launch Run").click()
    day.server.wait("the shards", lambda: day.server.partitions() == SHARDS, 120)
    day.server.wait("the end of the scan", day.server.settled, 60)
    page.goto(f"{day.server.url}/assets/corpus/corpus_documents?view=partitions")
    page.get_by_text(SHARDS[1], exact=True).first.wait_for()
    page.get_by_text("Missing (2)").first.wait_for()


def test_a_run_in_a_terminal_tells_its_progress_and_is_listed_in_the_ui(
    day: Day, page: Page
) -> None:
    """Nothing was written during steps; runs of the command line were on no job's page."""
    done = day.terminal("run")
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    progress = re.findall(r"^\d\d:\d\d:\d\d (?:corpus|dataset) \w+, \d of \d: .+$", output, re.M)
    assert progress, output
    assert any(re.search(r"_\w+: .*\d+%|running for|started", line) for line in progress), output
    page.goto(f"{day.server.url}/locations/entropylong/jobs/dataset__verify/runs")
    for shard in SHARDS:
        page.get_by_text(shard).first.wait_for()
    assert "entropylong/" not in page.locator("body").inner_text()  # pills of our own tags
    page.locator("a[href^='/runs/']").first.click()
    # The table shows the last events, and holds only those in sight.
    page.get_by_placeholder(re.compile("^Filter")).fill("started")
    page.get_by_text(re.compile(r"verified_dependencies, tiny-0000\d: started")).first.wait_for()
    keep_picture(page, "run-of-the-command-line")


def test_the_link_to_the_report_opens_it(day: Day, page: Page) -> None:
    """It was a file:// URL, which a browser does not open from a page."""
    page.goto(f"{day.server.url}/assets/dataset/report?view=overview")
    link = page.locator("a[href^='http://127.0.0.1:3080/dataset/reports/']").first
    href = str(link.get_attribute("href"))
    port = free_port()
    server = day.begin("serve", "--port", str(port))
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert str(port) in line, line
        page.goto(href.replace("3080", str(port), 1))
        page.get_by_role("heading", level=1).wait_for()
        page.locator("canvas, svg").first.wait_for()
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)


def test_stopped_and_killed_runs_cost_no_shard(day: Day) -> None:
    """Ctrl-C was retried as a fault; after a kill the shard was missing from every later export."""
    before, exported = day.times(), exported_shards(day)
    assert exported == SHARDS
    day.values["verification"]["controls"] = 3
    day.server.write_settings(day.values)
    try:
        code, said, seconds = stop_in_verification(day, signal.SIGINT)
        assert code == 130, said
        assert "run the same command again" in said
        assert len(said.strip().splitlines()) == 1, said
        assert seconds < SECONDS_TO_STOP
        code, said, _ = stop_in_verification(day, signal.SIGKILL)
        assert code == -signal.SIGKILL
    finally:
        day.values["verification"]["controls"] = 2
        day.server.write_settings(day.values)
    again = day.terminal("run")
    assert again.returncode == 0, again.stderr
    assert UP_TO_DATE in again.stdout
    exported_again = day.terminal("export")
    assert exported_again.returncode == 0, exported_again.stderr
    assert exported_shards(day) == SHARDS
    after = day.times()
    assert after["verified_dependencies"] == before["verified_dependencies"]


def test_terminate_ends_a_run_within_seconds(day: Day, page: Page) -> None:
    """It was retried and ended as a success, or computed on after "Canceled"."""
    day.write("c", documents=240)
    prepared = day.terminal("run", "--shard", LARGE, "--to", "candidate_contexts")
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    run = day.server.launch("dataset__verify", LARGE)
    page.goto(f"{day.server.url}/runs/{run}")
    button = page.get_by_role("button", name=re.compile("Terminate$")).first
    button.wait_for()
    day.server.wait("the stage", lambda: staging(day, LARGE), 120)
    button.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=re.compile("^Terminate")).click()
    began = time.monotonic()
    assert day.wait_for_run(run) == "CANCELED"
    assert time.monotonic() - began < SECONDS_TO_STOP
    page.goto(f"{day.server.url}/runs/{run}")
    page.get_by_text("Canceled", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    assert "requested a retry" not in shown
    keep_picture(page, "terminated")
    assert LARGE not in day.server.materializations("verified_dependencies")
    assert staging(day, LARGE) == []
    limits = day.server.query(
        "{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId } } } }"
    )["instance"]["concurrencyLimits"]
    assert [limit for limit in limits if limit["claimedSlots"]] == []


def test_a_partition_deleted_in_the_ui_stays_out(day: Day, page: Page) -> None:
    """The next scan made it again, and its data stayed in the index and in exports."""
    answer = day.server.query(
        "mutation($r: RepositorySelector!, $n: String!, $k: [String!]!) "
        "{ deleteDynamicPartitions(repositorySelector: $r, partitionsDefName: $n, "
        "partitionKeys: $k) { __typename ... on PythonError { message } } }",
        r=REPOSITORY,
        n="corpus_shards",
        k=[LARGE],
    )["deleteDynamicPartitions"]
    assert answer["__typename"] == "DeleteDynamicPartitionsSuccess", answer
    assert day.wait_for_run(day.server.launch("corpus__scan")) == "SUCCESS"
    assert day.server.partitions() == SHARDS
    listed = day.terminal("retire", "--list").stdout
    assert f"shard {LARGE}" in listed, listed
    assert LARGE not in day.terminal("status").stdout
    page.goto(f"{day.server.url}/assets/corpus/corpus_documents?view=partitions")
    page.get_by_text(SHARDS[0], exact=True).first.wait_for()
    assert LARGE not in page.locator("body").inner_text()
    renewed = day.terminal("run")
    assert renewed.returncode == 0, renewed.stdout + renewed.stderr
    assert exported_shards(day) == SHARDS
    assert day.terminal("scan").returncode == 0
    assert day.server.partitions() == SHARDS


def test_a_changed_setting_is_seen_to_make_shards_stale(day: Day, page: Page) -> None:
    """Lineage, catalog and overview stayed green."""
    day.change("verification", epsilon=0.999)
    status = day.terminal("status").stdout
    assert re.search(r"stale: verified_dependencies, .*verification\.epsilon", status), status
    stale = ("made_under_present_settings", SHARDS[0])
    day.server.wait("the warning", lambda: stale in day.server.failed_checks(), 120)
    page.goto(f"{day.server.url}/assets/dataset/verified_dependencies?view=checks")
    page.get_by_text("made_under_present_settings").first.click()
    page.get_by_text("verification.epsilon").first.wait_for()
    keep_picture(page, "stale")


def test_no_samples_are_not_a_failure(day: Day, page: Page) -> None:
    """Without verified contexts the export was red and the command ended with 2."""
    exports = day.server.materializations("training_dataset")
    failed = day.server.failed_runs(SHARDS[0])  # those that were killed before
    done = day.terminal("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"skipped.*", done.stdout), done.stdout
    assert day.server.materializations("training_dataset") == exports
    page.goto(f"{day.server.url}/assets/dataset/training_dataset?view=overview")
    page.get_by_text("training_dataset").first.wait_for()
    assert "Failed" not in page.locator("body").inner_text()
    assert day.server.failed_runs(SHARDS[0]) == failed


def test_the_launchpad_refuses_a_misspelt_setting(day: Day, page: Page) -> None:
    """`order: shufle` showed "No errors", and failed with a stack trace."""
    page.goto(f"{day.server.url}/locations/entropylong/jobs/dataset__assemble/playground")
    page.get_by_text("No errors").first.wait_for()
    editor = page.locator(".CodeMirror").first
    config = editor.evaluate("editor => editor.CodeMirror.getValue()")
    # Only what the stage reads, not all 100 settings.
    assert sorted(yaml.safe_load(config)["resources"]) == [
        "dataset_settings",
        "dataset_settings__samples",
        "dataset_settings__scoring",
        "dataset_settings__verification",
    ]
    wrong = config.replace("order: shuffle", "order: shufle")
    assert wrong != config
    editor.evaluate("(editor, text) => editor.CodeMirror.setValue(text)", wrong)
    page.get_by_text("No errors").first.wait_for(state="detached")
    page.get_by_text(re.compile("Value .*order.* not in enum")).first.wait_for()
    keep_picture(page, "launchpad-error")


def test_another_instance_takes_over_the_data_and_refuses_other_data(day: Day) -> None:
    """A forgotten DAGSTER_HOME redid everything; an instance of other data went ahead."""
    home = day.folder / "other-home"
    home.mkdir()
    shutil.copyfile(day.server.home / "dagster.yaml", home / "dagster.yaml")
    taken_over = day.terminal("run", DAGSTER_HOME=str(home))
    assert taken_over.returncode == 0, taken_over.stderr
    assert UP_TO_DATE in taken_over.stdout
    other = day.folder / "other.yaml"
    other.write_text(yaml.safe_dump(day.values | {"data_uri": str(day.folder / "elsewhere")}))
    refused = day.terminal("run", "-s", str(other))
    assert refused.returncode == 2, refused.stdout
    [line] = refused.stderr.strip().splitlines()
    assert "DAGSTER_HOME" in line
    assert "elsewhere" in line
    assert not (day.folder / "elsewhere").exists()
