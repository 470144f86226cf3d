"""Held-out controls: contexts that should not help, of three kinds.

`random`: chunks of the corpus, drawn again, so that none is a stored control. `topical`: chunks of
documents on the root's topic that no anchor retrieved. `shuffled`: accepted chunks with their
sentences in another order. The first two are as long as the root's retrieved chunks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import regex

from entropylong_assets.audits.root_sample import ScoredRoot
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.retrieval.chunk_universe import ChunkUniverse
from entropylong_assets.stages.retrieval.registry import make_leak_check
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.verification.controls import (
    ControlSource,
    FetchChunks,
    draw_controls,
)

KINDS = ("random", "topical", "shuffled")

# Latin marks end a sentence only before white space: "v1.2" is no border. The marks of Tibetan are
# missing in Unicode's list of sentence ends.
_SENTENCE_BREAK = regex.compile(
    r"""(?V1)
      (?<=[.!?])\s+
    | \n+
    | (?<=[[\p{Sentence_Terminal}།༎]--\p{ASCII}][\p{Pe}\p{Pf}]?)\s*(?![\p{Pe}\p{Pf}\s]|$)""",
    regex.VERBOSE,
)

_EXTRA_HITS = 32
"""Number of hits per query that are searched in addition to those that the anchors retrieved."""


@dataclass(frozen=True)
class NullContext:
    """A context that should not help, and the anchors that it is tried on, ascending."""

    kind: str
    number: int
    chunk_ids: tuple[str, ...]
    token_ids: tuple[int, ...]
    anchors: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """The chunks and the search that held-out controls are drawn from."""

    universe: ChunkUniverse
    fetch: FetchChunks
    nearest: Callable[[Sequence[str], str, int], list[list[str]]]
    """Gets (queries, root_id, limit) and returns chunk ids per query, the most similar first."""


@dataclass(frozen=True)
class RootTexts:
    """Texts and chunks that are stored for one root, besides its pairs."""

    queries: Sequence[str]
    """Query texts of its anchors."""
    stored_controls: Sequence[str]
    """Chunks of its stored controls."""
    contexts: Mapping[str, Sequence[int]]
    """Token ids of scored chunks, with the separator's at the end."""


@dataclass(frozen=True)
class _Unrelated:
    """Conditions on a random or topical control of a root."""

    root: ScoredRoot
    nominated: frozenset[str]
    """Chunks that an anchor retrieved; none of them is used."""
    length: int
    """Median length of these chunks (tokens, the separator's included)."""
    is_near_duplicate: Callable[[str], bool]
    """Whether a text fails the leak check; such a chunk is not used."""


def shuffle_sentences(text: str, seed: int, name: str) -> str | None:
    """Return the sentences (and lines) of a text in another order; None if there is no other."""
    sentences = [part for part in _SENTENCE_BREAK.split(text) if part.strip()]
    if len(set(sentences)) < 2:
        return None
    space = "" if "".join(sentences) == text else " "
    rng = random.Random(hash_key(seed, "shuffle", name))  # noqa: S311
    while True:
        order = rng.sample(sentences, len(sentences))
        if order != sentences:
            return space.join(order)


class NullContexts:
    """Makes the held-out controls of roots, `audit.controls` of each kind per root."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, settings: Settings) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._settings = settings
        self._separator = tuple(tokenizer.separator_ids)
        self._count: int = settings.audit.controls

    def of_root(self, root: ScoredRoot, texts: RootTexts) -> Iterator[NullContext]:
        """Make the held-out controls of one root."""
        retrieval = self._settings.retrieval
        leak_check = make_leak_check(retrieval, self._tokenizer.decode(root.token_ids))
        nominated = frozenset(root.pairs["chunk_id"])
        lengths = sorted(len(texts.contexts[chunk_id]) for chunk_id in nominated)
        unrelated = _Unrelated(
            root,
            nominated,
            lengths[len(lengths) // 2],
            lambda text: leak_check.containment(text) >= retrieval.max_containment,
        )
        yield from self._random(unrelated, texts)
        yield from self._topical(unrelated, texts)
        yield from self._shuffled(root, texts)

    def _random(self, wanted: _Unrelated, texts: RootTexts) -> Iterator[NullContext]:
        source = ControlSource(
            self._corpus.universe,
            self._corpus.fetch,
            self._tokenizer,
            self._settings.seed + 1,  # other draws than the stored controls
        )
        for control in draw_controls(
            source,
            wanted.root.root_id,
            wanted.nominated.union(texts.stored_controls),
            wanted.is_near_duplicate,
            wanted.length,
            self._count,
        ):
            anchors = tuple(wanted.root.anchors)
            yield NullContext(
                "random", control.number, control.chunk_ids, control.token_ids, anchors
            )

    def _topical(self, wanted: _Unrelated, texts: RootTexts) -> Iterator[NullContext]:
        # One query per control, spread over the root.
        step = max(1, len(texts.queries) // self._count)
        queries = list(texts.queries)[::step][: self._count]
        if not queries:
            return
        root_id, length = wanted.root.root_id, wanted.length
        limit = self._settings.retrieval.top_k + len(wanted.nominated) + _EXTRA_HITS
        used = {chunk_id.rpartition("-")[0] for chunk_id in wanted.nominated}
        for number, hits in enumerate(self._corpus.nearest(queries, root_id, limit)):
            new = [c for c in hits if c.rpartition("-")[0] not in used]
            rows = {row[0]: row[1:] for row in self._corpus.fetch(new).iter_rows()}
            taken: list[str] = []
            token_ids: list[int] = []
            for chunk_id in new:
                doc_id, text = rows.get(chunk_id, (root_id, ""))
                if doc_id == root_id or doc_id in used or wanted.is_near_duplicate(text):
                    continue
                taken.append(chunk_id)
                token_ids += [*self._tokenizer.encode([text])[0], *self._separator]
                if len(token_ids) >= length:
                    break
            if taken:
                used.add(taken[0].rpartition("-")[0])
                kept = (*token_ids[: length - len(self._separator)], *self._separator)
                anchors = tuple(wanted.root.anchors)
                yield NullContext("topical", number, tuple(taken), kept, anchors)

    def _shuffled(self, root: ScoredRoot, texts: RootTexts) -> Iterator[NullContext]:
        accepted = root.pairs.filter("accepted").sort("gain", descending=True)
        by_chunk = accepted.group_by("chunk_id", maintain_order=True).agg("anchor")
        for number, (chunk_id, anchors) in enumerate(by_chunk.head(self._count).iter_rows()):
            original = texts.contexts[chunk_id]
            length = len(original) - len(self._separator)
            text = self._tokenizer.decode(original[:length])
            shuffled = shuffle_sentences(text, self._settings.seed, chunk_id)
            if shuffled is None:
                continue
            token_ids = self._tokenizer.encode([shuffled])[0][:length]
            yield NullContext(
                "shuffled",
                number,
                (chunk_id,),
                (*token_ids, *self._separator),
                tuple(sorted(set(anchors))),
            )
