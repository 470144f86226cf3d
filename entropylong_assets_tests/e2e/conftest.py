from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from entropylong_assets_tests.e2e.day import Day

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MILLISECONDS_TO_SHOW = 180_000
"""Longest wait for something on a page: servers, browser and runs share the machine."""
PICTURES = os.environ.get("ENTROPYLONG_TEST_PICTURES")
"""Folder that keeps what the browser showed; the pictures of the README come from there."""


@pytest.fixture(scope="session")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """A server with its daemon over two finished shards, shared by the short tests."""
    made = Day(tmp_path_factory.mktemp("day"))
    made.make_beforehand()
    with made.server:
        yield made


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which no error may be raised."""
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.set_default_timeout(MILLISECONDS_TO_SHOW)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def keep_picture(page: Page, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(4_000)  # until nothing moves any more
        page.screenshot(path=Path(PICTURES) / f"{name}.png")
