"""Passages of the indexed corpus for recipes that don't ask the anchors: drawn, or by keywords."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.retrieval.leak_check import RootGuard
from entropylong_assets.stages.retrieval.search import SearchTable, nominate
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.recipes import unverified
from entropylong_assets.stages.verification.controls import ChunkUniverse

MOST_DRAWS = 1024
NOT_A_CONTROL = -1
"""Stands where a control's number does when chunks are drawn, so that no control is drawn again."""

_WORD = re.compile(r"[^\W\d_][\w'-]*")
_BREAK = re.compile(r"[^\w\s'-]+|\n")

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


def keywords(text: str, most: int = 8) -> list[str]:
    """The strongest keyphrases of a text by RAKE (Rose et al., 2010), at most three words each.

    A phrase is a run of words without a stopword or a break; a word scores its degree over its
    frequency, a phrase the sum over its words. Ties go by the alphabet.
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
    return [" ".join(phrase) for phrase in ranked[:most]]


class IndexPool:
    """The pool of the recipes, over the shards that are indexed."""

    def __init__(
        self,
        universe: ChunkUniverse,
        fetch: Callable[[Sequence[str]], pl.DataFrame],
        search: SearchTable,
        n_rows: int,
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
        tokenizer: Tokenizer,
        settings: Settings,
    ) -> None:
        """fetch: chunk ids to chunk_id, doc_id, source, start, end, text and shard. search: of
        the index with `n_rows` rows, excluded shards left out."""
        self._universe = universe
        self._fetch = fetch
        self._search = search
        self._n_rows = n_rows
        self._embed = embed
        self._tokenizer = tokenizer
        self._settings = settings
        self._given: dict[str, dict[str, Any]] = {}

    def at_random(self, group: Group) -> Iterator[Context]:
        def drawn() -> Iterator[str]:
            for attempt in range(min(MOST_DRAWS, 8 * self._universe.total)):
                yield self._universe.draw(
                    self._settings.seed, group.root_id, NOT_A_CONTROL, attempt
                )

        yield from self._contexts(group, drawn(), {})

    def on_keywords(self, group: Group, most: int = 256) -> Iterator[Context]:
        text = self._tokenizer.decode(group.token_ids.tolist())
        query = ", ".join(keywords(text)) or text[:200]
        found = nominate(self._search, self._embed([query]), [group.root_id], most, self._n_rows)
        similarity = dict(found.select("chunk_id", "similarity").iter_rows())
        yield from self._contexts(group, iter(found["chunk_id"].to_list()), similarity)

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._given[chunk_id] for chunk_id in chunk_ids]

    def _contexts(
        self, group: Group, chunk_ids: Iterator[str], similarity: dict[str, float]
    ) -> Iterator[Context]:
        retrieval, separator = self._settings.retrieval, self._tokenizer.separator_ids
        root_text = self._tokenizer.decode(group.token_ids.tolist())
        guard = RootGuard(root_text, retrieval.leak_ngram_words)
        seen: set[str] = set()
        while batch := list(islice(chunk_ids, 8)):
            fresh = [c for c in dict.fromkeys(batch) if c not in seen]
            seen.update(fresh)
            rows = {row["chunk_id"]: row for row in self._fetch(fresh).iter_rows(named=True)}
            for chunk_id in fresh:
                row = rows.get(chunk_id)
                if row is None or row["doc_id"] == group.root_id:
                    continue
                if guard.containment(row["text"]) >= retrieval.max_containment:
                    continue
                token_ids = [*self._tokenizer.encode([row["text"]])[0], *separator]
                self._given[chunk_id] = row | {"token_ids": token_ids}
                yield unverified(
                    root_id=group.root_id,
                    chunk_id=chunk_id,
                    doc_id=row["doc_id"],
                    source=row["source"],
                    token_ids=token_ids,
                    similarity=similarity.get(chunk_id, 0.0),
                )


def open_pool(settings: Settings, shard: str) -> IndexPool:
    """The pool over the index that the shard's candidates were searched in.

    Raises TableError where the shard has no candidates or its index is gone.
    """
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.verification.searched_index import open_searched_index

    index = open_searched_index(settings, shard)
    columns = ["chunk_id", "doc_id", "source", "start", "end", "text"]
    return IndexPool(
        index.universe,
        lambda ids: index.table.fetch(ids, columns),
        index.search,
        index.universe.total,
        index.embedder.embed,
        load_tokenizer(settings.scoring),
        settings,
    )
