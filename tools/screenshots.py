"""Takes the pictures of the docs from a finished run: `make screenshots`, after `make demo`.

Starts Dagster's webserver and `entropylong serve` over the run that the environment names
(DAGSTER_HOME, settings or profile), looks at them in headless Chromium, 1280 pixels wide, and
writes docs/images/*.png. It needs Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "docs" / "images"
WIDTH = 1280
MAX_BYTES = 200_000
PARTITION = "numpy-docs-00000"
SECONDS_TO_START = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(*module_and_arguments: str, port: int) -> Iterator[str]:
    """Run a module of Python as a server on a port; yields its URL once it answers."""
    command = [sys.executable, "-m", *module_and_arguments, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        end = time.monotonic() + SECONDS_TO_START
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)}: does not answer on {url}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def asset_graph(page: Page, dagster: str) -> None:
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto(f"{dagster}/asset-groups")
    page.locator("svg").get_by_text("dataset_audits").first.wait_for()
    page.get_by_text("Hide navigation").click()
    page.keyboard.press("Alt+e")  # expand all groups
    page.wait_for_url("**expanded=**")
    page.reload()  # fits the width of the graph into the window
    page.locator("svg").get_by_text("training_dataset").first.wait_for()
    page.wait_for_timeout(20_000)  # until every asset shows its state
    page.get_by_role("img", name="zoom_out").click()  # the height too


def partition(page: Page, dagster: str) -> None:
    page.set_viewport_size({"width": WIDTH, "height": 800})
    page.goto(
        f"{dagster}/assets/dataset/verified_dependencies?view=partitions&partition={PARTITION}"
    )
    page.get_by_text("Materialized (", exact=False).first.wait_for()
    page.get_by_text("accepted", exact=True).first.wait_for()


def _open_report(page: Page, reports: str, height: int) -> None:
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(reports)
    page.locator("a[href*='/reports/']").first.click()


def sample(page: Page, reports: str) -> None:
    _open_report(page, reports, 800)
    page.locator("#samples svg.strip").first.wait_for()
    page.get_by_role("button", name="filled part").first.click()
    page.wait_for_timeout(4_000)  # until the charts above have their height
    page.locator("#samples").evaluate("section => section.scrollIntoView()")


def root(page: Page, reports: str) -> None:
    """An anchor with an accepted candidate."""
    _open_report(page, reports, 1000)
    anchor = page.locator("#roots button.anchor.resolved").first
    anchor.click()
    page.locator("#roots .detail .accepted").first.wait_for()
    anchor.evaluate("anchor => anchor.closest('.tokens').scrollIntoView()")


PICTURES: dict[str, tuple[str, Callable[[Page, str], None]]] = {
    "asset-graph": ("dagster", asset_graph),
    "partition": ("dagster", partition),
    "report-sample": ("reports", sample),
    "report-root": ("reports", root),
}


def save(page: Page, name: str) -> None:
    """Write what the page shows, once it has stopped moving, with at most 256 colours."""
    from PIL import Image

    page.wait_for_timeout(4_000)
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = FOLDER / f"{name}.png"
    shown.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.relative_to(PROJECT)}: {shown.width} x {shown.height}, {size:,} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{file}: {size:,} bytes, more than {MAX_BYTES:,}")


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    os.environ["OMP_NUM_THREADS"] = "1"
    workspace = str(PROJECT / "workspace.yaml")
    with (
        serving("dagster_webserver", "--workspace", workspace, port=free_port()) as dagster,
        serving("entropylong_assets.cli", "serve", port=free_port()) as reports,
        sync_playwright() as play,
    ):
        urls = {"dagster": dagster, "reports": reports}
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (where, show) in PICTURES.items():
            page = browser.new_page()
            page.set_default_timeout(SECONDS_TO_START * 1000)
            show(page, urls[where])
            save(page, name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
