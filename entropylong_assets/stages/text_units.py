"""Words of any script, as the leak check, near-duplicates and decontamination compare them.

Only letters and digits count. White space, punctuation, case, diacritics, invisible characters and
Unicode's several ways to write one letter make no difference. Where a script is written without
spaces, a few letters stand for a word:

    text                 units
    "It's Été, ﬁne…"     it, s, ete, fine
    "今天 is OK"          今, 天, is, ok
    "ひらがな"             ひら, かな
    "สวัสดีครับ"             สวส, ดคร, บ
"""

from __future__ import annotations

import re
import unicodedata

import regex

MAX_WORD = 40
"""Letters of the longest word. A longer one (base64, DNA, a text without its spaces) is cut."""

PIECE = 3
"""Letters per unit of a word that is cut, and of an alphabet that is written without spaces."""

# Marks (accents, points, vowel signs), invisible characters, and strokes that stretch a word.
_IGNORED = regex.compile(r"[\p{M}\p{Cf}\p{Default_Ignorable_Code_Point}\u0640\u07fa_]+")

_WORD = re.compile(r"\w+")

# Unicode's rules of line breaking know which scripts have no spaces: a line may end between any two
# letters (classes ID, CJ, AK, AS) or where a dictionary says so (SA).
_SYLLABLES = r"\p{Script=Hiragana}\p{Script=Katakana}ー\p{Script=Hangul}"
_ALPHABETS = r"\p{Line_Break=SA}\p{Line_Break=AK}\p{Line_Break=AS}"
_IDEOGRAPHS = r"\p{Line_Break=ID}\p{Line_Break=CJ}"
_LETTER = r"\p{L}\p{N}\p{Script=Braille}"
_UNIT = regex.compile(
    rf"""(?V1)
      [[{_LETTER}]--[{_SYLLABLES}{_ALPHABETS}{_IDEOGRAPHS}]]+
    | [[{_LETTER}]&&[{_SYLLABLES}]]{{1,2}}
    | [[{_LETTER}]&&[{_ALPHABETS}]]{{1,{PIECE}}}
    | [{_LETTER}]
    """,
    regex.VERBOSE,
)
# Blocks that contain all of these scripts, and others. `_WORD` splits texts without them the same
# way, in a third of the time.
_NEEDS_UNIT = re.compile("[\u0e00-\u1fff\u2800-\u28ff\u2e80-\U0010ffff]")


def split_units(text: str) -> list[str]:
    """Return the words of a text, or what stands for them, in order and without what is ignored."""
    if text.isascii():
        units = _WORD.findall(text.lower().replace("_", ""))
    else:
        folded = _fold(text)
        units = (_UNIT if _NEEDS_UNIT.search(folded) else _WORD).findall(folded)
    if units and max(map(len, units)) > MAX_WORD:
        units = [piece for unit in units for piece in _cut(unit)]
    return units


def _fold(text: str) -> str:
    # Only NFKD separates marks from letters, and only NFC keeps Hangul syllables whole.
    bare = _IGNORED.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", bare.casefold())


def _cut(word: str) -> list[str]:
    if len(word) <= MAX_WORD:
        return [word]
    return [word[i : i + PIECE] for i in range(0, len(word), PIECE)]
