"""Texts in many languages and scripts: the sentences of a text, and of an unrelated one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

_WRITTEN = yaml.safe_load(Path(__file__).with_name("near_copy_texts.yaml").read_text("utf-8"))

TEXTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    language: (tuple(texts["text"]), tuple(texts["unrelated"]))
    for language, texts in _WRITTEN.items()
}


def _lines(alphabet: str, seed: int, count: int) -> tuple[str, ...]:
    draw = np.random.default_rng(seed)
    return tuple("".join(draw.choice(list(alphabet), 64)) for _ in range(count))


def _without_spaces(language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    text, unrelated = TEXTS[language]
    return tuple(s.replace(" ", "") for s in text), tuple(s.replace(" ", "") for s in unrelated)


_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
TEXTS["DNA"] = _lines("ACGT", 1, 12), _lines("ACGT", 2, 8)
TEXTS["Base64"] = _lines(_BASE64, 3, 12), _lines(_BASE64, 4, 8)
TEXTS["English without spaces"] = _without_spaces("English")
TEXTS["Korean without spaces"] = _without_spaces("Korean")

WITHOUT_SPACES = {"DNA", "Base64", "English without spaces", "Korean without spaces"}
WITHOUT_SPACES |= {"Chinese, simplified", "Chinese, traditional", "Japanese"}
WITHOUT_SPACES |= {"Thai", "Lao", "Khmer", "Burmese", "Tibetan"}
"""Languages whose sentences contain no spaces."""
