"""The report in a real browser. Needs Debian's package `chromium` and Python's `playwright`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from entropylong_assets.report.page import render
from entropylong_assets.report.run import open_dataset
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_audits,
    write_run,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of one dataset, and of two that differ in ε; the second is audited."""
    folder = tmp_path_factory.mktemp("reports")
    sources = []
    for name, epsilon in (("a", 0.4), ("b", 0.05)):
        settings = run_settings(folder / name, verification={"epsilon": epsilon})
        store = write_run(settings)
        if name == "b":
            write_audits(store, SHARDS[0])
        sources.append(open_dataset(settings))
    files = {"one": folder / "one.html", "two": folder / "two.html"}
    files["one"].write_text(render(sources[:1], byte_tokenizer), encoding="utf-8")
    files["two"].write_text(render(sources, byte_tokenizer), encoding="utf-8")
    return files


def write_dated(file: Path, stamp: float) -> None:
    """Set when a page was written."""
    os.utime(file, (stamp, stamp))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must raise no error, log no warning, and ask for nothing but its own file."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    noise: list[str] = []
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("console", lambda message: noise.append(f"console: {message.text}"))
    page.on("dialog", lambda dialog: noise.append(f"dialog: {dialog.message}"))
    page.on("request", lambda r: noise.append(r.url) if not r.url.startswith("file:") else None)
    yield page
    page.close()
    assert noise == []


def load(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-charts]", timeout=30_000)


def test_the_head_names_dataset_export_and_date(page: Page, files: dict[str, Path]) -> None:
    """The failure: two reports in two tabs had the same title."""
    write_dated(files["one"], 1_699_956_800)  # 14 November 2023
    load(page, files["one"])
    head = page.locator("header").inner_text()
    for shown in ("dataset", "corpus", f"{len(SHARDS)} shards", "not exported", "14 November 2023"):
        assert shown in head
    assert page.title() == "dataset · EntropyLong report"


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_uses_the_width_and_never_more(
    page: Page, files: dict[str, Path], which: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    load(page, files[which])
    # The page itself must not scroll sideways; tables inside a scroll box may be wider.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ends = """sections => sections.map(section => Math.max(...[...section.querySelectorAll(
        'svg.marks, table, .tokens, .strip, .card')].map(e => e.getBoundingClientRect().right)))"""
    for right in page.locator("main section:has(svg.marks, table)").evaluate_all(ends):
        assert right > 0.9 * width, "the right part of the page is empty"
    loose = """elements => elements.filter(e => !e.closest('.scroll, .tokens, svg') &&
        e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"""
    assert page.locator("main *").evaluate_all(loose) == []


def test_a_table_on_a_narrow_screen_needs_no_scrolling(page: Page, files: dict[str, Path]) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    load(page, files["one"])
    wide = page.locator(".scroll").evaluate_all(
        "boxes => boxes.filter(b => b.scrollWidth > b.clientWidth + 1).map(b => b.innerText)"
    )
    assert wide == []


def test_pictures_stand_before_tables(page: Page, files: dict[str, Path]) -> None:
    load(page, files["two"])
    order = page.locator("main svg.marks, main table").evaluate_all(
        "all => all.map(e => e.tagName.toLowerCase())"
    )
    assert order.index("table") >= order.count("svg") > 12


def test_examples_are_shown_first_and_genuine_ones_first(
    page: Page, files: dict[str, Path]
) -> None:
    load(page, files["two"])
    assert page.locator("main section").nth(1).get_attribute("id") == "examples"
    for column in page.locator("#examples .column").all():
        genuine = column.locator(".example").evaluate_all(
            "all => all.map(e => e.dataset.genuine === 'true')"
        )
        assert genuine == sorted(genuine, reverse=True)
        assert genuine[0]
    card = page.locator("#examples .example").first.inner_text()
    for shown in ("root", "context", "nats", "tokens apart"):
        assert shown in card


def test_the_page_says_which_audits_it_lacks_and_how_to_make_them(
    page: Page, files: dict[str, Path]
) -> None:
    load(page, files["two"])
    lacking = page.locator("#proof .lacking").all_inner_texts()
    assert len(lacking) == 2
    assert "null calibration 0 of 2" in lacking[0]
    assert "null calibration 1 of 2" in lacking[1]
    for text in lacking:
        assert "entropylong audit --dataset dataset" in text
        assert "entropylong export --dataset dataset" in text


def test_charts_and_funnel_are_drawn(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    assert page.locator("#charts figure svg.marks").count() == 6
    assert "Nothing is audited yet" in page.locator("#proof").inner_text()
    assert page.locator("#proof figure").count() == 0
    funnel = page.locator("#funnel").inner_text()
    assert "too short" in funnel
    assert "near duplicate" in funnel
    assert "without a reason" not in funnel


def test_an_anchor_shows_its_candidates(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    anchor = page.locator("#roots button.resolved").first
    anchor.click()
    assert anchor.get_attribute("aria-pressed") == "true"
    cards = page.locator("#roots article.candidate")
    assert cards.count() == 3
    text = page.locator("#roots article.accepted").first.inner_text()
    for shown in ("accepted", "ΔI", "ΔI*", "entropy given this context", "surprisal alone"):
        assert shown in text
    assert "passage" in page.locator("#roots article blockquote").first.inner_text()


def test_anchors_are_reached_by_keyboard(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    page.locator("#root").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    pressed = page.locator("#roots button[aria-pressed=true]")
    assert pressed.count() == 1
    assert page.locator("#roots button.anchor").nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator("#roots .detail h3").inner_text().startswith("Anchor at token")


def test_another_sample_is_shown(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    select = page.locator("#samples select").first
    before = page.locator("#samples .strip").inner_html()
    values = select.locator("option").evaluate_all("all => all.map(o => o.value)")
    assert len(values) > 1
    select.select_option(values[-1])
    assert page.locator("#samples .strip").inner_html() != before
    assert page.locator("#samples .arc").count() > 0
    segment = page.locator("#samples rect[data-role=verified]").first
    segment.click()
    assert "verified context, tokens" in page.locator("#samples .detail h3").inner_text()
    assert page.locator("#samples .arc.strong").count() > 0
    page.locator("#samples button", has_text="closer").click()
    page.locator("#samples select").nth(1).select_option("source")
    assert page.locator("#samples rect.segment[class*=source-]").count() > 0


def test_segments_are_reached_by_keyboard(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    page.locator("#samples rect.segment").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    label = page.locator("#samples rect.segment").nth(1).get_attribute("aria-label")
    assert page.locator("#samples .detail h3").inner_text() == label


def test_sources_are_filtered(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])

    def roots() -> list[str]:
        return page.locator("#root option").all_inner_texts()

    every = roots()
    page.locator("#sources input[value=web]").uncheck()
    left = roots()
    assert 0 < len(left) < len(every)
    assert all("books" in name for name in left)
    select = page.locator("#samples select").first
    web = next(v for v in select.locator("option").evaluate_all("o => o.map(x => x.value)")
               if v.startswith("web"))  # fmt: skip
    select.select_option(web)
    assert page.locator("#samples rect.segment.dimmed").count() > 0
    assert page.locator("#samples .arc").count() == 0
    assert ", 0 of" in page.locator("#samples .info").first.inner_text()
    page.locator("#sources input[value=web]").check()
    assert roots() == every
    assert page.locator("#samples .arc").count() > 0


def test_two_datasets_are_shown_side_by_side(page: Page, files: dict[str, Path]) -> None:
    load(page, files["two"])
    assert page.locator("#charts figure svg.marks").count() == 12
    assert page.locator("#proof figure svg.marks").count() == 4
    assert page.locator("#proof").inner_text().count("not measured") == 4
    proof = page.locator("#proof table").inner_text()
    assert "other<b>@2" in proof
    assert "1 of 2" in proof
    row = page.locator("#runs tr.differs", has_text="verification.epsilon").first.inner_text()
    assert "0.4" in row
    assert "0.05" in row
    assert "0 only in A" in page.locator("#runs").inner_text()
    assert page.locator("#runs thead", has_text="dataset B").count() == 2
    columns = page.locator("#roots .column")
    assert columns.count() == page.locator("#samples .column").count() == 2
    columns.first.locator("button.anchor").first.click()
    titles = page.locator("#roots .detail h3").all_inner_texts()
    anchors = {re.match(r"Anchor at token \d+", title)[0] for title in titles}  # type: ignore[index]
    assert len(titles) == 2
    assert len(anchors) == 1
    accepted = [columns.nth(i).locator("button.resolved").count() for i in (0, 1)]
    assert accepted[0] <= accepted[1]


def test_hostile_text_is_shown_and_does_nothing(page: Page, files: dict[str, Path]) -> None:
    load(page, files["one"])
    tokens = page.locator("#roots .tokens").inner_text()
    assert "<script>document.body.dataset.hacked" in tokens.replace("○", "").replace("●", "")
    assert "␛[31mred" in tokens.replace("○", "").replace("●", "")
    assert "⟨U+202E⟩" in tokens
    page.locator("#roots button.resolved").first.click()
    page.locator("#samples rect[data-role=verified]").first.click()
    assert page.locator("script").count() == 3, "the data and our own two"
    assert page.locator("img").count() == 0
    assert page.evaluate("document.body.dataset.hacked") is None
    everything = page.evaluate("document.body.innerText")
    assert not set(everything) & set("\x1b\x07\u202e\u2066")


def test_the_policy_holds_back_what_is_not_ours(browser: Browser, files: dict[str, Path]) -> None:
    """Even if a text became markup, neither script nor request would run."""
    file = files["one"].with_name("planted.html")
    html = files["one"].read_text(encoding="utf-8")
    planted = "<script>document.body.dataset.hacked='yes'</script><img src=x onerror='hacked=1'>"
    file.write_text(html.replace("<noscript>", planted + "<noscript>"), encoding="utf-8")
    other = browser.new_page()
    refused: list[str] = []
    other.on("console", lambda message: refused.append(message.text))
    load(other, file)
    assert other.evaluate("document.body.dataset.hacked") is None
    assert any("Content Security Policy" in text for text in refused)
    other.close()
