"""The kind of a dependency, found in the text of its evidence span.

The first of these kinds that applies:

    boilerplate       the wording at the anchor is common in the corpus, or its kind is excluded
    other             no word stands at the anchor, but a sign or white space
    paraphrase        the span does not contain the anchor's word in the same form
    definition        the span says what the word is: "X is a …", "X: …", "X refers to …", a heading
                      of its own, a definition in code, "X是…"
    code_symbol       the word is part of a name in code: `X`, X(…), a.X, X_y, someX
    verbatim_entity   the word is a number, or a capitalised word within a sentence
    verbatim_word     any other word that the span contains

The kinds describe wording by simple patterns. They do not say what a reader would call the pair.
Definitions are recognised in English, Chinese, Russian and code.
"""

from __future__ import annotations

import regex

from entropylong_assets.stages.retrieval.anchor_text import words_of

BOILERPLATE, OTHER, PARAPHRASE = "boilerplate", "other", "paraphrase"
DEFINITION, CODE_SYMBOL = "definition", "code_symbol"
VERBATIM_ENTITY, VERBATIM_WORD = "verbatim_entity", "verbatim_word"

KINDS = (
    VERBATIM_ENTITY,
    CODE_SYMBOL,
    DEFINITION,
    VERBATIM_WORD,
    PARAPHRASE,
    BOILERPLATE,
    OTHER,
)

_LETTER = r"[\p{L}\p{M}\p{N}]"

# `{word}` stands for the anchor's word. A term may be quoted or set in a font by marks around it,
# and have an abbreviation in brackets after it.
_AFTER_TERM = r"""["'`*_”’»]*(?:\s*\([^()\n]{1,40}\))?"""
_ENGLISH = (
    r"\s+(?:is|are|was|were|means?|denotes?|refers?\s+to|stands?\s+for|describes?"
    r"|is\s+defined\s+as|consists?\s+of)\s"
)
_RUSSIAN = r"\s*(?:[—–-]\s*это\s|—\s|\sэто\s|\sназыва[ею]тся\s|\sявляется\s|\sозначает\s)"
_CHINESE = r"\s*(?:是指|是|指的是|意为|即|称为|定义为|：)"
_COLON = r"\s*:(?!:|//|\d)\s*\S"
_DASH = r"\s+(?:--|[—–-])\s+\S"
_DEFINITIONS = (
    # at the start of a line, or after an article: the word ends the subject
    rf"(?:^|[.!?。！？]\s*|\b(?:an?|the)\s+)[^.!?:\n。！？：]{{0,60}}?{{word}}{_AFTER_TERM}{_ENGLISH}",
    rf"(?:^|[.!?]\s)[^.!?:\n]{{0,60}}?{{word}}{_AFTER_TERM}{_RUSSIAN}",
    rf"(?:^|[，。！？\s])[^。！？：，\n]{{0,20}}?{{word}}{_AFTER_TERM}{_CHINESE}",
    rf"^[\s*#>•+-]*[^.!?:\n]{{0,60}}?{{word}}{_AFTER_TERM}(?:{_COLON}|{_DASH})",
    r"\b(?:called|termed|known\s+as|so-called|называется|называют)\s+[\"'`*“«]*(?:\p{L}+\s+)?{word}",
    r"(?:称为|叫做|称作|所谓)[“「]?[^。，\n]{0,10}?{word}",
    # headings
    r"^\#+\s[^\n]{0,60}?{word}[^\n]{0,40}\n",
    r"^[^\n]{0,60}?{word}[^\n]{0,40}\n[=~^*-]{3,}\s*(?:\n|$)",
    # code
    r"\b(?:def|class|fn|func|function|struct|enum|trait|interface|type|typedef|const|let|var|val)"
    r"\s+(?:\w*_)?{word}(?!\p{L})",
    r"^\s*\#\s*define\s+(?:\w*_)?{word}(?!\p{L})",
)
_NUMBER = regex.compile(r"\p{N}+")


def classify(word: str | None, span: str, is_boilerplate: bool) -> str:
    """Return the kind of an accepted pair.

    word: at the anchor; None if it is no letter or digit. span: text of the evidence span.
    is_boilerplate: whether the wording at the anchor is common in the corpus, or the anchor of an
    excluded kind.
    """
    if is_boilerplate:
        return BOILERPLATE
    if word is None:
        return OTHER
    if word.casefold() not in words_of(span):
        return PARAPHRASE
    if _is_defined(word, span):
        return DEFINITION
    if _is_code(word, span):
        return CODE_SYMBOL
    if _NUMBER.fullmatch(word) or _is_name(word, span):
        return VERBATIM_ENTITY
    return VERBATIM_WORD


def _whole(word: str) -> str:
    """A pattern of the word with no letter beside it; of a script without spaces, of the letter."""
    escaped = regex.escape(word)
    if len(word) == 1 and not regex.match(r"[\p{Latin}\p{Cyrillic}\p{Greek}\p{N}]", word):
        return escaped
    return rf"(?<!{_LETTER}){escaped}(?!{_LETTER})"


def _is_defined(word: str, span: str) -> bool:
    whole = _whole(word)
    flags = regex.IGNORECASE | regex.MULTILINE
    return any(regex.search(p.replace("{word}", whole), span, flags) for p in _DEFINITIONS)


def _is_code(word: str, span: str) -> bool:
    w = regex.escape(word)
    mixed_case = r"\p{Ll}\p{Lu}|\p{Lu}{2}\p{Ll}{2}|\p{L}\d\p{L}"
    if regex.search(mixed_case, word) and regex.search(w, span):
        return True
    joined = rf"(?:[\w)\]]\.|::|->|_|\$|@|--|\\){w}(?!{_LETTER})"
    called = rf"(?<!{_LETTER}){w}(?:_|\(|::|->|\.(?=[\p{{L}}_])|\s?[=!]=|\s=\s|\[)"
    quoted = rf"`[^`\n]*(?<!{_LETTER}){w}(?!{_LETTER})[^`\n]*`"
    return any(regex.search(p, span, regex.IGNORECASE) for p in (joined, called, quoted))


def _is_name(word: str, span: str) -> bool:
    """Whether the word is written with a capital where no sentence begins."""
    if not regex.match(r"\p{Lu}", word):
        return False
    if len(word) > 1 and word.isupper():
        return True
    before = r"[\p{L}\p{N},;&('’-]\s?"
    return bool(regex.search(rf"{before}(?<!{_LETTER}){regex.escape(word)}", span))
