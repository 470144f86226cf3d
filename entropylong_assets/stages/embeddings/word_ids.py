"""Token ids of texts from the ids of their words, each of which is tokenized once.

A tokenizer of BERT's kind tokenizes every word by itself: the ids of a text are those of its words,
one after the other. A corpus repeats its words, so that looking them up takes a small part of the
time of tokenizing them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COST_OF_WORD = 64
_MOST_COST = 1 << 24
"""Limit of what is remembered: characters, and `_COST_OF_WORD` for each word. About 240,000 words
of English, which take about 80 MB. Beyond it all words are forgotten."""


class TokenCounter:
    """Token ids of whole texts, by a tokenizer of the package `tokenizers`."""

    def __init__(self, tokenizer: Any, special: bool, prompt: str = "") -> None:
        """special: add the special tokens of a single text. prompt: put before every text."""
        self._tokenizer, self._special, self._prompt = tokenizer, special, prompt

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), *_stated(self._tokenizer), self._special, self._prompt)

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text, not truncated."""
        return [np.array(encoding.ids, np.int32) for encoding in self._encodings(texts)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text."""
        return [len(encoding) for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        prompted = [self._prompt + text for text in texts]
        return list(self._tokenizer.encode_batch_fast(prompted, add_special_tokens=self._special))


class WordByWord(TokenCounter):
    """The same ids as those of `TokenCounter`, for a tokenizer for which `tokenizes_words` holds.

    Any number of threads may use it.
    """

    def __init__(self, tokenizer: Any, special: bool, prompt: str = "") -> None:
        super().__init__(tokenizer, special, prompt)
        self._of: dict[str, tuple[int, ...]] = {}
        self._cost = 0
        self._before, self._after = _special_ids(tokenizer) if special else ((), ())

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text, not truncated."""
        return [
            np.fromiter(chain(self._before, chain.from_iterable(words), self._after), np.int32)
            for words in self._words(texts)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text."""
        special = len(self._before) + len(self._after)
        return [special + sum(map(len, words)) for words in self._words(texts)]

    def _words(self, texts: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """Return the ids of the words of each text."""
        split = [(self._prompt + text).replace("\n", " ").split(" ") for text in texts]
        known = self._of  # if it is replaced meanwhile, this call goes on with the former one
        unknown = list({word for words in split for word in words if word not in known})
        if unknown:
            encodings = self._tokenizer.encode_batch_fast(unknown, add_special_tokens=False)
            known |= {w: tuple(e.ids) for w, e in zip(unknown, encodings, strict=True)}
            self._cost += sum(map(len, unknown)) + _COST_OF_WORD * len(unknown)
            if self._cost > _MOST_COST:
                self._of, self._cost = {}, 0
        return [[known[word] for word in words] for words in split]


def _stated(tokenizer: Any) -> tuple[str, bool]:
    return tokenizer.to_str(), tokenizer.encode_special_tokens  # the latter is not in the former


def _unpickle(
    kind: type[TokenCounter], stated: str, special_as_text: bool, special: bool, prompt: str
) -> TokenCounter:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(stated)
    tokenizer.encode_special_tokens = special_as_text
    return kind(tokenizer, special, prompt)


def tokenizes_words(tokenizer: Any) -> bool:
    """Whether a tokenizer treats every word between blanks and line ends by itself.

    True of BERT's normalizer, splitter and WordPiece model, if no added token reaches beyond a
    word, and if special tokens surround a text and nothing else. Other kinds, such as Unigram or
    byte-level BPE, take blanks into their tokens.
    """
    stated = json.loads(tokenizer.to_str())
    kinds = tuple(_type_of(stated, p) for p in ("normalizer", "pre_tokenizer", "model"))
    if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece"):
        return False
    if _type_of(stated, "post_processor") not in {"BertProcessing", "TemplateProcessing", None}:
        return False
    return not any(
        token["lstrip"] or token["rstrip"] or len(token["content"].split()) != 1
        for token in stated["added_tokens"]
    )


def _type_of(stated: dict[str, Any], part: str) -> str | None:
    return stated[part]["type"] if stated.get(part) else None


def _special_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after those of a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    ids, special = tuple(encoding.ids), encoding.special_tokens_mask
    start = special.index(0)
    return ids[:start], ids[start + special[start:].count(0) :]
