"""Small edits of a text, as a copy in another document may have them.

Every edit takes the sentences of a text and returns the edited text. `space` separates words: a
blank, or nothing in scripts without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

Sentences = Sequence[str]
Edit = Callable[[Sentences, str], str]


def _middle_letter(sentence: str) -> int:
    """Index of the letter or digit nearest to the middle."""
    middle = len(sentence) // 2
    letters = [i for i, char in enumerate(sentence) if char.isalnum()]
    return min(letters, key=lambda i: abs(i - middle))


def _other_letter(sentences: Sentences, letter: str) -> str:
    return next(c for c in reversed("".join(sentences)) if c.isalnum() and c not in letter)


def _middle_word(sentence: str, space: str) -> tuple[str, str, str]:
    """Return the text before the middle word, that word, and the text after it.

    Without spaces, two to four letters stand for a word.
    """
    if space and sentence.count(" ") > 2:
        words = sentence.split(" ")
        i = len(words) // 2
        return " ".join(words[:i]) + " ", words[i], " " + " ".join(words[i + 1 :])
    i = _middle_letter(sentence)
    length = 2 if sentence[i] > "\u2e80" else 4
    return sentence[:i], sentence[i : i + length], sentence[i + length :]


def _each(edit: Callable[[str, int, Sentences], str]) -> Edit:
    """An edit at the middle letter of every sentence."""

    def edited(sentences: Sentences, space: str) -> str:
        return space.join(edit(s, _middle_letter(s), sentences) for s in sentences)

    return edited


def _change_word(sentences: Sentences, space: str) -> str:
    parts = [_middle_word(sentence, space) for sentence in sentences]
    words = [word for _, word, _ in parts]
    turned = zip(parts, words[1:] + words[:1], strict=True)
    return space.join(before + other + after for (before, _, after), other in turned)


def _insert_word(sentences: Sentences, space: str) -> str:
    parts = [_middle_word(sentence, space) for sentence in sentences]
    words = [word for _, word, _ in parts]
    turned = zip(parts, words[1:] + words[:1], strict=True)
    return space.join(b + other + space + word + a for (b, word, a), other in turned)


def _delete_word(sentences: Sentences, space: str) -> str:
    parts = [_middle_word(sentence, space) for sentence in sentences]
    return space.join(before.rstrip() + after for before, _, after in parts)


def _reorder(sentences: Sentences, space: str) -> str:
    return space.join([*sentences[1::2], *sentences[::2]])


def _normalize(form: str) -> Edit:
    return lambda sentences, space: unicodedata.normalize(form, space.join(sentences))


def _map_letters(change: Callable[[str], str]) -> Edit:
    """An edit of each letter or digit of the text."""

    def edited(sentences: Sentences, space: str) -> str:
        return "".join(change(c) if c.isalnum() else c for c in space.join(sentences))

    return edited


def _without_marks(sentences: Sentences, space: str) -> str:
    """Drop accents, vowel points and tone marks, but no letter."""
    decomposed = unicodedata.normalize("NFD", space.join(sentences))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _add_point(letter: str) -> str:
    """Add a vowel point to a Hebrew or Arabic letter."""
    point = "\u05b8" if "א" <= letter <= "ת" else "\u064e" if "ء" <= letter <= "ي" else ""
    return letter + point


def _respace(blank: str) -> Edit:
    return lambda sentences, space: re.sub(r"\s+", blank, space.join(sentences))


def reordered(edit: Edit) -> Edit:
    """Edit every sentence, then put the sentences into another order."""

    def edited(sentences: Sentences, space: str) -> str:
        # Joined by a character that no text contains, so that the sentences can be told apart.
        return _reorder(edit(sentences, "\0").split("\0"), space)

    return edited


CHANGE_LETTER = _each(lambda s, i, all_: s[:i] + _other_letter(all_, s[i]) + s[i + 1 :])
_DELETE_LETTER = _each(lambda s, i, _: s[:i] + s[i + 1 :])


EDITS: dict[str, Edit] = {
    "none": lambda sentences, space: space.join(sentences),
    "sentences reordered": _reorder,
    "character changed": CHANGE_LETTER,
    "character inserted": _each(lambda s, i, all_: s[:i] + _other_letter(all_, s[i]) + s[i:]),
    "character deleted": _DELETE_LETTER,
    "word changed": _change_word,
    "word inserted": _insert_word,
    "word deleted": _delete_word,
    "reordered, character changed": reordered(CHANGE_LETTER),
    "reordered, character deleted": reordered(_DELETE_LETTER),
    "punctuation dropped": lambda sentences, space: "".join(
        c for c in space.join(sentences) if not unicodedata.category(c).startswith("P")
    ),
    "punctuation added": lambda s, space: re.sub(r"(\w{6})\b", r"\1 – ", space.join(s)),
    "upper case": lambda sentences, space: space.join(sentences).upper(),
    "spaces doubled": _respace("  \n"),
    "no-break spaces": _respace("\u00a0"),
    "spaces dropped": _respace(""),
    "NFD": _normalize("NFD"),
    "NFKC": _normalize("NFKC"),
    "NFKD": _normalize("NFKD"),
    "full-width": _map_letters(lambda c: chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c),
    "marks dropped": _without_marks,
    "accents added": _map_letters(lambda c: f"{c}\u0301" if c in "aeiouаеиоуαειου" else c),
    "points added": _map_letters(_add_point),
    "tatweel": _map_letters(lambda c: f"{c}\u0640" if "ب" <= c <= "ي" else c),
    "soft hyphens": _map_letters(lambda c: f"{c}\u00ad"),
    "zero-width spaces": _map_letters(lambda c: f"{c}\u200b"),
    "zero-width joiners": _map_letters(lambda c: f"{c}\u200d"),
}
"""Edits by name."""
