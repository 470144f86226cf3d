"""Near-copies are found in any script: a table of languages and edits, and Unicode's scripts."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from entropylong_assets.stages.retrieval.leak_check import WordNgrams
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets_tests.stages.retrieval.copy_edits import CHANGE_LETTER, EDITS, reordered
from entropylong_assets_tests.stages.retrieval.script_texts import TEXTS, WITHOUT_SPACES

DEFAULTS = RetrievalSettings()
LIMIT = DEFAULTS.max_containment


def space_of(language: str) -> str:
    return "" if language in WITHOUT_SPACES else " "


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("language", TEXTS)
def test_near_copy_is_found(language: str, edit: str) -> None:
    text, space = TEXTS[language][0], space_of(language)
    share = WordNgrams(DEFAULTS, space.join(text)).containment(EDITS[edit](text, space))
    # Well above the limit, so that the length of a sentence does not decide.
    assert share >= 1.5 * LIMIT
    rewritten = not re.match("sentences|reordered|character|word", edit)
    assert (share == 1) is rewritten


@pytest.mark.parametrize("language", TEXTS)
def test_unrelated_text_is_not_found(language: str) -> None:
    check = WordNgrams(DEFAULTS, space_of(language).join(TEXTS[language][0]))
    assert check.containment(space_of(language).join(TEXTS[language][1])) <= 0.01
    family = language.split()[0].strip(",")
    others = [name for name in TEXTS if not name.startswith(family)]
    assert len(others) > 20
    for name in others:
        assert check.containment(space_of(name).join(TEXTS[name][0])) <= 0.01, name


@pytest.mark.parametrize("edit", EDITS)
def test_edits_change_the_text(edit: str) -> None:
    """Each edit is tried on a text that it changes, and keeps the number of sentences."""
    changed = [
        language
        for language, (text, _) in TEXTS.items()
        if EDITS[edit](text, space_of(language)) != space_of(language).join(text)
    ]
    assert bool(changed) is (edit != "none")
    if re.match("sentences|reordered|character|word", edit):
        assert changed == list(TEXTS)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("language", TEXTS)
def test_near_copy_is_found_in_a_root_of_another_normal_form(language: str, form: str) -> None:
    text = space_of(language).join(TEXTS[language][0])
    check = WordNgrams(DEFAULTS, unicodedata.normalize(form, text))
    for other in ("NFC", "NFD"):
        assert check.containment(unicodedata.normalize(other, text)) == 1


@cache
def letters_by_script() -> dict[str, list[str]]:
    """Letters of every script, by the first word of their Unicode names."""
    scripts: dict[str, set[str]] = defaultdict(set)
    for code in range(0x110000):
        letter = chr(code)
        if unicodedata.category(letter) in ("Lo", "Ll"):
            folded = unicodedata.normalize("NFKD", letter)
            if len(folded) == 1 and folded == letter:
                scripts[unicodedata.name(letter, "CJK").split()[0].split("-")[0]].add(letter)
    return {name: sorted(letters)[:200] for name, letters in scripts.items() if len(letters) >= 16}


def draw_sentences(letters: list[str], seed: int, spaced: bool) -> list[str]:
    draw = np.random.default_rng(seed)
    sentences = []
    for _ in range(8):
        words = ["".join(draw.choice(letters, draw.integers(3, 8))) for _ in range(15)]
        sentences.append((" " if spaced else "").join(words) + ".")
    return sentences


@pytest.mark.parametrize("spaced", [True, False], ids=["spaced", "unspaced"])
def test_near_copy_is_found_in_every_script_of_unicode(spaced: bool) -> None:
    scripts = letters_by_script()
    assert len(scripts) > 120
    assert {"THAI", "LAO", "KHMER", "JAVANESE", "CJK", "ETHIOPIC", "GEORGIAN"} <= scripts.keys()
    space = " " if spaced else ""
    for script, letters in scripts.items():
        text = draw_sentences(letters, 1, spaced)
        check = WordNgrams(DEFAULTS, space.join(text))
        copy = reordered(CHANGE_LETTER)(text, space)
        assert check.containment(copy) >= 1.2 * LIMIT, script
        other = space.join(draw_sentences(letters, 2, spaced))
        assert check.containment(other) <= 0.01, script
