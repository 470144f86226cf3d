"""Evidence spans: the sentences of a context that keep the gain of an accepted pair.

The context is split into lines and sentences, and the root is scored given some of them alone: the
most promising one, then the next few. The evidence span is the shortest of them that keeps at least
`MIN_KEPT` of the gain. If none does, the best one is widened by its neighbours: by one on either
side, then by two, four and so on, until a window keeps enough or is the whole context.

Then the root is scored given the context without the span. If less than `MIN_REMOVED` of the gain
is removed with it, because other sentences tell the same, the span is widened in the same way until
enough is removed. If that takes more than `MAX_SHARE` of the context, the shorter span stays.

The gain is the drop of the true token's surprisal from the lower of what it is alone and given the
controls. If that drop is at most `MIN_DROP` of the surprisal, it says little of the pair, and the
gain is that of the entropy.

Accepted anchors that share a context share its forward passes. Most pairs need two; none needs more
than `SENTENCES_TRIED` and four per doubling of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from entropylong_assets.stages.embeddings.chunking import split_sentences
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.retrieval.anchor_text import words_of
from entropylong_assets.stages.verification.batch_progress import BeginRound, SearchProgress
from entropylong_assets.stages.verification.requests import context_request, pass_tokens
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

EVIDENCE = pl.Schema(VERIFIED_DEPENDENCIES.schemas["evidence"])

MIN_KEPT = 0.6
"""Share of the gain that an evidence span alone keeps."""

MIN_REMOVED = 0.8
"""Share of the gain that is to be removed with an evidence span."""

MAX_SHARE = 0.5
"""Largest part of a context, in characters, that a span is widened to so that enough is removed."""

MIN_DROP = 0.2
"""Relative drop of the surprisal above which it measures the gain."""

SENTENCES_TRIED = 3
"""Maximum number of sentences that are scored alone per anchor before one is widened."""

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


class Probe(NamedTuple):
    """A window of sentences, start and end, to be scored alone or taken out of the context."""

    window: Span
    is_alone: bool = True


Search = Generator[list[Probe], Sequence[float], Span]
"""Yields probes, and is sent the share of the gain that each window keeps alone, or that is removed
with it; returns the window that is the evidence span."""


def search(lengths: Sequence[int], order: Sequence[int]) -> Search:
    """Search the evidence span of one pair.

    lengths: characters of each sentence. order: sentences, the most promising first.
    """
    n = len(lengths)

    def size(window: Span) -> int:
        return sum(lengths[slice(*window)])

    def widened(window: Span, step: int) -> list[Span]:
        start, end = window
        return sorted({(max(0, start - step), end), (start, min(n, end + step))} - {window})

    tried: list[Span] = []
    kept: list[float] = []
    windows = [(i, i + 1) for i in order[:1]]
    step = 0
    while True:
        kept = [*kept, *(yield [Probe(window) for window in windows])]
        tried = [*tried, *windows]
        enough = [w for w, share in zip(tried, kept, strict=True) if share >= MIN_KEPT]
        if enough:
            span = min(enough, key=lambda w: (size(w), w))
            break
        if step == 0:
            windows, step = [(i, i + 1) for i in order[1:SENTENCES_TRIED]], 1
            if windows:
                continue
        windows = widened(tried[max(range(len(tried)), key=lambda i: kept[i])], step)
        tried, kept, step = [], [], step * 2
    if span == (0, n):
        return span

    (removed,) = yield [Probe(span, False)]
    window, step = span, 1
    while removed < MIN_REMOVED:
        windows = [w for w in widened(window, step) if size(w) <= MAX_SHARE * size((0, n))]
        if not windows:
            return span
        shares = yield [Probe(w, False) for w in windows]
        removed, window = max(zip(shares, windows, strict=True))
        step *= 2
    if window != span:
        (share,) = yield [Probe(window)]
        return window if share >= MIN_KEPT else span
    return span


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
    wanted: list[Probe]
    """Probes whose shares it waits for."""
    found: Span | None = None

    def advance(self, shares: Sequence[float]) -> None:
        try:
            self.wanted = self.search.send(shares)
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

    def text_of(self, probe: Probe) -> str:
        start, end = self.characters(probe.window)
        if probe.is_alone:
            return self.text[start:end]
        return (self.text[:start] + self.text[end:].lstrip()).strip()

    def is_whole(self, window: Span) -> bool:
        return window == (0, len(self.sentences))

    def share(self, pair: _Pair, probe: Probe) -> float:
        """Return the share of the gain that a window keeps, or that is removed with it."""
        if self.is_whole(probe.window):
            value = pair.gain.given if probe.is_alone else pair.gain.alone
        else:
            value = self.values[self.text_of(probe), pair.row["anchor"], pair.gain.measure]
        left = pair.gain.share(value)
        assert left is not None, "pairs without a gain are not searched"
        return left if probe.is_alone else 1 - left

    def unscored(self) -> list[str]:
        """Return the texts that pairs wait for and that are not scored yet."""
        probes = {probe: None for pair in self.pairs for probe in pair.wanted}
        known = {text for text, _, _ in self.values}
        texts = [self.text_of(probe) for probe in probes if not self.is_whole(probe.window)]
        return [text for text in dict.fromkeys(texts) if text not in known]


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
        on_progress: Callable[[int, float], None] = lambda *_: None,
    ) -> pl.DataFrame:
        """Return a row of the table `evidence` without `kind` for each accepted pair, and the text
        of the span in the column `text`.

        accepted: rows of `pairs`, of any number of roots. roots: token ids by root_id. texts: of
        the chunks, by chunk_id. on_progress: gets the tokens of each pass, and the finished share
        of the search. A pair whose gain is not positive has the whole context as its span, and
        shares that are null.
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
        progress = SearchProgress(on_progress, len(accepted))
        while pending := sum(bool(p.wanted) for c in contexts.values() for p in c.pairs):
            texts_left = [(c, text) for c in contexts.values() for text in c.unscored()]
            self._score(texts_left, partial(progress.begin_round, pending))
            for context in contexts.values():
                for pair in context.pairs:
                    if pair.wanted:
                        pair.advance([context.share(pair, probe) for probe in pair.wanted])
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

    def _score(self, wanted: Sequence[tuple[_Context, str]], begin: BeginRound) -> None:
        """Score each context's root given these texts, at all of its accepted anchors.

        begin: takes the tokens of all passes, and returns what counts those of each.
        """
        encoded = self.tokenizer.encode([text for _, text in wanted])
        requests = [
            context_request(
                self.tokenizer.bos_ids,
                [*ids, *self.tokenizer.separator_ids],
                context.root_ids,
                context.anchors(),
                self.max_positions,
            )
            for (context, _), ids in zip(wanted, encoded, strict=True)
        ]
        count = begin(sum(map(pass_tokens, requests)))
        scores = self.scorer.score(requests, count) if requests else []
        for (context, text), score in zip(wanted, scores, strict=True):
            values = zip(context.anchors(), score.entropy_N, score.surprisal_N, strict=True)
            for at, entropy, surprisal in values:
                context.values[text, at, ENTROPY] = float(entropy)
                context.values[text, at, SURPRISAL] = float(surprisal)

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
            "kept": context.share(pair, Probe(window)) if has_gain else None,
            "removed": context.share(pair, Probe(window, False)) if has_gain else None,
            "text": context.text[start:end],
        }


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
