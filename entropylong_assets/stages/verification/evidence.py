"""Evidence spans: the sentences of a context that keep the gain of an accepted pair.

The context is split into lines and sentences, and the root is scored given some of them alone. The
evidence span is the shortest of the sentences tried that keeps at least `MIN_KEPT` of the gain. If
none of them does, the best one is widened by its neighbours: by one on either side, then by two,
four and so on, until a window keeps enough or is the whole context. Finally the root is scored
given the context without the span.

The gain is the drop of the true token's surprisal from the lower of what it is alone and given the
controls. If that drop is at most `MIN_DROP` of the surprisal, it says little of the pair, and the
gain is that of the entropy.

Accepted anchors that share a context share its forward passes: at most `SENTENCES_TRIED` per
anchor, two per widening, and one without the span.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from entropylong_assets.stages.embeddings.chunking import split_sentences
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.retrieval.anchor_text import words_of
from entropylong_assets.stages.verification.requests import context_request
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

EVIDENCE = pl.Schema(VERIFIED_DEPENDENCIES.schemas["evidence"])

MIN_KEPT = 0.6
"""Share of the gain that an evidence span alone keeps."""

MIN_DROP = 0.2
"""Relative drop of the surprisal above which it measures the gain."""

SENTENCES_TRIED = 3
"""Sentences of a context that are scored alone per anchor, before any is widened."""

_BEFORE, _AFTER = 32, 8
"""Tokens around an anchor whose words are looked for in sentences."""

Span = tuple[int, int]
"""Start and end."""

SURPRISAL, ENTROPY = "surprisal", "entropy"


class Gain(NamedTuple):
    """What a pair gains by its context. measure: `surprisal` or `entropy`; reference, given, alone:
    its value at the anchor without the context, given it, and given the root alone, in nats."""

    measure: str
    reference: float
    given: float
    alone: float

    def share(self, value: float) -> float | None:
        """Return the share of the gain that is left at another value; None if nothing is gained."""
        gain = self.reference - self.given
        return (self.reference - value) / gain if gain > 0 else None


def gain_of(pair: Mapping[str, Any]) -> Gain:
    """Return the gain of an accepted pair, a row of `pairs`."""
    surprisal, entropy = _gain(pair, SURPRISAL), _gain(pair, ENTROPY)
    if surprisal.reference - surprisal.given > MIN_DROP * surprisal.reference:
        return surprisal
    if entropy.reference > entropy.given:
        return entropy
    # A rule need not compare with controls.
    return entropy._replace(reference=entropy.alone)


def _gain(pair: Mapping[str, Any], measure: str) -> Gain:
    alone, control = pair[measure], pair[f"{measure}_control"]
    reference = alone if control is None else min(alone, control)
    return Gain(measure, reference, pair[f"{measure}_context"], alone)


Search = Generator[list[Span], Sequence[float], Span]
"""Yields windows of sentences and is sent the share of the gain that each keeps; returns the
evidence span. Windows are ranges of sentences."""


def search(lengths: Sequence[int], order: Sequence[int]) -> Search:
    """Search the evidence span of one pair.

    lengths: characters of each sentence. order: sentences, the most promising first.
    """
    n = len(lengths)
    windows = [(i, i + 1) for i in order[:SENTENCES_TRIED]]
    step = 1
    while True:
        kept = yield windows
        enough = [w for w, share in zip(windows, kept, strict=True) if share >= MIN_KEPT]
        if enough:
            return min(enough, key=lambda w: (sum(lengths[slice(*w)]), w))
        best = max(range(len(windows)), key=lambda i: kept[i])
        start, end = windows[best]
        wider = {(max(0, start - step), end), (start, min(n, end + step))}
        windows = sorted(wider - {(start, end)})
        step *= 2


def rank_sentences(sentences: Sequence[str], word: str | None, around: str) -> list[int]:
    """Return the numbers of the sentences, the most promising first: those with the anchor's word
    before others, then by the number of words that they share with the text around the anchor."""
    wanted = words_of(around)

    def key(number: int) -> tuple[bool, int, int]:
        words = words_of(sentences[number])
        return word is None or word.casefold() not in words, -len(words & wanted), number

    return sorted(range(len(sentences)), key=key)


@dataclass
class _Pair:
    """An accepted pair and its search."""

    row: Mapping[str, Any]
    gain: Gain
    search: Search
    wanted: list[Span]
    """Windows of sentences whose scores it waits for."""
    found: Span | None = None

    def advance(self, kept: Sequence[float]) -> None:
        try:
            self.wanted = self.search.send(kept)
        except StopIteration as done:
            self.wanted, self.found = [], done.value


@dataclass
class _Context:
    """A context of a root with its accepted pairs."""

    root_ids: Sequence[int]
    text: str
    sentences: list[Span]
    pairs: list[_Pair] = field(default_factory=list)
    values: dict[tuple[str, int, str], float] = field(default_factory=dict)
    """Scores at an anchor given a text, by text, anchor and measure."""

    def anchors(self) -> list[int]:
        return sorted({pair.row["anchor"] for pair in self.pairs})

    def characters(self, window: Span) -> Span:
        return self.sentences[window[0]][0], self.sentences[window[1] - 1][1]

    def alone(self, window: Span) -> str:
        return self.text[slice(*self.characters(window))]

    def without(self, window: Span) -> str:
        start, end = self.characters(window)
        return (self.text[:start] + self.text[end:].lstrip()).strip()

    def is_whole(self, window: Span) -> bool:
        return window == (0, len(self.sentences))

    def share(self, pair: _Pair, text: str) -> float | None:
        value = self.values[text, pair.row["anchor"], pair.gain.measure]
        return pair.gain.share(value)

    def kept(self, pair: _Pair, window: Span) -> float:
        """Return the share of the gain that a window keeps."""
        share = 1.0 if self.is_whole(window) else self.share(pair, self.alone(window))
        assert share is not None, "pairs without a gain are not searched"
        return share

    def removed(self, pair: _Pair, window: Span) -> float | None:
        """Return the share of the gain that is removed with a window."""
        if self.is_whole(window):
            left = pair.gain.share(pair.gain.alone)
        else:
            left = self.share(pair, self.without(window))
        return None if left is None else 1 - left


@dataclass(frozen=True)
class EvidenceFinder:
    """Finds evidence spans with the scorer of the verification."""

    tokenizer: Tokenizer
    max_positions: int
    scorer: Scorer

    def find(
        self,
        accepted: pl.DataFrame,
        roots: Mapping[str, Sequence[int]],
        texts: Mapping[str, str],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> pl.DataFrame:
        """Return a row of the table `evidence` without `kind` for each accepted pair, and the text
        of the span in the column `text`.

        accepted: rows of `pairs`, of any number of roots. roots: token ids by root_id. texts: of
        the chunks, by chunk_id. A pair whose gain is not positive has the whole context as its
        span, and shares that are null.
        """
        contexts: dict[tuple[str, str], _Context] = {}
        for row in accepted.iter_rows(named=True):
            root_id, chunk_id = row["root_id"], row["chunk_id"]
            if (root_id, chunk_id) not in contexts:
                text = texts[chunk_id]
                sentences = split_sentences(text) or [(0, len(text))]
                contexts[root_id, chunk_id] = _Context(roots[root_id], text, sentences)
            context = contexts[root_id, chunk_id]
            context.pairs.append(self._start(context, row))
        while any(pair.wanted for context in contexts.values() for pair in context.pairs):
            self._score(
                [(c, c.alone(w)) for c in contexts.values() for w in _unscored(c)], on_progress
            )
            for context in contexts.values():
                for pair in context.pairs:
                    if pair.wanted:
                        pair.advance([context.kept(pair, window) for window in pair.wanted])
        self._score(
            [
                (context, context.without(pair.found))
                for context in contexts.values()
                for pair in context.pairs
                if pair.found is not None and not context.is_whole(pair.found)
            ],
            on_progress,
        )
        rows = [self._row(context, pair) for context in contexts.values() for pair in context.pairs]
        return pl.DataFrame(rows, schema={**EVIDENCE, "text": pl.String}).drop("kind")

    def _start(self, context: _Context, row: Mapping[str, Any]) -> _Pair:
        whole, gain = (0, len(context.sentences)), gain_of(row)
        sentences = [context.text[slice(*span)] for span in context.sentences]
        at = row["anchor"]
        around = self.tokenizer.decode(context.root_ids[max(0, at - _BEFORE) : at + _AFTER])
        order = rank_sentences(sentences, row["word"], around)
        pair = _Pair(row, gain, search([len(s) for s in sentences], order), [], whole)
        if len(sentences) > 1 and gain.reference > gain.given:
            pair.found, pair.wanted = None, next(pair.search)
        return pair

    def _score(
        self, wanted: Iterable[tuple[_Context, str]], on_progress: Callable[[int], None]
    ) -> None:
        """Score each context's root given these texts, at all of its accepted anchors."""
        distinct = {(id(context), text): (context, text) for context, text in wanted}
        encoded = self.tokenizer.encode([text for _, text in distinct.values()])
        requests = [
            context_request(
                self.tokenizer.bos_ids,
                [*ids, *self.tokenizer.separator_ids],
                context.root_ids,
                context.anchors(),
                self.max_positions,
            )
            for (context, _), ids in zip(distinct.values(), encoded, strict=True)
        ]
        scores = self.scorer.score(requests, on_progress) if requests else []
        for (context, text), score in zip(distinct.values(), scores, strict=True):
            for at, entropy, surprisal in zip(
                context.anchors(), score.entropy_N.tolist(), score.surprisal_N.tolist(), strict=True
            ):
                context.values[text, at, ENTROPY] = entropy
                context.values[text, at, SURPRISAL] = surprisal

    def _row(self, context: _Context, pair: _Pair) -> dict[str, Any]:
        window = pair.found
        assert window is not None
        start, end = context.characters(window)
        token_start, token_end = locate_tokens(self.tokenizer, context.text, start, end)
        has_gain = pair.gain.reference > pair.gain.given
        return {
            **{name: pair.row[name] for name in ("root_id", "anchor", "chunk_id")},
            "start": start,
            "end": end,
            "token_start": token_start,
            "token_end": token_end,
            "measure": pair.gain.measure,
            "kept": context.kept(pair, window) if has_gain else None,
            "removed": context.removed(pair, window) if has_gain else None,
            "text": context.text[start:end],
        }


def _unscored(context: _Context) -> list[Span]:
    """Return the windows that pairs of a context wait for and that are not scored yet."""
    wanted = {window: None for pair in context.pairs for window in pair.wanted}
    known = {text for text, _, _ in context.values}
    return [w for w in wanted if not context.is_whole(w) and context.alone(w) not in known]


def locate_tokens(tokenizer: Tokenizer, text: str, start: int, end: int) -> Span:
    """Return the tokens of a text that contain its characters from `start` to `end`.

    Found by decoding the first tokens. Where a tokenizer changes the text, the place is
    approximate; it is never empty and never outside.
    """
    (token_ids,) = tokenizer.encode([text])

    def tokens_within(characters: int) -> int:
        """Return the largest number of first tokens that are no more than `characters` long."""
        low, high = 0, len(token_ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(tokenizer.decode(token_ids[:middle])) <= characters:
                low = middle
            else:
                high = middle - 1
        return low

    first = min(tokens_within(start), len(token_ids) - 1)
    last = tokens_within(end)
    if last < len(token_ids) and len(tokenizer.decode(token_ids[:last])) < end:
        last += 1
    return first, max(first + 1, last)
