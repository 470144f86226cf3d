"""Control contexts: random passages of other documents, as long as the candidates.

What a control does for an anchor, any text would have done (README.md, Why calibrated).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import polars as pl

_MOST_DRAWS = 64


@dataclass(frozen=True)
class Control:
    """A control context of a root; token_ids end with the separator's, like a candidate's."""

    number: int
    chunk_ids: tuple[str, ...]
    token_ids: tuple[int, ...]


class ChunkUniverse:
    """All indexed chunks, shard by shard, to draw from without holding more than a shard's."""

    def __init__(
        self,
        shard_sizes: Sequence[tuple[str, int]],
        chunk_ids: Callable[[str], Sequence[str] | pl.Series],
    ) -> None:
        """shard_sizes: (shard, its number of chunks). chunk_ids: those of a shard, in order."""
        self._sizes = shard_sizes
        self._chunk_ids = chunk_ids
        self.total = sum(size for _, size in shard_sizes)

    def draw(self, seed: int, root_id: str, control: int, attempt: int) -> str:
        """A chunk id, each equally likely; the same arguments give the same one."""
        key = f"{seed}:control:{root_id}:{control}:{attempt}".encode()
        index = int.from_bytes(hashlib.sha256(key).digest()[:16], "big") % self.total
        for shard, size in self._sizes:
            if index < size:
                return self._chunk_ids(shard)[index]
            index -= size
        raise AssertionError("index within total")


def draw_controls(
    universe: ChunkUniverse,
    fetch: Callable[[Sequence[str]], pl.DataFrame],
    encode: Callable[[Sequence[str]], list[list[int]]],
    is_copy: Callable[[str], bool],
    root_id: str,
    candidates: Collection[str],
    length: int,
    count: int,
    seed: int,
    separator_ids: Sequence[int],
) -> list[Control]:
    """`count` control contexts of `length` tokens each, the separator's included.

    Chunks of the root, chunks that an anchor of it nominated, near-duplicates (`is_copy` of their
    text) and copies that are not in the index are passed over. A chunk too short is continued by
    further draws. `fetch` gives chunk_id, doc_id and text. Where the corpus is too small to give
    other chunks, fewer or shorter controls come back.
    """
    controls = []
    wanted = max(1, length - len(separator_ids))
    for number in range(count):
        used: list[str] = []
        token_ids: list[int] = []
        attempt = 0
        while len(token_ids) < wanted and attempt < _MOST_DRAWS and universe.total:
            # Two draws nearly always suffice: chunks are of much the same length.
            drawn = [universe.draw(seed, root_id, number, attempt + i) for i in range(2)]
            attempt += len(drawn)
            fresh = [c for c in dict.fromkeys(drawn) if c not in candidates and c not in used]
            rows = {row[0]: row[1:] for row in fetch(fresh).iter_rows()}
            for chunk_id in fresh:
                doc_id, text = rows.get(chunk_id, (root_id, ""))
                if doc_id == root_id or is_copy(text) or len(token_ids) >= wanted:
                    continue
                used.append(chunk_id)
                token_ids += encode([text])[0] + list(separator_ids)
        if token_ids:
            kept = token_ids[:wanted]
            controls.append(Control(number, tuple(used), (*kept, *separator_ids)))
    return controls
