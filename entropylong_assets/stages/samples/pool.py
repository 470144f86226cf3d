"""Passages of the indexed corpus for recipes without anchors: at random, or by keywords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

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

CHUNKS_PER_FETCH = 8
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
        universe, seed = self._index.universe, self._settings.seed

        def draw() -> Iterator[str]:
            for attempt in range(min(MAX_DRAWS, 8 * universe.total)):
                yield universe.draw(seed, group.root_id, NOT_A_CONTROL, attempt)

        yield from self._contexts(group, draw(), {})

    def on_keywords(self, group: Group, limit: int = 256) -> Iterator[Context]:
        text = self._tokenizer.decode(group.token_ids.tolist())
        query = ", ".join(keywords(text)) or text[:200]
        vectors_QE = self._index.embedder.embed_queries([query])
        found = nominate(
            self._index.search, vectors_QE, [group.root_id], limit, self._index.universe.total
        )
        similarity = dict(found.select("chunk_id", "similarity").iter_rows())
        yield from self._contexts(group, iter(found["chunk_id"].to_list()), similarity)

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._returned[chunk_id] for chunk_id in chunk_ids]

    def _contexts(
        self, group: Group, chunk_ids: Iterator[str], similarity: dict[str, float]
    ) -> Iterator[Context]:
        retrieval, separator = self._settings.retrieval, self._tokenizer.separator_ids
        root_text = self._tokenizer.decode(group.token_ids.tolist())
        leak_check = make_leak_check(retrieval, root_text)
        seen: set[str] = set()
        while batch := list(islice(chunk_ids, CHUNKS_PER_FETCH)):
            fresh = [c for c in dict.fromkeys(batch) if c not in seen]
            seen.update(fresh)
            fetched = self._index.table.fetch(fresh, _COLUMNS)
            rows = {row["chunk_id"]: row for row in fetched.iter_rows(named=True)}
            for chunk_id in fresh:
                row = rows.get(chunk_id)
                if row is None or row["doc_id"] == group.root_id:
                    continue
                if leak_check.containment(row["text"]) >= retrieval.max_containment:
                    continue
                token_ids = [*self._tokenizer.encode([row["text"]])[0], *separator]
                self._returned[chunk_id] = row | {"token_ids": token_ids}
                yield unverified(
                    root_id=group.root_id,
                    chunk_id=chunk_id,
                    doc_id=row["doc_id"],
                    source=row["source"],
                    token_ids=token_ids,
                    similarity=similarity.get(chunk_id, 0.0),
                )


def open_pool(partition: Partition) -> IndexPool:
    """Open the index that the candidates of this partition's shard were searched in.

    Raises TableError if the shard has no candidates or its index no longer exists.
    """
    from entropylong_assets.stages.entropy.model import load_tokenizer

    settings = partition.settings
    return IndexPool(open_searched_index(partition), load_tokenizer(settings.scoring), settings)
