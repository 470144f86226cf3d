"""Passages of the indexed corpus that no anchor nominated: at random, or by keywords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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

CHUNKS_PER_FETCH = 32
"""Chunks of one root that are read together: first those of all announced roots, in one request
per 1,000 chunks, then for one root at a time."""
FILLERS_PER_FETCH = 256
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
        self._announced: dict[str, Group] = {}
        self._found: dict[str, dict[str, float]] = {}
        self._rows_read: dict[str, dict[str, Any]] = {}
        self._has_drawn = False

    def announce(self, groups: Sequence[Group]) -> None:
        self._announced = {group.root_id: group for group in groups}
        self._found, self._rows_read, self._has_drawn = {}, {}, False

    def at_random(self, group: Group) -> Iterator[Context]:
        if group.root_id in self._announced and not self._has_drawn:
            self._has_drawn = True
            self._read_ahead(self._draws(g) for g in self._announced.values())
        yield from self._contexts(group, self._draws(group), {})

    def on_keywords(self, group: Group, limit: int = 256) -> Iterator[Context]:
        if group.root_id in self._announced and not self._found:
            self._found = self._search([*self._announced.values()], limit)
            self._read_ahead(map(iter, self._found.values()))
        found = self._found if group.root_id in self._found else self._search([group], limit)
        similarity = found[group.root_id]
        yield from self._contexts(group, iter(similarity), similarity)

    def _search(self, groups: Sequence[Group], limit: int) -> dict[str, dict[str, float]]:
        """Return the similarities of the chunks nearest to the keywords of each root, by chunk_id,
        best first."""
        texts = [self._tokenizer.decode(group.token_ids.tolist()) for group in groups]
        queries = [", ".join(keywords(text)) or text[:200] for text in texts]
        # One by one: the vector of a text depends by rounding on those that are embedded with it,
        # and a root must get the same passages whichever others are announced.
        vectors_QE = np.concatenate([self._index.embedder.embed_queries([q]) for q in queries])
        root_ids = [group.root_id for group in groups]
        nominated = nominate(
            self._index.search, vectors_QE, root_ids, limit, self._index.universe.total
        )
        found: dict[str, dict[str, float]] = {root_id: {} for root_id in root_ids}
        columns = nominated.select("query", "chunk_id", "similarity")
        for query, chunk_id, similarity in columns.iter_rows():
            found[root_ids[query]][chunk_id] = similarity
        return found

    def _draws(self, group: Group) -> Iterator[str]:
        limit = min(MAX_DRAWS, 8 * self._index.universe.total)
        return self._draw(group, NOT_A_CONTROL, limit)

    def fillers(self, groups: Sequence[Group]) -> Iterator[Context]:
        own = {context.doc_id for group in groups for context in group.chosen}
        # Draws enough to use up a small corpus; in a large one the samples are full before.
        chunk_ids = self._draw(groups[0], FILLER, 8 * self._index.universe.total)
        rows = self._rows(groups, chunk_ids, FILLERS_PER_FETCH)
        for number, row in enumerate(row for row in rows if row["doc_id"] not in own):
            root_id = groups[number % len(groups)].root_id
            yield replace(_context(root_id, row), unverified=False, filler=True)

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        fetched = self._fetch(chunk_ids)
        return [self._with_token_ids(fetched[chunk_id]) for chunk_id in chunk_ids]

    def _with_token_ids(self, row: dict[str, Any]) -> dict[str, Any]:
        token_ids = [*self._tokenizer.encode([row["text"]])[0], *self._tokenizer.separator_ids]
        return row | {"token_ids": np.array(token_ids, np.uint32)}

    def _fetch(self, chunk_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Rows of these chunks in the table, by chunk_id; without those that are not in it."""
        if not chunk_ids:
            return {}
        fetched = self._index.table.fetch(chunk_ids, _COLUMNS)
        return {row["chunk_id"]: row for row in fetched.iter_rows(named=True)}

    def _read_ahead(self, chunk_ids: Iterable[Iterator[str]]) -> None:
        """Read the first chunks of each root at once."""
        first = (
            chunk_id for of_root in chunk_ids for chunk_id in islice(of_root, CHUNKS_PER_FETCH)
        )
        self._rows_read |= self._fetch(sorted({*first} - self._rows_read.keys()))

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
        retrieval = self._settings.retrieval
        root_ids = {group.root_id for group in groups}
        texts = [self._tokenizer.decode(group.token_ids.tolist()) for group in groups]
        leak_checks = [make_leak_check(retrieval, text) for text in texts]
        seen: set[str] = set()
        while batch := list(islice(chunk_ids, per_fetch)):
            fresh = [c for c in dict.fromkeys(batch) if c not in seen]
            seen.update(fresh)
            rows = self._fetch([c for c in fresh if c not in self._rows_read])
            for chunk_id in fresh:
                row = rows.get(chunk_id) or self._rows_read.get(chunk_id)
                if row is None or row["doc_id"] in root_ids:
                    continue
                text = row["text"]
                if any(
                    check.containment(text) >= retrieval.max_containment for check in leak_checks
                ):
                    continue
                yield self._with_token_ids(row)


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
