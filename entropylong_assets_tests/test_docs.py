"""The documentation: links resolve, pages are reachable, terms are defined, README is short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from entropylong_assets.project import make_project
from tools import method_picture

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
IMAGES = DOCS / "images"
README = REPOSITORY / "README.md"
MAX_WORDS = 900
PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not {".venv", ".venv-readers", "data", "build", ".pytest_cache"} & set(path.parts)
    and "usage" not in path.parts  # parts of the dataset card, with placeholders
)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def links(page: Path) -> Iterator[str]:
    """Iterate over the relative links and images of a page, in Markdown and in HTML."""
    text = without_code(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in targets:
        if not re.match(r"[a-z]+:", link):
            yield link


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    missing = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_links_are_found() -> None:
    """The failure: a pattern that matches nothing, so that every page passes."""
    assert {"docs/concepts.md", "docs/images/method-dark.svg", "CITATION.cff"} <= set(links(README))
    assert "faults-that-were-found" in anchors(DOCS / "faults.md")


def test_every_page_is_reachable_from_the_table_of_contents() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = (page.parent / link.partition("#")[0] for link in links(page))
            waiting += [t.resolve() for t in targets if t.suffix == ".md"]
    assert {page for page in PAGES if page.resolve() not in reached} == set()


def test_table_of_contents_lists_every_page_of_docs() -> None:
    listed = {link for link in links(DOCS / "index.md") if "/" not in link}
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def test_every_image_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert set(IMAGES.iterdir()) - shown == set()


def test_readme_is_short() -> None:
    """Words of the prose, the code and the printed tables, without the lines of the tables."""
    words = [w for w in README.read_text(encoding="utf-8").split() if re.search(r"\w", w)]
    assert 400 < len(words) <= MAX_WORDS


def test_settings_in_the_readme_are_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    project = make_project(yaml.safe_load(block))
    assert [source.name for source in project.corpus.sources] == ["web", "notes"]
    assert len(block.splitlines()) <= 10


@pytest.mark.parametrize(
    "term",
    [
        "root document", "anchor", "candidate context", "control context", "dependency",
        "information gain", "calibrated information gain", "entropy given a context", "surprisal",
        "rejected", "reason", "near-duplicate", "leak check", "hard negative", "filler", "padding",
        "shard", "corpus", "dataset", "up to date", "stale", "checkpoint", "false-acceptance rate",
        "materialization", "metadata", "asset check", "automation condition", "run", "backfill",
    ],
)  # fmt: skip
def test_concepts_define_the_terms(term: str) -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    defined = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    emphasised = re.findall(r"\*+([^*\n]+)\*+", text)
    assert any(re.search(rf"\b{term}\b", place) for place in [*defined, *emphasised])


def test_pictures_of_the_method_are_those_of_the_script() -> None:
    """If this fails: `python -m tools.method_picture`."""
    for name, colours in (("light", method_picture.LIGHT), ("dark", method_picture.DARK)):
        stored = (IMAGES / f"method-{name}.svg").read_text(encoding="utf-8")
        assert stored == method_picture.draw(colours)


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert "version" not in citation, "the version is in pyproject.toml only"
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2510.02330"
