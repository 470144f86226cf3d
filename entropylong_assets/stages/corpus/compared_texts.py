"""A text as it is compared with evaluation texts: n-grams of words, or of a model's tokens.

Words are in the platform's own segmentation of any script (`text_units`). Markup is removed before:
white space, case, HTML tags and Markdown links make no difference; to words, punctuation and
diacritics make none either.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.settings import EvaluationSet
from entropylong_assets.stages.model_files import ModelError, locate
from entropylong_assets.stages.ngrams import hash_ngrams, hash_runs, mix
from entropylong_assets.stages.text_units import split_units

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,500}>|<!--.{0,2000}?-->", re.DOTALL)
_LINK = re.compile(r"\]\([^()\s]{1,500}\)")
_SIGNS = re.compile(r"[*`\[\]]+")
"""Of Markdown's emphasis, code and links."""
_UNFINISHED = re.compile(r"(<[^<>]{0,500}|\]\([^()\s]{0,500}|&\w{0,30})\Z")


def _without_markup(text: str) -> str:
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "&" in text:
        text = html.unescape(text)
    if "](" in text:
        text = _LINK.sub("] ", text)
    return text


def compared_words(text: str) -> list[str]:
    """Return the words of a text without its markup."""
    return split_units(_without_markup(text))


def compared_text(text: str) -> str:
    """Return the text that is tokenized: without markup, in lower case, with single
    spaces.

    Equivalent Unicode forms of a character are unified (NFKC).
    """
    plain = _SIGNS.sub("", _without_markup(text))
    folded = unicodedata.normalize("NFKC", plain).casefold()
    return " ".join(folded.split())


class Compared(NamedTuple):
    """The n-grams of a document, and where they stand in it."""

    ngrams_N: NDArray[np.uint64]
    place: Callable[[int, int], tuple[int, int]]
    """The characters from the beginning of one n-gram to the end of another, both by number."""


@functools.lru_cache(1)
def _words_of(text: str) -> list[str]:
    """The words of the latest document, which sets with other n-grams compare too."""
    return compared_words(text)


def _compare_words(text: str, n: int) -> Compared:
    words = _words_of(text)

    def place(first: int, last: int) -> tuple[int, int]:
        return _characters(text, first, min(last + n, len(words)), lambda s: len(compared_words(s)))

    return Compared(hash_ngrams(words, n), place)


class _Tokens(NamedTuple):
    """A tokenizer, and the id that it gives to all that it does not know."""

    tokenizer: Any
    unknown: int | None

    def of(self, text: str) -> tuple[NDArray[np.uint64], list[tuple[int, int]]]:
        """Return a value and the characters of each token. Unknown ones differ by their text."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        values = mix(np.array(encoded.ids, np.uint64))
        if self.unknown is not None:
            for at in np.flatnonzero(np.array(encoded.ids) == self.unknown):
                start, end = encoded.offsets[at]
                values[at] = hash_ngrams([text[start:end]], 1)[0]
        return values, encoded.offsets


def _compare_tokens(text: str, n: int, tokens: _Tokens) -> Compared:
    values, spans = tokens.of(compared_text(text))

    def place(first: int, last: int) -> tuple[int, int]:
        begin, end = spans[first][0], spans[min(last + n, len(spans)) - 1][1]
        return _characters(text, begin, end, lambda s: len(compared_text(s)))

    return Compared(hash_runs(values, n), place)


def compare(text: str, evaluation: EvaluationSet) -> Compared:
    """Cut a text into n-grams as the set says."""
    if evaluation.tokenizer is None:
        return _compare_words(text, evaluation.units)
    return _compare_tokens(text, evaluation.units, load_tokenizer(evaluation.tokenizer))


@functools.lru_cache(4)
def load_tokenizer(reference: str) -> _Tokens:
    """Load `tokenizer.json` of a model or folder, for texts of any length. Raises CorpusError if
    there is none."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_tokenizer_file(reference)))
    # Files of embedders also say that texts are cut and padded to the model's window.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")  # Unigram has the id, other models the token
    if unknown is None and model.get("unk_token"):
        unknown = tokenizer.token_to_id(model["unk_token"])
    return _Tokens(tokenizer, unknown)


def _tokenizer_file(reference: str) -> Path:
    try:
        own = Path(reference).expanduser() / "tokenizer.json"
        file = own if own.is_file() else locate(reference).folder / "tokenizer.json"
    except ModelError as error:
        raise CorpusError(f"corpus.decontaminate, tokenizer: {error}") from None
    if not file.is_file():
        raise CorpusError(
            f"corpus.decontaminate, tokenizer {reference}: it has no file tokenizer.json; name a "
            "model or folder that has one, or leave tokenizer out to compare words"
        )
    return file


def tokenizer_version(reference: str) -> str:
    """Hash of a tokenizer's file. Raises CorpusError if there is none."""
    return hashlib.sha256(_tokenizer_file(reference).read_bytes()).hexdigest()[:16]


def _characters(
    text: str, first_unit: int, last_unit: int, count: Callable[[str], int]
) -> tuple[int, int]:
    """Return the characters of units `first_unit` to `last_unit` (not included) of a text.

    count: number of units of a text. The segmentation returns no positions, so they are found by
    binary search: the number of units of a prefix grows with its length.
    """

    def end_of(n_units: int) -> int:
        low, high = 0, len(text)
        while low < high:
            middle = (low + high) // 2
            if count(_UNFINISHED.sub("", text[:middle])) >= n_units:
                high = middle
            else:
                low = middle + 1
        return low

    start = max(0, end_of(first_unit + 1) - 1)
    end = end_of(last_unit)
    while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1  # a prefix that ends inside the last word already counts it
    return start, max(start, end)
