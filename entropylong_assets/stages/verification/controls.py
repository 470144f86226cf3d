"""Control contexts: random chunks of other documents, as long as the root's longest candidate.

An effect that a control has too is not an effect of the candidate (docs/concepts.md, Rules).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import polars as pl

from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.retrieval.chunk_universe import ChunkUniverse

MAX_DRAWS = 64
"""Maximum number of chunks drawn per control."""

FetchChunks = Callable[[Sequence[str]], pl.DataFrame]
"""Chunk ids to chunk_id, doc_id and text of those that are indexed."""


@dataclass(frozen=True)
class Control:
    """A control context of a root; like a candidate's, its token_ids end with the separator's."""

    number: int
    chunk_ids: tuple[str, ...]
    token_ids: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True)
class ControlSource:
    """What the controls of all roots are drawn from."""

    universe: ChunkUniverse
    fetch: FetchChunks
    tokenizer: Tokenizer
    seed: int


def draw_controls(
    source: ControlSource,
    root_id: str,
    excluded_chunks: Collection[str],
    is_near_duplicate: Callable[[str], bool],
    length: int,
    count: int,
) -> list[Control]:
    """Draw `count` control contexts of `length` tokens each, including the separator's.

    excluded_chunks: e.g. those that an anchor of the root nominates. is_near_duplicate: of a
    chunk's text. These, chunks of the root itself and chunks that are not in the index are never
    used. A chunk that is too short is continued by further draws. If the corpus has too few other
    chunks, there are fewer or shorter controls.
    """
    controls = []
    separator = source.tokenizer.separator_ids
    wanted = max(1, length - len(separator))
    known: dict[str, tuple[str, str]] = {}

    @cache
    def draw(number: int, attempt: int) -> list[str]:
        """Return the distinct, not excluded chunks of two consecutive draws for a control."""
        # Two are nearly always enough: most chunks have much the same length.
        drawn = [source.universe.draw(source.seed, root_id, number, attempt + i) for i in range(2)]
        return [chunk_id for chunk_id in dict.fromkeys(drawn) if chunk_id not in excluded_chunks]

    def fetch(chunk_ids: Sequence[str]) -> None:
        missing = [chunk_id for chunk_id in dict.fromkeys(chunk_ids) if chunk_id not in known]
        if missing:
            known.update((row[0], row[1:]) for row in source.fetch(missing).iter_rows())

    if source.universe.total:  # the first draws of all controls, in one request
        fetch([chunk_id for number in range(count) for chunk_id in draw(number, 0)])
    for number in range(count):
        used: list[str] = []
        token_ids: list[int] = []
        attempt = 0
        while len(token_ids) < wanted and attempt < MAX_DRAWS and source.universe.total:
            new = [chunk_id for chunk_id in draw(number, attempt) if chunk_id not in used]
            attempt += 2
            fetch(new)
            for chunk_id in new:
                doc_id, text = known.get(chunk_id, (root_id, ""))
                if doc_id == root_id or is_near_duplicate(text) or len(token_ids) >= wanted:
                    continue
                used.append(chunk_id)
                token_ids += source.tokenizer.encode([text])[0] + list(separator)
        if token_ids:
            cut = token_ids[:wanted]
            text = source.tokenizer.decode(cut)
            controls.append(Control(number, tuple(used), (*cut, *separator), text))
    return controls
