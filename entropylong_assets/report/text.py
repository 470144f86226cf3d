"""Preparing text of the corpus for a page: visible, and unable to act as markup or script."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from entropylong_assets.stages.entropy.model import Tokenizer

# C0 and C1 controls except tab and newline; invisible characters; marks of text direction (UAX 9);
# line separators; interlinear marks; tags and lone surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_IN_JSON = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_LONGEST_CHARACTER = 4
"""Maximum number of tokens of one character, in a byte-level vocabulary."""


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's picture of this control
    return f"⟨U+{code:04X}⟩"


def visible(text: str) -> str:
    """Replace controls, direction marks and invisible characters by symbols or code points.

    Joiners (U+200C, U+200D) are kept: scripts and emoji need them.
    """
    return _HIDDEN.sub(_shown, text)


def as_json(value: Any) -> str:
    """Return JSON that can't end the `<script>` element that contains it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_IN_JSON)


def excerpt(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, made visible; a cut is marked."""
    text = text.strip()
    return visible(text if len(text) <= limit else text[:limit] + "…")


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to those before it, made visible.

    If a character consists of several tokens, the first has its text and the others are empty.
    """
    texts: list[str] = []
    previous: list[int] = []
    while len(texts) < len(token_ids):
        at = len(texts)
        before = tokenizer.decode(previous)
        for size in range(1, _LONGEST_CHARACTER + 1):
            piece = list(token_ids[at : at + size])
            after = tokenizer.decode([*previous, *piece])
            text = after[len(before) :] if after.startswith(before) else tokenizer.decode(piece)
            if "\ufffd" not in text:
                break
        else:  # not a whole character: decode the token alone
            piece = [token_ids[at]]
            text = tokenizer.decode(piece)
        texts += [visible(text), *[""] * (len(piece) - 1)]
        previous = piece
    return texts
