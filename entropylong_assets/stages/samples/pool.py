"""Passages of the indexed corpus that no anchor nominated: at random, or by keywords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.retrieval.registry import make_leak_check
from entropylong_assets.stages.retrieval.search import nominate
from entropylong_assets.stages.retrieval.searched_index import SearchedIndex, open_searched_index
from entropylong_assets.stages.samples.groups import Context, Group, unverified
from entropylong_assets.stages.stage import Partition

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.model import Tokenizer

MAX_DRAWS = 1024
NOT_A_CONTROL = -1
"""Used in place of a control's number to draw chunks, so that controls are not drawn again."""
FILLER = -2
"""Used in place of a control's number to draw fillers, so that random contexts are not repeated."""

CHUNKS_PER_FETCH = 8
FILLERS_PER_FETCH = 64
_COLUMNS = ["chunk_id", "doc_id", "source", "start", "end", "text"]

# In `re`, the vowel signs of Hindi or Thai are no part of a word.
_WORD = regex.compile(r"[^\W\d_][\w'-]*")
_BREAK = regex.compile(r"[^\w\s'-]+|\n")

# English function words, by which RAKE cuts phrases.
_FUNCTION_WORDS = (
    "a about above after again all also am an and any are as at be because been before being "
    "below between both but by can could did do does down during each few for from further "
    "had has have he her here his how i if in into is it its itself just may me might more "
    "most must my no nor not now of off on once only or other our out over own same shall she "
    "should so some such than that the their them then there these they this those through to "
    "too under until up upon use used uses using very was we were what when where which while "
    "who whom why will with would you your"
)
STOPWORDS = frozenset(_FUNCTION_WORDS.split())


def keywords(text: str, limit: int = 8) -> list[str]:
    """Extract the strongest keyphrases of a text by RAKE (Rose et al., 2010).

    A phrase is a run of at most three words without a stopword or a break. The score of a word is
    its degree divided by its frequency, that of a phrase the sum over its words. Ties are broken
    alphabetically.
    """
    phrases: set[tuple[str, ...]] = set()
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for part in _BREAK.split(text):
        run: list[str] = []
        for word in [*_WORD.findall(part.lower()), "the"]:
            if word not in STOPWORDS:
                run.append(word)
                continue
            if 1 <= len(run) <= 3:
                phrases.add(tuple(run))
                for member in run:
                    frequency[member] += 1
                    degree[member] += len(run)
            run = []
    scores = {p: sum(degree[w] / frequency[w] for w in p) for p in phrases}
    ranked = sorted(scores, key=lambda p: (-scores[p], p))
    return [" ".join(phrase) for phrase in ranked[:limit]]


class IndexPool:
    """The passages of an index. Implements `Pool`."""

    def __init__(self, index: SearchedIndex, tokenizer: Tokenizer, settings: Settings) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._settings = settings
        self._returned: dict[str, dict[str, Any]] = {}

    def at_random(self, group: Group) -> Iterator[Context]:
        limit = min(MAX_DRAWS, 8 * self._index.universe.total)
        yield from self._contexts(group, self._draw(group, NOT_A_CONTROL, limit), {})

    def on_keywords(self, group: Group, limit: int = 256) -> Iterator[Context]:
        text = self._tokenizer.decode(group.token_ids.tolist())
        query = ", ".join(keywords(text)) or text[:200]
        vectors_QE = self._index.embedder.embed_queries([query])
        nominated = nominate(
            self._index.search, vectors_QE, [group.root_id], limit, self._index.universe.total
        )
        similarity = dict(nominated.select("chunk_id", "similarity").iter_rows())
        yield from self._contexts(group, iter(nominated["chunk_id"].to_list()), similarity)

    def fillers(self, groups: Sequence[Group]) -> Iterator[Context]:
        own = {context.doc_id for group in groups for context in group.chosen}
        # Draws enough to use up a small corpus; in a large one the samples are full before.
        chunk_ids = self._draw(groups[0], FILLER, 8 * self._index.universe.total)
        rows = self._rows(groups, chunk_ids, FILLERS_PER_FETCH)
        for number, row in enumerate(row for row in rows if row["doc_id"] not in own):
            root_id = groups[number % len(groups)].root_id
            yield replace(_context(root_id, row), unverified=False, filler=True)

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._returned.pop(chunk_id) for chunk_id in chunk_ids]

    def _draw(self, group: Group, number: int, limit: int) -> Iterator[str]:
        """At most `limit` random chunk ids, with repetitions; number: in place of a control's."""
        for attempt in range(limit):
            yield self._index.universe.draw(self._settings.seed, group.root_id, number, attempt)

    def _contexts(
        self, group: Group, chunk_ids: Iterator[str], similarity: dict[str, float]
    ) -> Iterator[Context]:
        for row in self._rows([group], chunk_ids, CHUNKS_PER_FETCH):
            yield _context(group.root_id, row, similarity.get(row["chunk_id"], 0.0))

    def _rows(
        self, groups: Sequence[Group], chunk_ids: Iterator[str], per_fetch: int
    ) -> Iterator[dict[str, Any]]:
        """Rows of `passages` for these chunks, each once, without those of the roots' documents and
        those that fail the leak check for one of the roots."""
        retrieval, separator = self._settings.retrieval, self._tokenizer.separator_ids
        root_ids = {group.root_id for group in groups}
        texts = [self._tokenizer.decode(group.token_ids.tolist()) for group in groups]
        leak_checks = [make_leak_check(retrieval, text) for text in texts]
        seen: set[str] = set()
        while batch := list(islice(chunk_ids, per_fetch)):
            fresh = [c for c in dict.fromkeys(batch) if c not in seen]
            seen.update(fresh)
            fetched = self._index.table.fetch(fresh, _COLUMNS)
            rows = {row["chunk_id"]: row for row in fetched.iter_rows(named=True)}
            for chunk_id in fresh:
                row = rows.get(chunk_id)
                if row is None or row["doc_id"] in root_ids:
                    continue
                text = row["text"]
                if any(
                    check.containment(text) >= retrieval.max_containment for check in leak_checks
                ):
                    continue
                token_ids = [*self._tokenizer.encode([text])[0], *separator]
                self._returned[chunk_id] = row | {"token_ids": np.array(token_ids, np.uint32)}
                yield self._returned[chunk_id]


def _context(root_id: str, row: dict[str, Any], similarity: float = 0.0) -> Context:
    """An unverified context for a root, from a row of `passages`."""
    return unverified(
        root_id=root_id,
        chunk_id=row["chunk_id"],
        doc_id=row["doc_id"],
        source=row["source"],
        token_ids=row["token_ids"],
        similarity=similarity,
    )


def open_pool(partition: Partition) -> IndexPool:
    """Open the index that the candidates of this partition's shard were searched in.

    Raises TableError if the shard has no candidates or its index no longer exists.
    """
    from entropylong_assets.stages.entropy.model import load_tokenizer

    settings = partition.settings
    return IndexPool(open_searched_index(partition), load_tokenizer(settings.scoring), settings)
